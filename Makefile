# Every target makes .venv first and installs into it only when pyproject.toml has changed.
# Without make (Windows), CONTRIBUTING.md has the same commands.

PYTHON ?= python3
ARGS ?=
EXTRAS ?= dev

venv := .venv
python := $(venv)/bin/python
stamp := $(venv)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test train evaluate evidence clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile
	@echo 'ARGS="..." is handed on to the command, PYTHON=python3.12 chooses the interpreter of a new $(venv).'

install: $(stamp)  ## make .venv, or add EXTRAS to it (the other targets make it by themselves)
	@$(python) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'

demo: $(stamp)  ## draw two chains of edits into output/demo
	@$(python) -m lazydiff demo $(ARGS)

test: $(stamp)  ## lint, type-check and test
	@$(python) -m ruff check
	@$(python) -m mypy
	@$(python) -m pytest -n 2 --dist loadfile $(ARGS)

train: $(stamp)  ## train the laboratory's small model, or ARGS="--config FILE"
	@$(python) -m lazydiff train $(ARGS)

evaluate: $(stamp)  ## measure the model that ships on held-out pictures
	@$(python) -m lazydiff evaluate --output output/evaluation $(ARGS)

evidence: $(stamp)  ## measure all that is claimed of the papers, in hours (ARGS=--quick: minutes); goes on where it was stopped
	@$(python) -m benchmarks.evidence --output output/evidence $(ARGS)

clean:  ## remove caches and build products, keep .venv
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./$(venv) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# torch goes first and pinned: left to a dependency, pip takes the newest build with gigabytes of CUDA.
$(stamp): pyproject.toml
	@echo "Installing into $(venv) (a few minutes the first time)"
	@$(PYTHON) -m venv $(venv)
	@$(python) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(python) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
