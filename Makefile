# VENV=path uses an environment that exists already, or puts a new one there.
VENV ?= .venv
PYTHON ?= python3
export PATH := $(abspath $(VENV))/bin:$(PATH)
INSTALLED := $(VENV)/.reparam-installed

.PHONY: run test test-slow lint docs bench install

run: install  ## the whole pipeline, then its headline numbers
	dvc repro
	@reparam summary

test: install  ## everything but the slow tests
	python -m pytest -n 2 --dist worksteal

test-slow: install  ## longer checks of the same, and tests that install environments of their own
	python -m pytest -n 2 -m slow

bench: install  ## side-by-side measurements, into benchmarks/RESULTS.md
	python benchmarks/data.py
	python benchmarks/train.py
	python benchmarks/streaming.py
	python benchmarks/nll.py
	python benchmarks/loop.py
	python benchmarks/apps.py
	python benchmarks/memory.py
	python benchmarks/serve.py
	python benchmarks/store.py
	python benchmarks/growth.py

docs: install  ## comments of params.yaml, docs/reference/, and the site: docs/_build/html/index.html
	python docs/generate.py
	sphinx-build --quiet --fail-on-warning --nitpicky docs docs/_build/html

lint: install
	ruff format --check .
	ruff check .
	mypy

install: $(INSTALLED)

# Where there may be a GPU of NVIDIA, onnxruntime-gpu takes the place of onnxruntime: both put their files into one folder,
# so the second to come overwrites the first, and the first to leave breaks the second.
# The stamp holds what was installed, so another clone or a changed pin that shares the environment installs again.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
ifneq ($(shell uname), Darwin)
	python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	python -m pip install --quiet --constraint constraints.txt onnxruntime-gpu
endif
	touch $@
