# make setup | demo | demo-distributed | test | style | docs | wheel | bench | bench-full | bench-native | quality |
# quality-quick | cuda-report | gpu-check | sanitize | torture.  Every target but gpu-check sets up what it needs in
# .venv.
#
# CUDA=on | off: whether CUDA kernels are built. Where nothing is said, they are built for the GPUs of
# this machine, if it has any. TORCH_CUDA_ARCH_LIST names other architectures.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
CUDA ?= $(if $(shell nvidia-smi -L 2>/dev/null),auto,off)
# For the tests of object stores. In one step with all else, pip would try their versions for minutes.
OBJECT_STORES := aiohttp s3fs "moto[server]>=5" "gcsfs>=2024.2" "gcp-storage-emulator>=2026.7" pyftpdlib
BIN := .venv/bin
SETUP := .venv/.setup-done-cuda-$(CUDA)
SOURCES := $(foreach kind,cpp h cu cuh,$(wildcard csrc/*.$(kind) csrc/*/*.$(kind) csrc/*/*/*.$(kind)))
NATIVE := $(SOURCES) $(wildcard cmake/*)
FORMATTED := 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/csrc/*.h' 'tests/csrc/*.cpp'
CXX ?= c++

.PHONY: setup demo demo-distributed test test-native style format docs wheel bench bench-full bench-native quality \
  quality-quick cuda-report gpu-check sanitize torture clean

setup: $(SETUP)

# Builds against the torch of .venv; rebuilt when the native sources or the build files change.
$(SETUP): pyproject.toml setup.py CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" wheel cmake ninja
	rm -f .venv/.setup-done-*
	ADAPRUNER_CUDA=$(CUDA) $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	$(BIN)/python -m pip install --quiet $(OBJECT_STORES)
	touch $@

demo: setup
	$(BIN)/python examples/digits.py

# Two CPU processes that train and prune together.
demo-distributed: setup
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node=2 examples/distributed.py

test: setup test-native
	$(BIN)/python -m pytest -n 2

# The formulas of csrc/math/ and the kernels of csrc/cuda/ (in an emulator) need neither torch nor Python.
test-native:
	$(MAKE) -j 2 $(patsubst tests/csrc/%.cpp,build/tests/%.passed,$(wildcard tests/csrc/test_*.cpp))

build/tests/%.passed: tests/csrc/%.cpp $(SOURCES) $(wildcard tests/csrc/*.h tests/csrc/*/*.h)
	mkdir -p build/tests
	$(CXX) -std=c++20 -O1 -g -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off -Itests/csrc \
	  -fsanitize=address,undefined -fno-sanitize-recover=all $< -o $(@:.passed=)
	$(@:.passed=)
	touch $@

# Registers, memory and byte-wide loads of every CUDA kernel that was built; fails where hot ones spill or
# read numbers byte by byte.
cuda-report: setup
	$(BIN)/python benchmarks/gpu/kernel_report.py

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files $(FORMATTED))
	$(BIN)/mypy adapruner

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files $(FORMATTED))

# The site, in build/site; a broken link fails. The package is read, not imported.
docs: setup
	$(BIN)/mkdocs build

# A manylinux wheel for the torch of .venv, and a run in a fresh venv. docs/releasing.md has more.
wheel: setup
	rm -rf build/wheels
	PATH="$(abspath $(BIN)):$$PATH" ADAPRUNER_CUDA=$(CUDA) \
	  $(BIN)/python -m build --wheel --no-isolation --outdir build/wheels/raw
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir build/wheels \
	  $(foreach name,torch c10 gomp cuda cublas nv,--exclude 'lib$(name)*') build/wheels/raw/*.whl
	$(PYTHON) -m venv build/wheels/venv
	build/wheels/venv/bin/python -m pip install --quiet $(TORCH) build/wheels/*.whl
	cd build/wheels && venv/bin/python ../../tests/support/pruned_by_a_wheel.py

# A few minutes; compare with another run by benchmarks/compare_results.py.
bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only --results build/benchmarks

# Everything at full size, some 13 GB of memory; redraws the tables and pictures of the documents.
bench-full: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only --full --results benchmarks/results
	$(BIN)/python -m benchmarks.report

# On a machine with a GPU, with the python3 (or PYTHON=) and what is installed there. SECONDS=N bounds it,
# STAGES=smoke,tests,suites,step,sanitizers,quality chooses stages, ONLY=topk,gate operators, test files and suites
# with such names. RESULTS=DIR says where results go, BUILD=no takes the library that is there, DEVICE=cpu rehearses it.
gpu-check:
	$(PYTHON) -m benchmarks.gpu.check $(if $(SECONDS),--seconds $(SECONDS)) $(if $(STAGES),--stages $(STAGES)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(RESULTS),--results $(RESULTS)) $(if $(BUILD),--build $(BUILD)) \
	  $(if $(DEVICE),--device $(DEVICE))

# The formulas of csrc/math/ alone.
bench-native:
	mkdir -p build/benchmarks
	$(CXX) -std=c++20 -O3 -march=native -Wall -Wextra -ffp-contract=off \
	  benchmarks/csrc/benchmark_math.cpp -o build/benchmarks/benchmark_math
	build/benchmarks/benchmark_math

# Makes the rows that benchmarks/results/quality lacks (hours; stop it when you like), and redraws
# tables and pictures. CIFAR-10 is looked for in $ADAPRUNER_DATA/cifar10.
quality: setup
	$(BIN)/python -m benchmarks.quality.run digits letter short tails joint-more cifar cifar-more \
	  cifar-dirt human held-back traffic long transfer cifar-large --workers 2
	$(BIN)/python -m benchmarks.quality.parts --workers 2
	$(BIN)/python -m benchmarks.quality.run cost --results benchmarks/results/quality/cost
	$(BIN)/python -m benchmarks.quality.kept
	$(BIN)/python -m benchmarks.quality.report

# A minute, on digits, into build/quality.
quality-quick: setup
	$(BIN)/python -m benchmarks.quality.run quick --results build/quality/results

# The package in build/sanitize, with a native library under AddressSanitizer and UndefinedBehaviorSanitizer, and
# random arguments for its operators, for SECONDS=N.
sanitize: setup build/sanitize/.built
	$(BIN)/python -m torture.sanitize $(if $(SECONDS),--seconds $(SECONDS))

build/sanitize/.built: setup.py CMakeLists.txt $(NATIVE) $(wildcard adapruner/*.py adapruner/*/*.py adapruner/*/*/*.py)
	PATH="$(CURDIR)/$(BIN):$$PATH" ADAPRUNER_CUDA=off ADAPRUNER_SANITIZE=address,undefined $(BIN)/python setup.py --quiet \
	  build_py --build-lib build/sanitize build_ext --build-lib build/sanitize --build-temp build/sanitize-objects
	touch $@

# Kills, full disks, damaged and hostile files, long runs: some ten minutes, or HOURS=N. ONLY=kill,fuzz chooses kinds.
# The results go to build/torture/torture.json, or OUT=FILE. It fails if it finds anything.
torture: setup build/sanitize/.built
	$(BIN)/python -m torture $(if $(HOURS),--hours $(HOURS)) $(if $(ONLY),--only $(ONLY)) $(if $(OUT),--out $(OUT))

clean:
	rm -rf build dist .venv *.egg-info adapruner/_C*.so
