# octonode: `make demo` shows it, `make test` proves it. Everything happens in .venv and build/ of this folder.
#
# Prerequisites (checked first): Linux, Python 3.11 with its headers, gcc, make, libgmp's headers.
#   Debian, Ubuntu:  apt-get install gcc make python3 python3-venv python3-dev libgmp-dev
#   Fedora:          dnf install gcc make python3 python3-devel gmp-devel

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first of these that is Python 3.11 or later; `make PYTHON=...` says otherwise.
PYTHON ?= $(shell for each in python3.11 python3 python3.12 python3.13; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$each; break; }; done)

BIN := .venv/bin
READY := .venv/.installed
MODEL := build/models/SmolLM2-135M-Instruct.Q4_1.gguf

# Tests load the machine with real engines of one thread each; numerical libraries must not bring threads of their own.
export OMP_NUM_THREADS := 1

.PHONY: help demo test test-interop check bench soak clean setup model interop-peers

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "  ONLY=...         for test: a folder, a file or a test of pytest; for bench: the name of a row"
	@echo "  MUXER=stock      for test: daemons on the muxer of the library instead of ours"

demo: setup model ## start four nodes, pass a real model between them by its content address, ask a question
	@mkdir -p build
	$(BIN)/octonode demo

# Minutes of each ring on 2 cores, about eighteen in all; `make test ONLY=tests/protocol` runs one:
#   tidy, setup scripts, settings, logs, hardware       1     tests/tidy tests/scripts tests/hardware tests/cli tests/test_*.py
#   sans-IO units and properties, tasks, API, node      3     tests/protocol tests/ipfs tests/tasks tests/api tests/node
#   models: stores, fetches, formats, kill -9           3     tests/models
#   real workers of both engines                        1     tests/engines
#   both networks: in memory and real libp2p hosts      2     tests/network
#   real daemons, the main job on the real model        8     tests/process
test: setup model ## all tests that need no GPU; sets up everything first
	$(if $(MUXER),OCTONODE_NETWORK_MUXER=$(MUXER)) $(BIN)/pytest $(ONLY)

# On loopback, in five minutes; needs npm, nginx (apt-get install nginx-light), and Linux on x86-64. No part of `make test`.
test-interop: setup model interop-peers ## real js-libp2p, go-libp2p, Helia, Kubo and nginx against us
	$(BIN)/pytest $(or $(ONLY),tests/interop)

check: setup ## style, types, layers, tidiness: no test of behaviour
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -q tests/tidy

bench: setup model interop-peers ## figures against their goals, to build/bench.json
	@mkdir -p build
	$(BIN)/python -m scripts.bench $(if $(ONLY),--only $(ONLY))

soak: setup ## ten minutes of mixed load on the network's ground: memory must not grow, no stream may fail
	$(BIN)/python -m scripts.soak $(if $(MINUTES),--minutes $(MINUTES))

setup: $(READY)

model: $(MODEL)

interop-peers: setup
	@$(BIN)/python -m scripts.get_interop_peers

# The stamp is newer than pyproject.toml once what it asks for is installed.
$(READY): pyproject.toml
	@PYTHON='$(PYTHON)' scripts/prerequisites
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo 'make: no virtual environment could be made. Debian, Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@echo 'installing into .venv (a minute or two) ...'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@rm -rf .venv/lib/python3*/site-packages/trio-stubs # of trio-typing, by libp2p: years behind trio's own types
	@touch $@

$(MODEL): scripts/get_model.py | $(READY)
	$(BIN)/python scripts/get_model.py build/models
	@touch $@

clean: ## remove .venv, build/ and caches
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
