# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed
DATA := ../shared/data
ifneq ($(wildcard $(DATA)),)
export WHOLEGPT_DATA ?= $(abspath $(DATA))
endif

.PHONY: demo test lint bench clean

demo: $(INSTALLED)  ## train a small GPT on the text inside your Python, about three minutes
	$(VENV)/bin/wholegpt train --recipe demo --out runs/demo --overwrite $(DEMO_OPTIONS)

test: lint  ## lint, types, tests
	$(VENV)/bin/pytest

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: $(INSTALLED)  ## long measurements; see benchmarks/README.md
	$(VENV)/bin/python benchmarks/shakespeare.py $(BENCH_OPTIONS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
