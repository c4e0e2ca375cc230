# Every target makes the environment it needs; a second call reuses what stands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILERS := .cache/compilers
# Tests compile thousands of small programs and run each a few times: faster without XLA's optimizer and its compile threads.
UNOPTIMIZED := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1
WORKDIR ?= runs/demo
METHOD ?= sface
HAS_JAX := import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ("jax", "flax", "optax"))))
TYPED := $(addprefix jaxface/,losses metrics layers boxes inference)
# Bytecode is kept even where the environment forbids it: nothing is compiled at installation, and JAX from its sources takes
# every process many seconds.
export PYTHONDONTWRITEBYTECODE :=
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.DEFAULT_GOAL := help
.PHONY: help venv demo real-faces test test-times test-slow test-aot test-accelerator lint format bench bench-kernels gpu-report tpu-aot reproduce docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

venv: $(STAMP)  ## the environment alone, in .venv

$(STAMP): setup.py constraints.txt pyproject.toml .python-version
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 12) else f"Python {v[0]}.{v[1]} is too old: jaxface needs 3.12 or newer; set PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
		--config-settings editable_mode=compat --editable '.[test]'
	@touch $@

demo: $(STAMP)  ## train SFace on rendered faces and verify on people it never saw (WORKDIR=runs/demo)
	$(BIN)/python -m experiments.launch sface --workdir $(WORKDIR) $(ARGS)

real-faces: $(STAMP)  ## the demo's network on photographs: FACES=folder of one sub-folder per person
	@test -n "$(FACES)" || { echo 'error: FACES: give a folder of photographs, one sub-folder per person' >&2; exit 2; }
	$(BIN)/python -m experiments.programs.real_faces --run $(WORKDIR) --faces $(FACES) $(ARGS)

test: $(STAMP)  ## the fast tests
	XLA_FLAGS="$(UNOPTIMIZED) $$XLA_FLAGS" \
		$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not aot and not accelerator" $(ARGS)

test-times:  ## the fast tests, then CPU-seconds per test file
	$(MAKE) test ARGS="--cpu-times --durations=40 $(ARGS)"

# The folders with the longest tests come first, so that no core waits for the other at the end.
test-slow: $(STAMP)  ## the slow tests
	XLA_FLAGS="$(UNOPTIMIZED) $$XLA_FLAGS" \
		$(BIN)/python -m pytest -q -n auto --dist worksteal -m "slow and not aot and not accelerator" \
		tests/training tests/experiments tests $(ARGS)

# The TPU and CUDA compilers, apart from the environment: with a plugin in it JAX would look for its device at every start.
$(COMPILERS)/.installed: $(STAMP)
	rm -rf $(COMPILERS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --target $(COMPILERS) \
		libtpu jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-cuda-nvdisasm
	@touch $@

test-aot: $(COMPILERS)/.installed  ## compile the kernels for TPUs v4 to v6e and Hopper GPUs, without either
	PYTHONPATH=$(COMPILERS) $(BIN)/python -m pytest -q -n auto --dist load -m aot $(ARGS)

test-accelerator:  ## the kernels against the reference on this machine's GPU or TPU; without one all tests skip themselves
	@if $(PYTHON) -c '$(HAS_JAX)'; then python=$(PYTHON); else $(MAKE) --no-print-directory venv && python=$(BIN)/python; fi; \
		$$python -m pytest -q -m accelerator tests/accelerator $(ARGS)

lint: $(STAMP)  ## ruff: formatting and lint; ty: types of what people call
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/ty check --quiet --python $(VENV) $(TYPED)

format: $(STAMP)  ## let ruff format the code
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

bench: $(STAMP)  ## all benchmarks on this device, into benchmarks/results/<device>/
	$(BIN)/python -m benchmarks.renderer
	$(BIN)/python -m benchmarks.input_pipeline
	$(BIN)/python -m benchmarks.record_reading
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.boxes
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.gallery
	$(BIN)/python -m benchmarks.loop_overhead
	$(BIN)/python -m benchmarks.faults
	$(MAKE) bench-kernels

bench-kernels: $(STAMP)  ## the kernels alone against their peers
	$(BIN)/python -m benchmarks.binary_conv $(ARGS)
	$(BIN)/python -m benchmarks.dilated_conv $(ARGS)
	$(BIN)/python -m benchmarks.quantized_attention $(ARGS)
	$(BIN)/python -m benchmarks.margin_softmax $(ARGS)

# On an image with a GPU and no package index the interpreter that holds jax does; elsewhere the environment is made.
gpu-report:  ## on a GPU, in under 9 minutes: are the kernels right, what do they bring; ARGS="--out DIR", "--dry-run", WHEELS=DIR
	@if $(PYTHON) -c '$(HAS_JAX)'; then python=$(PYTHON); else $(MAKE) --no-print-directory venv && python=$(BIN)/python; fi; \
		$$python -m benchmarks.gpu_report $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

tpu-aot: $(COMPILERS)/.installed  ## compile the steps of 10^8 and 10^9 identities for TPU v5p without a TPU (10 min), print bytes per chip; ARGS=--vit for ViT-L, --intern for INTERN's pod
	PYTHONPATH=$(COMPILERS) $(BIN)/python -m benchmarks.tpu_aot $(ARGS)

reproduce: $(STAMP)  ## METHOD=sface against its baselines over seeds
	$(BIN)/python -m experiments.reproduce $(METHOD) $(ARGS)

docs: $(STAMP)  ## build the documentation as a site, strictly, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove the environment and the caches, keep the runs
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis *.egg-info
