# make demo: install, build, and watch a model decode with its own temperature and top-p.
# make test: install, build, run the tests.  make help: the rest.

PYTHON ?= python3
# Exactly this torch instead of a CPU build: make demo TORCH='torch==2.13.0'
TORCH ?=
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
CXX_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help build demo test test-fast check-format check-layers check-package check-cuda check-native \
        check-demo check clean

help:
	@echo "make demo           install, build, run the demo (writes autodeco-demo/demo.html)"
	@echo "make test           install, build, run all tests"
	@echo "make test-fast      the tests that take less than three seconds each"
	@echo "make check          every slower gate: format, layers, native tests, package, CUDA, a short demo"
	@echo "make build          install and build only"
	@echo "make clean          remove what was built, and .venv"

# --- environment: one stamp per step, so that a second run is quick --------------------------------
.venv/torch.stamp: tools/install_torch.py
	@echo "creating .venv and installing torch (a minute or two)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@$(PIP) install --upgrade pip
	@.venv/bin/python tools/install_torch.py $(if $(TORCH),'$(TORCH)')
	@touch $@

.venv/tools.stamp: .venv/torch.stamp pyproject.toml tools/requirements.py
	@echo "installing the other packages (about a minute)"
	@$(PIP) install $$(.venv/bin/python tools/requirements.py dev demo bench)
	@touch $@

.venv/build.stamp: .venv/tools.stamp setup.py CMakeLists.txt $(CXX_SOURCES)
	@echo "building the extension (about half a minute)"
	@$(PIP) install --no-build-isolation --no-deps --editable . 2>build.log || { cat build.log; exit 1; }
	@rm build.log
	@.venv/bin/python -c "import autodeco_ext as a; print('built: CPU', a.cpu_isa(), '| CUDA half', a.build_info()['cuda_decision'])"
	@touch $@

build: .venv/build.stamp

demo: .venv/build.stamp
	.venv/bin/autodeco demo

test: .venv/build.stamp
	.venv/bin/python -m pytest

test-fast: .venv/build.stamp
	.venv/bin/python -m pytest -m "not slow"

# --- slower gates ----------------------------------------------------------------------------------
check: check-format check-layers check-native check-package check-cuda check-demo

check-format: .venv/tools.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(CXX_SOURCES)

check-layers: .venv/build.stamp
	.venv/bin/python tools/check_layers.py
	tools/check_isa_symbols.sh

check-native: .venv/tools.stamp
	tools/check_native.sh

check-package: .venv/build.stamp
	tools/check_package.sh

check-cuda: .venv/build.stamp
	tools/check_cuda.sh

# The real model and problems, far too few of them to say anything about the heads.
DEMO := build/check-demo
check-demo: .venv/build.stamp
	rm -rf $(DEMO)
	.venv/bin/autodeco demo --output $(DEMO) --train-problems 24 --eval-problems 8 --samples 2 --epochs 1
	test -s $(DEMO)/demo.html
	test -s $(DEMO)/heads/model.safetensors
	.venv/bin/autodeco generate --model $(DEMO)/heads --prompt "How many legs do three cats have?" \
	    --max-new-tokens 8 --seed 0 --trace $(DEMO)/trace.html

clean:
	rm -rf .venv build autodeco_ext/_C*.so *.egg-info
