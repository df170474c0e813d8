# make run        the whole series under the profile in force (PROFILE=quick|full|hub), figures in Data/<profile>/
# make install    .venv with everything, which all that follow do first where it is missing
# make test       linter, unit tests, and every notebook compared with its stored outputs
# make check      linter and the fast unit tests, under a minute
# make store      runs the series under `quick` and stores the outputs in notebooks/, for a commit
# make full       every run that Data/full and the README rest on, hours, in any number of sittings; ONLY="few_rows ranks", JOBS=8 on a GPU
# make site       the stored notebooks as a static site, in site/; ADDRESS=https://github.com/OWNER/NAME adds Open in Colab
# make platforms  the packages of Colab and Kaggle: what a notebook's first cell installs there, then 02, 03 and 07
# make newest     the newest versions that the ranges allow, and the unit tests with them
# make audit      which of the packages that make installs have a known vulnerability, by osv.dev
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
AUDIT := .venv-audit
# On two cores two processes of one thread each are done sooner than one of two; whole files go to one of them, with their fixtures.
TWO_AT_ONCE := PROFILE=quick OMP_NUM_THREADS=1
SPREAD := -n 2 --dist loadfile

.PHONY: install run test check site store full platforms newest audit

install: $(VENV)/.installed

run: $(VENV)/.installed
	$(BIN)/python -m helpers.series

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TWO_AT_ONCE) $(BIN)/pytest $(SPREAD) tests
	$(TWO_AT_ONCE) $(BIN)/pytest $(SPREAD) --nbval notebooks

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PROFILE=quick $(BIN)/pytest tests -m "not slow"

site: $(VENV)/.installed
	$(BIN)/python -m helpers.series.site $(ADDRESS)

store: $(VENV)/.installed
	PROFILE=quick $(BIN)/python -m helpers.series --store

full: $(VENV)/.installed
	$(BIN)/python -m helpers.studies $(ONLY) $(if $(JOBS),--jobs $(JOBS))

platforms: $(VENV)/.installed
	$(BIN)/python tests/platforms/run.py

newest:
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install -q -r requirements-dev.txt -e .
	$(NEWEST)/bin/python -m pip list
	$(TWO_AT_ONCE) $(NEWEST)/bin/pytest $(SPREAD) tests

audit: $(VENV)/.installed
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install -q pip-audit
	$(AUDIT)/bin/pip-audit -s osv --skip-editable --path $(VENV)/lib/python*/site-packages

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements-dev.txt -c constraints.txt -e .
	touch $@
