# make run        the whole series under the profile in force (PROFILE=quick|full|hub), figures in Data/<profile>/
# make install    .venv with everything, which all that follow do first where it is missing
# make test       linter, unit tests, and every notebook compared with its stored outputs
# make test-slow  the tests that take minutes: kills, two processes, the test hub, no network, determinism
# make check      linter and the unit tests
# make store      runs the series under `quick` and stores the outputs in notebooks/, for a commit
# make full       every run that Data/full rests on, hours, in any number of sittings; ONLY="few_rows ranks"
# make site       README, lab/README and the stored notebooks as a static site, in site/; with ADDRESS, Open in Colab
# make address    writes ADDRESS=https://github.com/OWNER/NAME into every notebook's first cell
# make platforms  the packages of Colab and Kaggle: what a notebook's first cell installs there, then 02, 03 and 07
# make newest     the newest versions that the ranges allow, and the unit tests with them
# make audit      which of the packages that make installs have a known vulnerability, by osv.dev
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SITE := .venv-site
# On two cores two processes of one thread each are done sooner than one of two; whole files go to one of them.
TWO_AT_ONCE := PROFILE=quick OMP_NUM_THREADS=1
SPREAD := -n 2 --dist loadfile

.PHONY: install run test test-slow check site store full address platforms newest audit

install: $(VENV)/.installed

run: $(VENV)/.installed
	$(BIN)/python -m helpers.series

test: check
	$(TWO_AT_ONCE) $(BIN)/pytest $(SPREAD) --nbval notebooks

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TWO_AT_ONCE) $(BIN)/pytest $(SPREAD) -m "not slow" tests

test-slow: $(VENV)/.installed
	$(TWO_AT_ONCE) $(BIN)/pytest $(SPREAD) -m slow tests

store: $(VENV)/.installed
	PROFILE=quick $(BIN)/python -m helpers.series --store

full: $(VENV)/.installed
	$(BIN)/python -m lab.studies $(ONLY)

address:
	@case '$(ADDRESS)' in https://*) ;; *) echo 'make address ADDRESS=https://github.com/OWNER/NAME' >&2; exit 2;; esac
	sed -i.bak 's|ADDRESS = \\"[^"]*\\"|ADDRESS = \\"$(ADDRESS)\\"|' notebooks/*.ipynb && rm notebooks/*.bak

site: $(SITE)/.installed
	rm -rf $(SITE)/html
	ADDRESS=$(ADDRESS) $(SITE)/bin/sphinx-build -q -c .github/site -d $(SITE)/doctrees . $(SITE)/html
	cp $(SITE)/html/README.html $(SITE)/html/index.html
	rm -rf site && mv $(SITE)/html site

platforms: $(VENV)/.installed
	$(BIN)/python tests/platforms/run.py

newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install -q -r requirements-dev.txt -e .
	.venv-newest/bin/python -m pip list
	$(TWO_AT_ONCE) .venv-newest/bin/pytest $(SPREAD) -m "not slow" tests

audit: $(VENV)/.installed
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install -q pip-audit
	.venv-audit/bin/pip-audit -s osv --skip-editable --path $(VENV)/lib/python*/site-packages

$(VENV)/.installed: requirements.txt requirements-export.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements-dev.txt -c constraints.txt -e .
	touch $@

$(SITE)/.installed: .github/site/requirements.txt
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/bin/python -m pip install -q -r .github/site/requirements.txt
	touch $@
