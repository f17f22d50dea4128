# make tiny    from raw text to a merged chat model, in five minutes on two CPU cores
# make test    every test
# make check   lint, types, walls
# Each makes .venv first, with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help tiny test check clean

help:
	@sed -n '1,4s/^# //p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

tiny: $(INSTALLED)
	$(BIN)/recipe run recipes/tiny.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_walls.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
