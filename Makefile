# Everything a developer runs. `make PYTHON=/path/to/python3.11 test` picks the interpreter.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-all smoke test-aot lint protos bench oracle

PYTHON = $(shell .ci/find_python 3.12 3.11 3.13)
ifneq ($(origin PYTHON),file)  # asked for: an environment of another version must go
$(shell cmp -s <($(PYTHON) -V) <(.venv/bin/python -V 2>/dev/null) || rm -f .venv/.ready)
endif
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
BIN := .venv/bin
# Processes that tests run in. A file's tests share one, and what it has compiled.
WORKERS := 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
ORACLE_PYTHON = $(shell .ci/find_python 3.11 3.12 3.13)
# On x86 the plain index may give torch's GPU build, which works too but is large: point pip's own
# settings at torch's CPU index to avoid it.
ORACLE_NEEDS := torch==2.13.0 transformers==5.23.0 numpy safetensors tokenizers

# Makes the environment .venv$(1) afresh with the interpreter $(2) where the one there does not
# run or is of another version, and installs $(3).
define make_venv
@[ -n "$(2)" ]
@if ! cmp -s <($(2) -V) <(.venv$(1)/bin/python -V 2>/dev/null); then \
  echo "making .venv$(1) with $(2)" >&2; $(2) -m venv --clear .venv$(1); fi
.venv$(1)/bin/python $(PIP_INSTALL) $(3)
@touch $@
endef

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready  ## only set up .venv
.venv/.ready: pyproject.toml
	$(call make_venv,,$(PYTHON),-e '.[dev]')

demo: setup  ## a small multi-turn workload in the four settings, and its table
	$(BIN)/python -m memserve_jax.bench.demo

serve: setup  ## a local cluster on port 50051; ARGS="--topology 1p1d --model DIR"
	$(BIN)/memserve serve $(ARGS)

test: setup  ## the tests, less the slow ones
	$(PYTEST) -m "not slow and not device and not aot" $(ARGS)

test-all: setup oracle  ## every test that needs no accelerator, and fresh goldens
	$(PYTEST) -m "not device and not aot" $(ARGS)

oracle: .venv-oracle/.ready  ## set up .venv-oracle: torch and transformers, for fresh goldens
.venv-oracle/.ready:
	$(call make_venv,-oracle,$(ORACLE_PYTHON),$(ORACLE_NEEDS))

smoke: setup  ## a selection of the tests on the other supported Python, if there is one
	@.ci/smoke

test-aot: .venv-aot/.ready  ## compile for accelerators that are not here; ARGS="-m aot --aot-report FILE": all
	.venv-aot/bin/python -m pytest -n $(WORKERS) -m "aot and not slow" tests/aot $(ARGS)
.venv-aot/.ready: pyproject.toml
	$(call make_venv,-aot,$(PYTHON),-e '.[aot]')

lint: setup  ## ruff, pyright, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

protos: .venv-protos/.ready  ## generate the stubs that are committed
	.venv-protos/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. \
	  --grpc_python_out=. memserve_jax/proto/memserve.proto
.venv-protos/.ready:  # stubs of old tools run on every newer runtime, not the other way round
	$(call make_venv,-protos,$(PYTHON),grpcio-tools==1.70.0 'setuptools<81')

bench: setup  ## engine throughput against a bare loop
	$(BIN)/memserve bench engine $(ARGS)
