# The two commands of the README do all set-up, in a virtual environment inside the checkout.
PYTHON ?= python3.11
PIP := .venv/bin/pip --disable-pip-version-check

.PHONY: demo test thorough lint docs clean

demo: .venv/installed
	.venv/bin/villani demo --run runs/demo

# A thread for each of two workers; who has nothing left to do takes over tests of the other.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal

test: lint
	$(PYTEST) -m "not thorough"

# What a change of one place seldom breaks, and what takes many seconds to see: CI runs it after `make test`.
thorough: .venv/tested
	$(PYTEST) -m thorough

lint: .venv/tested
	.venv/bin/ruff check --no-cache .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The site, in site/: strict, so that a link or an anchor that leads nowhere stops it.
docs: .venv/documented
	NO_MKDOCS_2_WARNING=true .venv/bin/mkdocs build --strict
	@echo "The site: site/index.html; with search: .venv/bin/python -m http.server --directory site"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

# curvlinops, an independent oracle for tests, comes without its dependencies: one of them asks for torchvision, which
# would replace the pinned torch. What it really imports is in the `test` extra. Of axe-playwright-python only axe-core, a
# file of JavaScript, is used: pages are examined in the Chromium of the machine, without playwright.
.venv/tested: .venv/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps curvlinops-for-pytorch backpack-for-pytorch
	$(PIP) install --quiet --constraint constraints.txt --no-deps axe-playwright-python
	touch $@

.venv/documented: .venv/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache .hypothesis
