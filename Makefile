# make train | test | check | fix | bench | gpu | faults | identical
#
# Each makes .venv from the requirements when it is missing or older than they are.
# `make PYTHON=python3 ...` uses that interpreter as it is and installs nothing.

.PHONY: train test check fix bench gpu faults identical
.DELETE_ON_ERROR:

ifeq ($(origin PYTHON),command line)
RUN_ENV :=
DEV_ENV :=
else
PYTHON  := .venv/bin/python
WORKERS := -n auto --dist worksteal
RUN_ENV := .venv/.run
DEV_ENV := .venv/.dev
endif

RUN := runs/tiny_hermite
RESULTS := runs/bench

train: $(RUN_ENV)
	$(PYTHON) -m data.prepare pystdlib
	$(PYTHON) train.py config/tiny_hermite.py
	@test -s $(RUN)/sample.txt || $(PYTHON) sample.py $(RUN) --prompt "def " --max_new_tokens 400 > $(RUN)/sample.txt
	@echo "--- a sample, also in $(RUN)/sample.txt:"; cat $(RUN)/sample.txt

test: $(DEV_ENV)
	$(PYTHON) -m pytest $(WORKERS)

check: $(DEV_ENV)
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

fix: $(DEV_ENV)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: $(DEV_ENV)
	$(PYTHON) -m bench.activations --json $(RESULTS)/activations.json --chart $(RESULTS)/activations.png
	$(PYTHON) -m bench.step --json $(RESULTS)/step.json
	$(PYTHON) -m bench.generate --json $(RESULTS)/generate.json

gpu: $(DEV_ENV)
	$(PYTHON) -m bench.gpu

faults: $(DEV_ENV)
	$(PYTHON) -m pytest tests/faults -m fault --faults-json results/faults/faults.json

BASE := HEAD
identical: $(DEV_ENV)
	$(PYTHON) -m tests.identical $(BASE)

.venv/bin/python:
	@python3 -c "import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f'make: python3 is {v[0]}.{v[1]}, 3.11 is the oldest that works; type: python3.11 -m venv .venv, then make again')"
	python3 -m venv .venv

.venv/.run: requirements.txt | .venv/bin/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt requirements.txt | .venv/bin/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ .venv/.run
