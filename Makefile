# make run    the whole series under the profile in force (PROFILE=quick|full|hub), figures in Data/<profile>/
# make test   linter, unit tests, and every notebook compared with its stored outputs
# make store  runs the series under `quick` and stores the outputs in notebooks/, for a commit
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test store

run: $(VENV)/.installed
	$(BIN)/python -m helpers.series

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PROFILE=quick $(BIN)/pytest tests
	PROFILE=quick $(BIN)/pytest --nbval notebooks

store: $(VENV)/.installed
	PROFILE=quick $(BIN)/python -m helpers.series --store

$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt -c constraints.txt -e .
	touch $@
