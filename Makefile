# make demo   the MAML sinusoid experiment, from nothing       make test      the whole suite
# make lint   ruff, mypy, clang-format (make format mends)      make sanitize  the suite under ASan and UBSan
# make bench  metafast beside its rivals                       make tsan      the threaded tests under TSan
# make cuda   compile the CUDA code for every architecture     make clean     remove what these built
#
# Each makes what it needs: a virtual environment in .venv, and the native module in it.

PYTHON ?= python3
VENV   ?= .venv
# Developed and tested against this release; metafast itself accepts torch 2.6 and later.
TORCH  ?= torch==2.13.0
TESTS  ?= tests
SANITIZE_TESTS ?= tests
# The last two are of the CUDA code, which is emulated with a thread of the system for each of the device.
TSAN_TESTS     ?= tests/test_concurrency.py tests/test_sharing.py::test_helpers_change_no_bit tests/test_wrap_around.py tests/test_shim.py \
	tests/test_cuda_emulated.py::test_threads_of_the_system_give_the_same_bits
# One process per core; PARALLEL= for one test after another, as a debugger wants it.
PARALLEL       ?= -n auto

# Where there is no GPU the CPU-only build is the quick one; METAFAST_CUDA=1 compiles both.
export METAFAST_CUDA ?= $(if $(wildcard /dev/nvidiactl),1,0)
# What only this machine will run is compiled for it alone, in half the time. Tests want all that others get.
ISAS = METAFAST_ISAS=$(or $(METAFAST_ISAS),$(if $(wildcard $(VENV)/installed-dev),,native))

BIN     := $(VENV)/bin
# Most of torch's modules are never imported; compiling all of them is half of its installation.
PIP     := $(VENV)/bin/pip install -q --no-compile
NATIVE  := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard cmake/*) $(NATIVE)

.DELETE_ON_ERROR:
.PHONY: demo test lint format layers bench sanitize tsan cuda clean

demo: $(VENV)/installed
	$(BIN)/metafast train sinusoid

test: $(VENV)/installed-dev
	$(BIN)/pytest $(PARALLEL) $(PYTEST_FLAGS) $(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

# The page of what runs natively, from the lists of layers, primitives and losses.
layers: $(VENV)/installed-dev
	$(BIN)/python -m metafast.model.listing > docs/layers.md

format: $(VENV)/installed-dev
	$(BIN)/ruff check -q --fix .
	$(BIN)/ruff format -q .
	$(BIN)/clang-format -i $(NATIVE)

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

# In the place of the other builds, whose CPU kernels are these.
cuda: $(VENV)/installed-dev
	@mkdir -p build/cuda; find build -name '*.cu.o' -delete # what is not compiled is not told of
	METAFAST_CUDA=1 FORCE_CUDA=1 $(BIN)/python setup.py -q build --build-lib build/cuda/lib \
		> build/cuda/build.log 2>&1 || (cat build/cuda/build.log; false)
	$(BIN)/python .ci/check_ptxas.py build/cuda/build.log

clean:
	rm -rf build dist $(VENV) *.egg-info metafast/_native*.so metafast/_emulated*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# ---- The environment -------------------------------------------------------------------------------------------------
# torch comes first and alone, so that nothing that depends on it can choose another build of it. The build's own
# requirements follow, so that builds need no isolation and compile only what changed.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" \
		> $(VENV)/build-requires.txt
	$(PIP) -r $(VENV)/build-requires.txt
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(ISAS) $(PIP) --no-build-isolation -e '.[cli]'
	touch $@

$(VENV)/installed-bench: $(VENV)/torch $(SOURCES)
	$(ISAS) $(PIP) --no-build-isolation -e '.[bench]'
	touch $(VENV)/installed $@

$(VENV)/installed-dev: $(VENV)/torch $(SOURCES)
	METAFAST_EMULATE=1 $(PIP) --no-build-isolation -e '.[dev]'
	touch $(VENV)/installed $@

# ---- Sanitizers: the package once more, its native module instrumented, in build/<sanitizer>/lib -----------------------
# Python itself is not instrumented, so the runtime is preloaded (and libstdc++, or the first C++ exception fails).
runtime = $(shell $(CXX) -print-file-name=$(1))
build_sanitized = METAFAST_CUDA=0 METAFAST_EMULATE=1 $(BIN)/python setup.py -q build --build-base build/$(1) --build-lib build/$(1)/lib

sanitize: $(VENV)/installed-dev
	METAFAST_SANITIZE=address,undefined $(call build_sanitized,address)
	PYTHONPATH=build/address/lib LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -P -m pytest $(PARALLEL) $(PYTEST_FLAGS) $(SANITIZE_TESTS)

# Without address randomisation, which this runtime does not survive on recent kernels.
tsan: $(VENV)/installed-dev
	METAFAST_SANITIZE=thread $(call build_sanitized,thread)
	PYTHONPATH=build/thread/lib LD_PRELOAD="$(call runtime,libtsan.so) $(call runtime,libstdc++.so)" \
	TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:die_after_fork=0 \
		setarch -R $(BIN)/python -P -m pytest $(PYTEST_FLAGS) $(TSAN_TESTS)
