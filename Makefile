# make serve   install into .venv if needed and serve MODEL on http://127.0.0.1:PORT
# make test    the whole suite         make lint   ruff and mypy
# make suites  JSON schemas, openai-python's tests, schemathesis, evil patterns
# make sanitize   the C++ kernels and threads under sanitizers; CASES=1000 for many more shapes
# make ipex    xeon with Intel Extension for PyTorch, in an environment of its own with torch 2.8
# make bench   throughput and latency  make docs   write the generated pages
# make clean   remove .venv and caches
#
# make test PYTEST_ARGS='tests/core -x'    some of it     make test PYTHON_FLAGS=-O    no assertions

PYTHON ?= python3
PORT ?= 8000
MODEL ?= smollm2
WORKERS ?= 2
PYTEST_ARGS ?=
PYTHON_FLAGS ?=
CASES ?= 12

PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROJECTS := pyproject.toml $(wildcard backends/*/pyproject.toml) ci/extras.py constraints.txt
NATIVE := $(wildcard backends/xeon/CMakeLists.txt backends/xeon/csrc/*)
OTHERS := $(filter-out backends/xeon/,$(dir $(wildcard backends/*/pyproject.toml)))

.PHONY: serve test lint suites sanitize ipex bench docs clean

serve: .venv/.serve
	@exec .venv/bin/inferplane serve "$(MODEL)" --device xeon --port $(PORT)

# one thread of torch a worker: more threads than cores spend their time waiting for each other
test: .venv/.test
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/python $(PYTHON_FLAGS) -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

lint: .venv/.test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

suites: .venv/.test
	.venv/bin/python ci/suites/json_schema.py --jobs $(WORKERS)
	.venv/bin/python ci/suites/openai_python.py
	.venv/bin/python ci/suites/schemathesis_run.py
	.venv/bin/python ci/suites/evil_patterns.py

sanitize: .venv/.python
	.venv/bin/python ci/suites/sanitize.py --jobs $(WORKERS) --cases $(CASES)

ipex: .venv/.python
	.venv/bin/python ci/suites/ipex.py

bench: .venv/.serve
	.venv/bin/inferplane bench "$(MODEL)" --device xeon

docs: .venv/.serve
	.venv/bin/python ci/docs.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps: a second run installs nothing unless a project file or a C++ source is newer.
.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo missing):" \
	    "inferplane needs Python 3.11 or newer; name one with make PYTHON=python3.12" >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv || { \
	  rm -rf .venv; echo "error: $(PYTHON) cannot make .venv:" \
	    "install its venv module (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@

.venv/.torch: .venv/.python constraints.txt
	@echo "installing torch into .venv (once)"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

.venv/.serve: .venv/.torch $(PROJECTS) $(NATIVE)
	@echo "installing inferplane and its xeon backend into .venv"
	$(PIP) -e . -e backends/xeon
	@touch $@

.venv/.test: .venv/.serve
	@echo "installing the test tools and the other backends into .venv"
	$(PIP) -e '.[test]' $(OTHERS:%=-e %)
	@touch $@
