# Everything a person runs. Each target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.done

.PHONY: setup demo serve test test-fast hostile check format schema clean

setup: $(SETUP)  ## the virtual environment in .venv

$(SETUP): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(SETUP)  ## one edit through RunPod's production loop, on this machine
	$(BIN)/python -m local.demo

serve: $(SETUP)  ## RunPod's local HTTP API on the same parts
	$(BIN)/python -m local.serve

test: $(SETUP)  ## the whole suite
	$(BIN)/python -m pytest

test-fast: $(SETUP)  ## without the tests that start whole workers, edit at full size or wait for long
	$(BIN)/python -m pytest -m "not slow"

hostile: $(SETUP)  ## attack the worker; leaves out/hostile.json
	$(BIN)/python -m hostile

check: $(SETUP)  ## lint, types, import contracts, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(SETUP)  ## write docs/request.schema.json anew
	$(BIN)/python -m local.schema_file

clean:
	rm -rf .venv out
