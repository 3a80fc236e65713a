# make demo   build, then solve the shipped problems with the shipped models
# make test   build, lint, type-check, run the tests
# make bench  the CPU benchmarks (an hour on two cores; see bench/README.md for parts of it)
# make frontier  searches on the zoo, and docs/frontier.md from them (an hour; goes on where it was
#                interrupted)
# make wheel  a wheel in dist/
#
# Everything is installed into .venv. TORCH names the torch to install there; the default is a
# version whose CPU build is published as such. To use a torch you already have:
#   make test VENV=/path/to/your/venv TORCH=
# TEST_PROCESSES test files run side by side.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PY := $(VENV)/bin/python
TEST_PROCESSES ?= 2
BUILD_TOOLS := setuptools>=77 wheel ninja cmake>=3.24 pybind11>=2.13

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') CMakeLists.txt setup.py

.PHONY: demo test lint check bench frontier wheel clean

demo: $(VENV)/.built
	$(VENV)/bin/ttc demo

test: lint check

lint: $(VENV)/.built
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Idle OpenMP threads sleep at once: two test processes share the cores.
check: $(VENV)/.built
	GOMP_SPINCOUNT=0 $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --durations=25

bench: $(VENV)/.built
	for dtype in bf16 fp32; do \
	  $(PY) -m bench.tree_attention --dtype $$dtype --trees all \
	    --json bench/results/tree_attention_cpu_$$dtype.json || exit 1; done
	$(PY) -m bench.replay --dtype bf16 --json bench/results/replay_cpu_bf16.json
	$(PY) -m bench.generate --device cpu --json bench/results/generate_cpu_bf16.json
	$(PY) -m bench.step_score --json bench/results/step_score_cpu_bf16.json

frontier: $(VENV)/.built
	$(PY) -m bench.frontier

wheel: $(VENV)/.built
	$(PY) -m pip wheel . --no-build-isolation --no-deps -w dist

$(VENV)/.ready: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q $(foreach t,$(BUILD_TOOLS) $(TORCH),"$(t)")
	touch $@

$(VENV)/.built: $(VENV)/.ready $(SOURCES)
	$(PY) -m pip install -q --no-build-isolation -e ".[hf,viz,dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info ttc_kernels/*.so $(VENV)/.built
