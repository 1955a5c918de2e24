# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
TESTED := --constraint constraints.txt

.PHONY: install browser demo test test-unit test-integration test-slow test-photos test-notebooks test-latest cluster-test coverage check docs wheel format constraints clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TESTED) --editable ".[dev]"
	touch $@

demo: $(READY)  ## sample -> prep -> train -> tune -> evaluate -> register -> report.html
	$(BIN)/agman demo --out demo --overwrite

browser:  ## the tests of the pages open them in Chromium
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "Chromium is missing and could not be installed; the tests that need it are skipped" >&2

test: test-unit test-integration

test-unit: $(READY)  ## neither Ray nor MLflow nor a browser
	OMP_NUM_THREADS=1 $(PYTEST) tests/unit --numprocesses 2 --dist worksteal

test-integration: $(READY) browser  ## Ray, MLflow on sqlite, Chromium
	OMP_NUM_THREADS=1 $(PYTEST) tests/integration --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## minutes each: trainings, searches and preparations that are killed, clusters; many random examples
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=many tests

test-photos: $(READY)  ## the commands of docs/photographs.md; AGMAN_PHOTOS names the folder of the photographs
	$(PYTEST) -rs tests/photos

test-notebooks: $(READY)  ## both notebooks, from the first cell to the last
	$(PYTEST) tests/notebooks

test-latest:  ## Ray, MLflow and the rest in the newest versions that install, in an environment of their own
	$(MAKE) test-integration VENV=.venv-latest TESTED=

cluster-test: $(READY)  ## a cluster that grows and shrinks; ray up to ray down on three hosts of namespaces, as root
	$(BIN)/python cluster/test_autoscaling.py
	$(BIN)/python cluster/test_on_hosts.py

coverage: $(READY) browser  ## coverage of branches by file, of both tiers in all their processes
	$(PYTEST) --cov --cov-report=term

check: $(READY)  ## formatting, lint, directions of imports, types; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

docs: $(READY)  ## the documentation as a site with search: site/index.html; every warning is an error
	rm -rf build/docs && mkdir -p build/docs/benchmarks
	cp -r README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff docs cluster ray_cluster.yaml build/docs
	cp -r benchmarks/results build/docs/benchmarks
	sed -i "1i ---\nsearch: {boost: 0.1}\n---\n" build/docs/benchmarks/results/*.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(READY)  ## dist/: the sdist, and the wheel that is built from it
	$(BIN)/python -m build --outdir dist

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(READY)  ## record the versions that are installed as the tested ones
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) build dist site *.egg-info
