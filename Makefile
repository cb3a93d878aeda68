# On a new machine: `make demo` installs and trains a demo, `make test` runs all checks.
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

PEERS := $(if $(NANOGPT),--nanogpt $(NANOGPT))

.PHONY: demo test test-avx2 golden lint bench clean

demo: $(INSTALLED)  ## install, and train a small GPT on Python's own documentation: about three minutes
	$(VENV)/bin/wholegpt train --recipe demo --out runs/demo --overwrite $(DEMO_OPTIONS)

test: lint  ## linter, type checker, tests (single-threaded processes in parallel: see docs/decisions.md)
	OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/pytest -n auto --maxprocesses 4 --dist worksteal -m "not timed"
	$(VENV)/bin/pytest -m timed

test-avx2: $(DEVELOPMENT)  ## tests of models, as on a processor without AVX-512, bfloat16 and AMX
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/pytest -n auto --maxprocesses 4 -m "not timed" \
		tests/model tests/parity tests/training/test_parts.py tests/stages/test_classification.py

golden: $(DEVELOPMENT)  ## update the expected values of the golden runs, after an intended change
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
