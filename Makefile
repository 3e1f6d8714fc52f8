# Two commands set everything up on a machine with Python 3.11, git and make:
#   make repro    the environment, then the pipeline on the built-in dataset
#   make test     the tests

SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
# Stages call `python`: it must be the environment's.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Many containers set this, and then each process compiles anew the thousands of modules that it imports.
export PYTHONDONTWRITEBYTECODE :=
INSTALLED := $(VENV)/.installed

.PHONY: repro test verify lint format schema install dependencies plots docs bench clean

# Until a team has committed its own dvc.lock, what this machine writes there is no change to the project.
repro: $(INSTALLED)
	git show HEAD:dvc.lock 2> /dev/null | grep -q '^stages:' || \
	    git update-index --skip-worktree dvc.lock 2> /dev/null || true
	dvc repro
	@echo && cat data/report/report.md

# Three processes for two cores, as tests wait for servers and commands; each takes file by file.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Published studies whose images are on this machine: the drawn ones are, LAQ_CIFAR100 names a copy of CIFAR-100.
verify: $(INSTALLED)
	laq verify --at-hand $(patsubst %/provenance.json,%,$(wildcard results/*/provenance.json))

lint: $(INSTALLED)
	ruff check
	ruff format --check
	mypy

format: $(INSTALLED)
	ruff check --fix
	ruff format

# What editors check params.yaml by, from the sections' classes.
schema: $(INSTALLED)
	python -m laq.params > params.schema.json

install: $(INSTALLED)

# requirements.txt pins every package; a constraint, so that what a platform lacks is not asked for. uv, where it
# is there, downloads and unpacks several at once; pip always works. Neither compiles the 20,000 modules ahead,
# which takes 100 seconds of a core: few are ever imported, and Python compiles these when they are.
PACKAGES := --constraint requirements.txt --editable '.[dev]'
$(INSTALLED): pyproject.toml requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	uv pip install --quiet --python $(VENV)/bin/python $(PACKAGES) 2> /dev/null || \
	    $(VENV)/bin/pip install --quiet --no-compile $(PACKAGES)
	# So that `mlflow run .` needs no pyenv.
	$(VENV)/bin/python -m laq.environment
	$(VENV)/bin/python tools/plots.py
	touch $@

# After a change of imports: the files of `laq` that each stage depends on, in dvc.yaml.
dependencies: $(INSTALLED)
	$(VENV)/bin/python tools/dependencies.py

# After a change of charts: the templates of `dvc plots`, and the page around them in the environment's folder.
plots: $(INSTALLED)
	$(VENV)/bin/python tools/plots.py

# The site in site/, which asks no other host for anything; a warning is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# Speed beside Brevitas and the textbook, in an environment of its own; never part of the tests.
bench: $(VENV)-bench/.installed
	$(VENV)-bench/bin/python benchmarks/speed.py run
	$(VENV)-bench/bin/python benchmarks/speed.py table

$(VENV)-bench/.installed: pyproject.toml benchmarks/requirements.txt
	test -d $(VENV)-bench || $(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --no-compile --requirement benchmarks/requirements.txt --editable ".[pipeline]"
	touch $@

clean:
	rm -rf .laq data/*/ data/*.json data/*.csv mlruns mlflow.db*
