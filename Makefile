# make demo     the whole pipeline on a CPU-sized model; the report is in outputs/demo
# make test     every test, in as many processes as there are cores
# make lint     style, layers, types and spelling: ruff, import-linter, mypy, codespell
# make bench    the benchmarks in scripts/bench
# make docs     the documentation as a site in site/; a link that leads nowhere is an error
# make clean    remove build outputs, caches and outputs/demo; the environment stays
#
# Each makes the environment on its own when it is missing or older than pyproject.toml.
# VENV=/another/place  where the environment is    PYTHON=python3.12  what makes it
# ARGS=...             more for make test: "-m 'not slow'", "-k head -x", tests/configs     WORKERS=1  its processes

VENV ?= .venv
PYTHON ?= python3
ARGS ?=
WORKERS ?= logical

BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# LLaMA-Factory's launcher calls a bare `torchrun`, and tests call `llamafactory-cli`: both must be this environment's.
RUN := PATH="$(BIN):$$PATH"

.DELETE_ON_ERROR:
.PHONY: demo test lint bench docs clean

demo: $(STAMP)
	$(RUN) $(BIN)/ra-hmd demo --output outputs/demo

test: $(STAMP)
	@# A process runs whole files, in the order of tests/conftest.py: the longest first.
	OMP_NUM_THREADS=1 $(RUN) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

bench: $(STAMP)
	set -e; for script in scripts/bench/*.py; do echo "== $$script"; $(RUN) $(BIN)/python "$$script"; done

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "The site is in site/; open site/index.html."

clean:
	rm -rf build dist site outputs/demo .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The start-up files of the plugin are copied into the environment, so a change of theirs needs an installation too.
$(STAMP): pyproject.toml $(wildcard llamafactory_ext/llamafactory_ext.pth llamafactory_ext/llamafactory_ext.start)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "ra-hmd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@
