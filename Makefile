# Every command of the project. `make help` lists them; set-up happens inside the targets that need it.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
# auto: the CPU build where it is offered and no GPU is seen. cpu and default force one.
TORCH ?= auto
export CHROMIUM

BIN := .venv/bin
INSTALL := -m pip install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes
PIP := $(BIN)/python $(INSTALL)
CLI := $(BIN)/python -m app.cli
sum = $(shell cat $(1) | cksum | tr -d ' ')
# A stamp's name holds the sum of its locks: a changed lock is a stamp not yet there.
TORCH_NAME := .torch-$(TORCH)-$(call sum,locks/torch-cpu.txt locks/torch-default.txt)
TORCH_STAMP := .venv/$(TORCH_NAME)
SERVICE_STAMP := .venv/.service-$(call sum,locks/worker.txt)
DEV_STAMP := .venv/.dev-$(call sum,locks/dev.txt)
MODELS_STAMP := .venv/.models-$(call sum,locks/models.txt)
# The trainer the engine is measured beside has an environment of its own, with the same torch.
BENCH_TORCH_STAMP := .bench/$(TORCH_NAME)
BENCH_STAMP := .bench/.trl-$(call sum,locks/bench.txt)
# So has the engine that serving is measured beside.
VLLM_TORCH_STAMP := .vllm/$(TORCH_NAME)
VLLM_STAMP := .vllm/.vllm-$(call sum,locks/vllm.txt)
# What Python graders may import: OpenAI's versions of the usual five, or of all sixteen with GRADERS=all,
# which stays until GRADERS=usual takes it back.
GRADERS ?= $(if $(wildcard .graders/.stamp-all-*),all,usual)
GRADERS_LOCK := locks/graders$(if $(filter all,$(GRADERS)),-all).txt
GRADERS_STAMP := .graders/.stamp-$(GRADERS)-$(call sum,$(GRADERS_LOCK))
MODEL_FILE := "$${TUNESMITH_MODELS:-$${XDG_CACHE_HOME:-$$HOME/.cache}/tunesmith/models}/smollm2-135m-instruct-q4/config.json"

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: up ## set up, start, fine-tune a real model on the sample project, and show before and after
	@$(BIN)/python examples/order-numbers/run.py --address "$$($(CLI) address)"

.PHONY: up
up: $(SERVICE_STAMP) graders model ## start the service in the background and print the dashboard's login address
	@$(CLI) up

.PHONY: down
down: $(SERVICE_STAMP) ## stop the service; a running job goes on at the next start
	@$(CLI) down

.PHONY: status
status: $(SERVICE_STAMP) ## show each part with its heartbeat, what is missing and what to do
	@$(CLI) status

.PHONY: logs
logs: $(SERVICE_STAMP) ## follow the logs of every part
	@$(CLI) logs

.PHONY: key
key: $(SERVICE_STAMP) ## print a new API key
	@$(CLI) key

.PHONY: login
login: $(SERVICE_STAMP) ## print a new login address for the dashboard
	@$(CLI) login-url

.PHONY: test
test: system lint graders $(MODELS_STAMP) ## lint, types, import contracts, then every test
	@$(BIN)/python -m tests.clients.node_client
	@$(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: bench
bench: bench-api bench-fuzz bench-graders bench-long bench-resume bench-export ## run the benchmarks of minutes; a failed claim ends it (engine, learning: apart)

.PHONY: bench-api
bench-api: $(DEV_STAMP) ## time the API: a page at 100 and 100,000 jobs, requests a second beside a bare route
	@$(BIN)/python -m tests.bench.api

.PHONY: compat
compat: $(DEV_STAMP) ## call every method of OpenAI's client that this service has, and write the page about it
	@$(BIN)/python -m tests.bench.compat

.PHONY: bench-fuzz
bench-fuzz: $(DEV_STAMP) ## send thousands of malformed requests to every route: no 5xx, no byte left
	@$(BIN)/python -m tests.bench.fuzz

.PHONY: bench-engine
bench-engine: $(SERVICE_STAMP) $(BENCH_STAMP) model ## apart from `bench`: time training beside TRL on three shapes (an hour)
	@$(BIN)/python -m tests.bench.engine

.PHONY: bench-learning
bench-learning: $(SERVICE_STAMP) $(BENCH_STAMP) model ## apart from `bench`: learn beside TRL from equally many answers (half an hour)
	@$(BIN)/python -m tests.bench.learning --task letter --seeds 1 2 3 4
	@$(BIN)/python -m tests.bench.learning --task sums --seeds 1 2 --curve

.PHONY: bench-long
bench-long: $(SERVICE_STAMP) model ## take 500 steps and compare late with early; what a slow grader adds to a step
	@$(BIN)/python -m tests.bench.long
	@$(BIN)/python -m tests.bench.overlap

.PHONY: bench-resume
bench-resume: $(DEV_STAMP) ## kill a training run at twenty random moments and compare its last bytes
	@$(BIN)/python -m tests.bench.resume

.PHONY: lint
lint: $(DEV_STAMP) ## lint, format, types, import contracts and vendored files, without the tests
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python static/vendor/vendor.py verify

.PHONY: format
format: $(DEV_STAMP) ## put every file into the project's format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: locks
locks: ## compile the locks anew from pyproject.toml (needs uv)
	@locks/compile.sh

.PHONY: graders
graders: $(GRADERS_STAMP) ## install what Python graders may import; GRADERS=all: all of OpenAI's packages (860 MB)

.PHONY: bench-graders
bench-graders: $(DEV_STAMP) graders ## attack the sandbox as root and as nobody, time it, kill a judge
	@$(BIN)/python -m tests.bench.sandbox
	@$(BIN)/python -m tests.bench.judges

.PHONY: bench-serve
bench-serve: $(DEV_STAMP) $(VLLM_STAMP) model ## apart from `bench`: serve beside transformers and vLLM (3.5 GB), and beside a job
	@$(BIN)/python -W ignore -m tests.bench.serve

.PHONY: bench-export
bench-export: $(DEV_STAMP) model ## train a real model for a few steps, export it in every form, print the parity table
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.bench.export

.PHONY: model
model: $(SERVICE_STAMP) ## fetch the default base model into the model store
	@test -f $(MODEL_FILE) || $(MAKE) --no-print-directory fetch

.PHONY: fetch
fetch: $(MODELS_STAMP)
	@echo "Building the base model (half a minute, once)."
	@TQDM_DISABLE=1 $(BIN)/python -W ignore -m worker.models fetch

.PHONY: system
system:
	@missing=""; \
	command -v bwrap >/dev/null || missing="bubblewrap"; \
	command -v "$${CHROMIUM:-chromium}" >/dev/null || missing="$$missing chromium fonts-liberation"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing system packages:" $$missing; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
		echo "The tests need these system packages:" $$missing "- install them, or name a browser with CHROMIUM=/path."; exit 1; \
	fi

# An environment is the folder a target lies in: .venv, .bench or .vllm.
ENV = $(firstword $(subst /, ,$@))
.venv/bin/python .bench/bin/python .vllm/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is not installed: install Python 3.11, 3.12 or 3.13."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Tunesmith needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(ENV) || \
		{ rm -rf $(ENV); echo "Python's venv is missing: on Debian and Ubuntu, apt install python3-venv."; exit 1; }

$(TORCH_STAMP): | .venv/bin/python
$(BENCH_TORCH_STAMP): | .bench/bin/python
$(VLLM_TORCH_STAMP): | .vllm/bin/python
$(TORCH_STAMP) $(BENCH_TORCH_STAMP) $(VLLM_TORCH_STAMP):
	@echo "Installing torch (minutes, once)."
	@pip="$(ENV)/bin/python $(INSTALL)"; case "$(TORCH)" in \
	cpu) $$pip -r locks/torch-cpu.txt ;; \
	default) $$pip -r locks/torch-default.txt ;; \
	*) said=""; \
	if ! nvidia-smi >/dev/null 2>&1 && said=$$($$pip -r locks/torch-cpu.txt 2>&1); then :; else \
		if [ -n "$$said" ]; then echo "torch's CPU build was not installed; pip says:"; echo "$$said" | tail -n 1; fi; \
		echo "Taking torch's default build (with CUDA several GB on Linux; see the README for the CPU build)."; \
		$$pip -r locks/torch-default.txt; fi ;; \
	esac
	@rm -f $(ENV)/.torch-* && touch $@

$(BENCH_STAMP): $(BENCH_TORCH_STAMP)
	@echo "Installing TRL, which the engine is measured beside."
	@.bench/bin/python $(INSTALL) -r locks/bench.txt
	@rm -f .bench/.trl-* && touch $@

$(VLLM_STAMP): $(VLLM_TORCH_STAMP)
	@echo "Installing vLLM, which serving is measured beside (minutes, once)."
	@.vllm/bin/python $(INSTALL) -r locks/vllm.txt
	@rm -f .vllm/.vllm-* && touch $@

$(SERVICE_STAMP): $(TORCH_STAMP)
	@echo "Installing packages (a minute, once)."
	@$(PIP) -r locks/worker.txt
	@printf '#!/bin/sh\ncd "$$(dirname "$$0")/../.." && exec .venv/bin/python -m app.cli "$$@"\n' >$(BIN)/tunesmith
	@chmod +x $(BIN)/tunesmith
	@rm -f .venv/.service-* && touch $@

$(DEV_STAMP): $(SERVICE_STAMP)
	@echo "Installing the packages of lint and tests."
	@$(PIP) -r locks/dev.txt
	@rm -f .venv/.dev-* && touch $@

# Apart from .venv: a grader sees this folder and nothing else of ours.
$(GRADERS_STAMP): $(SERVICE_STAMP)
	@echo "Installing what Python graders may import."
	@rm -rf .graders && $(PIP) --target .graders -r $(GRADERS_LOCK) && touch $@

$(MODELS_STAMP): $(SERVICE_STAMP)
	@$(PIP) -r locks/models.txt
	@rm -f .venv/.models-* && touch $@
