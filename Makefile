# Everything runs in .venv, which `make setup` creates; the other targets set up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test nightly lint typecheck bench docs schemas clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokenshard needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,demo,bench,docs]'
	touch $@

demo: $(STAMP)  ## convert real images on an embedded Ray, train, show the results
	$(BIN)/tokenshard demo demo

test: $(STAMP) lint typecheck
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

nightly: $(STAMP)  ## what takes minutes: a hundred random faults, benchmarks on small data
	$(BIN)/python -m pytest -m nightly

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## all benchmarks; results go to benchmarks/RESULTS.md by hand
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: $(STAMP)  ## the site, in out/site, and everything that README and docs tell people to type
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest tests/test_site.py tests/test_documentation.py

schemas: $(STAMP)  ## write schemas/*.json from the models
	$(BIN)/python -m tokenshard.spec.schemas schemas

clean:
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
