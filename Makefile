# make demo   train a small detector; print its COCO table and draw its detections
# make test   run everything that CI runs
# Others: setup, lint, cuda-compile, format, clean. PYTHON and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Called through Python, because .venv/bin has no script of a system package.
CLANG_FORMAT := $(BIN)/python -c 'import clang_format; clang_format.clang_format()'
STAMP := $(VENV)/.installed
# The CUDA kernels, which take minutes, are built if there is a GPU, or with FORCE_CUDA=1. `make test` compiles them if
# there is nvcc.
export FORCE_CUDA ?= $(if $(shell command -v nvidia-smi),,0)
# Files whose changes need a new installation or build of the op.
SOURCES := setup.py pyproject.toml $(wildcard ops/*.py ops/csrc/*.* ops/csrc/*/*.*)

.PHONY: help setup demo test lint cuda-compile format clean

help:
	@sed -n '1,3s/^# //p' $(MAKEFILE_LIST)

setup: $(STAMP)

# System packages are visible, so that an installed torch, torchvision and Detectron2 are used.
$(STAMP): $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	@# torch is installed first, because the op is compiled against it.
	$(PIP) 'torch>=2.11' 'torchvision>=0.26'
	$(PIP) -e '.[standalone,test,dev]'
	@# lvis depends on opencv-python, whose cv2 would replace the headless one and needs display libraries.
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
	else echo "nvcc was not found: the CUDA kernels are not compiled."; fi

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(CLANG_FORMAT) -i $$(git ls-files 'ops/csrc/*.h' 'ops/csrc/*.cpp' 'ops/csrc/*.cu' 'ops/csrc/*.cuh')

# Removes build products; data sets and trained models stay.
clean:
	rm -rf $(VENV) build ops/build *.egg-info ops/*.egg-info
	find . -name '*.so' -path '*ms_deform_attn*' -delete
