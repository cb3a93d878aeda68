# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# Threads of each test process
THREADS ?= 1
VENV := .venv
INSTALLED := $(VENV)/installed
DEVELOPMENT := $(VENV)/installed-dev
DATA := ../shared/data
ifneq ($(wildcard $(DATA)),)
export WHOLEGPT_DATA ?= $(abspath $(DATA))
endif

# Processes of the tests
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

PEERS := $(if $(NANOGPT),--nanogpt $(NANOGPT))

.PHONY: demo test tests test-slow test-avx2 golden lint bench clean

demo: $(INSTALLED)  ## train a small GPT on the text inside your Python, about three minutes
	$(VENV)/bin/wholegpt train --recipe demo --out runs/demo --overwrite $(DEMO_OPTIONS)

test: $(DEVELOPMENT)  ## lint and types beside the tests that are not slow
	$(MAKE) -j 2 lint tests

tests: $(DEVELOPMENT)  ## the tests that are not slow; two processes of one thread take half as long as one of two
	OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/pytest $(PARALLEL) -m "not slow and not timed"

test-slow: $(DEVELOPMENT)  ## the slow tests, then those that measure time, one by one
	OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/pytest $(PARALLEL) -m "slow and not timed"
	$(VENV)/bin/pytest -m timed

test-avx2: $(DEVELOPMENT)  ## the tests of models again, as on a processor without AVX-512, bfloat16 and AMX
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/pytest $(PARALLEL) -m "not timed" \
		tests/model tests/parity tests/training/test_parts.py tests/stages/test_classification.py

golden: $(DEVELOPMENT)  ## write the figures of the golden runs anew, where they change on purpose
	$(VENV)/bin/python -m tests.golden.write

lint: $(DEVELOPMENT)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: $(DEVELOPMENT)  ## long measurements; see benchmarks/README.md
	$(VENV)/bin/python -m benchmarks.training_step $(PEERS) --float32
	$(VENV)/bin/python -m benchmarks.training_step $(PEERS) --dropout 0.1
	$(VENV)/bin/python -m benchmarks.training_step --model gpt2 $(if $(TRANSFORMERS),--transformers)
	$(VENV)/bin/python -m benchmarks.shakespeare $(PEERS) --recipe shakespeare-3min
	$(VENV)/bin/python -m benchmarks.shakespeare --recipe shakespeare
	$(VENV)/bin/python -m benchmarks.time_budget tinyshakespeare
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.evaluation)
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.tokenizing)
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.near_duplicates)
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.preparation)
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.control)
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.transfer --data $(WHOLEGPT_DATA))
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.instructions --data $(WHOLEGPT_DATA))
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.few_shot --data $(WHOLEGPT_DATA))
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.generation)
	$(if $(WHOLEGPT_DATA),$(VENV)/bin/python -m benchmarks.architectures --data $(WHOLEGPT_DATA))
	$(VENV)/bin/python -m benchmarks.markov
	$(VENV)/bin/python -m benchmarks.ladder
	$(VENV)/bin/python -m benchmarks.interop
	$(if $(LLAMA_CPP),$(VENV)/bin/pip install --quiet llama-cpp-python && $(VENV)/bin/python -m benchmarks.interop --gguf $(LLAMA_CPP))

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(DEVELOPMENT): $(INSTALLED)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
