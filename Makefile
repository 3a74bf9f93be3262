SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup test test-slow check demo bench assets

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with everything in it (once; needs Python 3.11 to 3.13)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  2> /dev/null || { \
	  echo "driftrae needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is:" \
	    "$$($(PYTHON) --version 2>&1 || true)" >&2; \
	  echo "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest -q

test-slow: $(READY) ## Run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

check: $(READY) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(READY) ## Distil the built-in teacher and look at the pictures (CPU, minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/shapes/demo.sh

bench: $(READY) ## Measure a step, statistics and evaluation against other ways (half an hour)
	$(BIN)/python examples/imagenet256/bench.py
	$(BIN)/python examples/latent_spaces/bench.py
	$(BIN)/python examples/evaluation/bench.py

assets: $(READY) ## Train the built-in models again (CPU, three hours)
	$(BIN)/driftrae pretrain shapes-pretrain --out runs/assets-pretrain
	cp runs/assets-pretrain/{rae,teacher,scorer}.safetensors driftrae_cli/assets/shapes/
	$(BIN)/driftrae distill shapes-full --out runs/assets-student
	cp runs/assets-student/student.safetensors driftrae_cli/assets/shapes/
	$(BIN)/driftrae pretrain shapes-vae-pretrain --out runs/assets-vae
	cp runs/assets-vae/rae.safetensors driftrae_cli/assets/shapes/vae.safetensors
	cp runs/assets-vae/teacher.safetensors driftrae_cli/assets/shapes/vae-teacher.safetensors
