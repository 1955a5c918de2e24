# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: install browser demo test test-slow cluster-test check format constraints clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)  ## sample -> prep -> train -> tune -> evaluate -> register -> report.html
	$(BIN)/agman demo --out demo --overwrite

browser:  ## the tests open the report page in a real one
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "Chromium is missing and could not be installed; the report's tests will fail without it" >&2

test: $(READY) browser
	$(BIN)/python -m pytest

test-slow: $(READY)  ## the tests that take minutes: preparations killed at several moments, for one
	$(BIN)/python -m pytest -m slow

cluster-test: $(READY)  ## a cluster that grows and shrinks; ray up to ray down on three hosts of namespaces, as root
	$(BIN)/python cluster/test_autoscaling.py
	$(BIN)/python cluster/test_on_hosts.py

check: $(READY)  ## formatting, lint and types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(READY)  ## record the versions that are installed as the tested ones
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info
