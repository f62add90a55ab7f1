# make demo   a trained small detector, its COCO table and pictures, from nothing
# make test   everything that CI runs
# Others: setup, lint, cuda-compile, format, clean. PYTHON and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Through Python: where a system package provides it, .venv/bin has no script of that name.
CLANG_FORMAT := $(BIN)/python -c 'import clang_format; clang_format.clang_format()'
STAMP := $(VENV)/.installed
# Set up for this machine: the CUDA kernels take minutes, and without a GPU nothing would run them. `make test` compiles
# them wherever there is nvcc. FORCE_CUDA=1 builds them all the same.
export FORCE_CUDA ?= $(if $(shell command -v nvidia-smi),,0)
# Files whose change asks for a new installation or a new build of the op.
SOURCES := setup.py pyproject.toml $(wildcard ops/*.py ops/csrc/*.* ops/csrc/*/*.*)

.PHONY: help setup demo test lint cuda-compile format clean

help:
	@sed -n '1,3s/^# //p' $(MAKEFILE_LIST)

setup: $(STAMP)

# System packages are visible: an installed torch, torchvision and Detectron2 are used, not fetched again.
$(STAMP): $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	@# torch comes first: the op is compiled against the torch that it will run under.
	$(PIP) 'torch>=2.11' 'torchvision>=0.26'
	$(PIP) -e '.[standalone,test,dev]'
	@# lvis asks for opencv-python by name, whose cv2 would replace the headless one and need a display's libraries.
	$(PIP) --no-deps lvis
	@touch $@

demo: $(STAMP)
	$(BIN)/python tools/demo.py

test: $(STAMP) lint cuda-compile
	GOMP_SPINCOUNT=10000 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	PYTHONPATH=. $(BIN)/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(CLANG_FORMAT) --dry-run --Werror $$(git ls-files 'ops/csrc/*.h' 'ops/csrc/*.cpp' 'ops/csrc/*.cu' 'ops/csrc/*.cuh')

cuda-compile: $(STAMP)
	@if command -v nvcc >/dev/null; then $(MAKE) -C ops cuda-compile PYTHON=$(abspath $(BIN)/python); \
	else echo "There is no nvcc here: the CUDA kernels are not compiled."; fi

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(CLANG_FORMAT) -i $$(git ls-files 'ops/csrc/*.h' 'ops/csrc/*.cpp' 'ops/csrc/*.cu' 'ops/csrc/*.cuh')

# Only what building made: data sets and trained models stay.
clean:
	rm -rf $(VENV) build ops/build *.egg-info ops/*.egg-info
	find . -name '*.so' -path '*ms_deform_attn*' -delete
