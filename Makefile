# `make` alone lists the targets. PYTHON chooses the interpreter that makes the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

# The main job: what `make report` trains before it builds the pages.
MAIN_SWEEP ?= chroma

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup main report test docs readme bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make .venv and install the package with its development tools

$(READY): settings.ini pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10) and "mils needs Python 3.10 or newer, this is "+sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off "pip>=23"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[dev]"
	@touch $@

main: $(READY)  ## run the main job on the embedded data; what is done is not done again
	$(RUN) mils sweep $(MAIN_SWEEP)
	$(RUN) mils results $(MAIN_SWEEP)

report: main  ## run the main job, build the pages and print the path of the first one
	$(RUN) mils report

test: $(READY)  ## run every notebook, then pytest
	$(RUN) nbdev_test
	$(RUN) pytest

docs: $(READY)  ## build the site with Quarto, which must be installed
	@command -v quarto >/dev/null || { echo "Quarto is not on the PATH; 'make report' renders the pages without it" >&2; exit 1; }
	$(RUN) mils report --stored

readme: $(READY)  ## write README.md from nbs/index.ipynb
	$(RUN) python -c "from mils.site import build_readme; build_readme()"

bench: $(READY)  ## run the speed measurements, one after the other
	@for b in benchmarks/*.py; do echo "== $$b"; $(RUN) python "$$b" || exit 1; done

clean:  ## remove built pages and caches; keep .venv, runs and results
	rm -rf _docs _proc build dist .pytest_cache .hypothesis
	find mils nbs tests benchmarks -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
