# `make` alone lists the targets. PYTHON chooses the interpreter that makes the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

# What runs beside each other in `make test`. Each has one thread: more would wait for each other.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 8))')
TEST := $(RUN) OMP_NUM_THREADS=1

# The main job: what `make report` trains before it builds the pages.
MAIN_SWEEP ?= chroma

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup main report serve test docs readme bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

# git merges notebooks cell by cell and Jupyter saves them clean. nbdev writes Jupyter's part into the home folder; here it belongs to .venv.
HOOKS = test ! -d .git || { export PATH="$(CURDIR)/$(BIN):$$PATH"; HOME="$(CURDIR)/$(VENV)" nbdev_install_hooks && \
	mkdir -p $(VENV)/etc/jupyter && cp $(VENV)/.jupyter/jupyter_*_config.py $(VENV)/etc/jupyter/; }

setup: $(READY)  ## make .venv, install the package with its development tools and git's hooks for notebooks

$(READY): settings.ini pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,10) and "mils needs Python 3.10 or newer, this is "+sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off "pip>=23"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[dev]"
	@$(HOOKS) || echo "the hooks for notebooks were not installed; all else works without them" >&2
	@touch $@

main: $(READY)  ## run the main job on the embedded data; what is done is not done again
	$(RUN) mils sweep $(MAIN_SWEEP)
	$(RUN) mils results $(MAIN_SWEEP)

report: main  ## run the main job, build the pages and print the path of the first one
	$(RUN) mils report

serve: $(READY)  ## build the pages from stored outputs and show them at a port of this machine
	$(RUN) mils report --stored --serve

test: $(READY)  ## run every notebook, then pytest, on all cores
	$(TEST) nbdev_test --n_workers $(JOBS)
	$(TEST) pytest -n $(JOBS) --dist loadgroup

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
