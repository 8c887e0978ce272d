# Everything a person or CI does here. Bare `make` lists it. Works with GNU make 3.81 and later.
#
#   PYTHON=python3.12   the interpreter that .venv is built from (default: the first one found that is 3.11 or newer)
#   ENGINE=http://…     make run: use this inference engine
#   VLLM=1 [MODEL=dir]  make run: install and run a real vLLM on this CPU, with a model folder of yours or a tiny one
#   ARGS="…"            passed on to fednode, pytest or the benchmark

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fednode

FEDNODE_VLLM_VENV ?= $(CACHE)/vllm
export FEDNODE_VLLM_VENV
VLLM_PYTHON := $(FEDNODE_VLLM_VENV)/bin/python
TINY_MODEL := $(CACHE)/models/tiny-v1
VLLM_ON := $(filter-out 0 no false,$(VLLM))

# A stamp carries the checksum of its lock file, so that a changed lock is installed and an old one is not forgotten.
lock_sum = $(shell cksum < requirements/$(1).lock | tr ' ' '-')
RUN_ENV := $(VENV)/.run-$(call lock_sum,run)
DEV_ENV := $(VENV)/.dev-$(call lock_sum,dev)

UP_FLAGS = $(if $(ENGINE),--engine "$(ENGINE)") \
	$(if $(VLLM_ON),--vllm-python "$(VLLM_PYTHON)" --model "$(if $(MODEL),$(MODEL),$(TINY_MODEL))")

# Not in `make test`: a vLLM to install, or minutes to wait.
FAST_TESTS := not vllm and not slow and not it

.DEFAULT_GOAL := help
.PHONY: help run demo test test-vllm vllm it check lint format types imports spelling deps proto-drift fix proto bench lock wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# ── use ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

run: $(RUN_ENV) $(if $(VLLM_ON),vllm-ready)  ## start a node: writes one into ./node if there is none, finds the engine, prints the URL
	@exec $(BIN)/fednode up $(UP_FLAGS) $(ARGS)

demo: $(RUN_ENV)  ## three nodes on this machine, with simulated engines
	@exec $(BIN)/fednode demo $(ARGS)

# ── test ────────────────────────────────────────────────────────────────────────────────────────────────────────────

test: $(DEV_ENV)  ## every test that needs no large download, in minutes
	$(BIN)/pytest -m "$(FAST_TESTS)" $(ARGS)

test-vllm: $(DEV_ENV) $(if $(FEDNODE_VLLM),,vllm-ready)  ## the suite against a real vLLM (installs a CPU build, 2-4 GB, unless FEDNODE_VLLM names yours)
	$(BIN)/pytest -m vllm $(ARGS)

vllm: test-vllm  ## the same

it: $(DEV_ENV)  ## the integration tests that take long: outages, bad guests, clumsy operators
	$(BIN)/pytest -m it tests/integration $(ARGS)

check: lint format types imports spelling deps proto-drift  ## all static checks that CI asks of a push (with -k: all of them, even after a failure)

lint: $(DEV_ENV)
	$(BIN)/ruff check .

format: $(DEV_ENV)
	$(BIN)/ruff format --check .

types: $(DEV_ENV)
	$(BIN)/mypy

imports: $(DEV_ENV)
	$(BIN)/lint-imports --no-logo

spelling: $(DEV_ENV)
	$(BIN)/codespell

deps: $(DEV_ENV)
	$(BIN)/deptry fednode router --no-ansi

fix: $(DEV_ENV)  ## format, and repair what ruff can repair by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_ENV)  ## the gateway benchmark (benchmarks/gateway/README.md)
	$(BIN)/python -m benchmarks.gateway $(ARGS)

# ── build ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# The mapped path makes protoc write the import path that the package has: fednode/_pb/link_pb2.py.
PROTOC = $(BIN)/python -m grpc_tools.protoc -I fednode/_pb=proto/fednode/v1 fednode/_pb/link.proto

proto: $(DEV_ENV)  ## write fednode/_pb from proto/
	$(PROTOC) --python_out=. --pyi_out=.

proto-drift: $(DEV_ENV)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	&& $(PROTOC) --python_out="$$scratch" --pyi_out="$$scratch" \
	&& for made in "$$scratch"/fednode/_pb/*; do \
		cmp "$$made" "fednode/_pb/$${made##*/}" || { echo "fednode/_pb is not what proto/ says: make proto" >&2; exit 1; }; \
	done

lock: $(VENV)/bin/python  ## compile requirements/{run,dev}.lock from pyproject.toml
	@command -v uv >/dev/null 2>&1 || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@PATH="$$PATH:$(CURDIR)/$(BIN)"; for set in run dev; do \
		case $$set in dev) group="--group dev" ;; *) group="" ;; esac; \
		uv pip compile pyproject.toml $$group --quiet --generate-hashes --no-emit-index-url \
			--python-version 3.11 --universal -o requirements/$$set.lock || exit 1; \
	done

wheel: $(DEV_ENV)  ## build dist/fednode-*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove the environment and every cache in this folder (a node in ./node stays)
	rm -rf $(VENV) dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find fednode router tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ── environments ────────────────────────────────────────────────────────────────────────────────────────────────────

PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)

$(VENV)/bin/python:
	@for python in $(PYTHONS); do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		echo "creating $(VENV) with $$($$python --version)"; \
		if command -v uv >/dev/null 2>&1; then uv venv --quiet --seed --python "$$(command -v $$python)" $(VENV) && exit 0; \
		else $$python -m venv $(VENV) && exit 0; fi; \
		rm -rf $(VENV); \
		echo "$$python cannot create an environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	done; \
	echo "fednode needs Python 3.11 or newer, and none of these is: $(PYTHONS) (say which: make PYTHON=/path/to/python)" >&2; exit 1

# Locked packages come with their hashes; the project itself is then put in place without looking at dependencies again.
define install
	@echo "installing requirements/$(1).lock"
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/$(1).lock \
		&& uv pip install --quiet --python $(BIN)/python --no-deps -e .; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(1).lock \
		&& $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	fi
	@rm -f $(VENV)/.$(1)-*
	@touch $@
endef

$(RUN_ENV): | $(VENV)/bin/python
	$(call install,run)

$(DEV_ENV): | $(VENV)/bin/python
	$(call install,dev)

.PHONY: dev-env
dev-env: $(DEV_ENV)

# The script leaves a finished environment alone, and so does the model builder a finished model.
.PHONY: vllm-ready
vllm-ready:
	sh tests/vllm/install.sh
	@$(if $(MODEL),:,"$(VLLM_PYTHON)" tests/vllm/tiny_model.py "$(TINY_MODEL)")
