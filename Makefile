# Every target sets up what it needs; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNTIME_VENV := .cache/runtime-venv
CLIENTS_VENV := .cache/clients-venv
PROTOS := proto/outpost/v1/text.proto proto/outpost/v1/embeddings.proto proto/outpost/v1/adapters.proto proto/inference/grpc_service.proto proto/inference/model_config.proto
PROTOC := -m grpc_tools.protoc -Iproto
TESTED := --durations=5

.DEFAULT_GOAL := help
.PHONY: help setup demo exam test test-fast test-slow test-real test-runtime test-clients fault-matrix lint format proto bench-text bench-tensor bench-update soak image image-lock image-test lock clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv with everything (about 2 GB, a few minutes)

$(READY): requirements.lock proto/pyproject.toml runtime/pyproject.toml export/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (about 2 GB, a few minutes the first time) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-e proto -e runtime -e export
	@touch $@

demo: $(READY) ## a fine-tuned model from checkpoint to streamed answer (three minutes, a quarter of an hour the first time)
	@$(BIN)/python -m examples.demo

exam: $(READY) ## score base and fine-tune on the held-out questions, served and from checkpoints
	@$(BIN)/python -m examples.press_line.compare

test: test-fast test-slow test-runtime test-clients test-real ## all tests; real models come from packages

test-fast: $(READY) ## the tests that need no download: some minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not real_model and not slow and not clients and not image" $(TESTED)

test-slow: $(READY) ## the tests that need no download but take seconds each
	$(BIN)/python -m pytest -n 2 -m "slow and not real_model and not image" $(TESTED)

test-real: $(READY) ## the tests on real models; their exports are kept in .cache/
	$(BIN)/python -m pytest -m real_model $(TESTED)

fault-matrix: $(READY) ## run the tests of incidents and write docs/fault-matrix.md
	$(BIN)/python -m pytest -q -m "incident and not real_model" --fault-matrix=docs/fault-matrix.md

# Installs only outpost-runtime, so that a forgotten import of torch cannot hide.
test-runtime: $(RUNTIME_VENV)/.ready ## the runtime's tests where nothing but the runtime is installed
	$(RUNTIME_VENV)/bin/python -m tests.support.only_runtime
	$(RUNTIME_VENV)/bin/python -m pytest tests/runtime $(TESTED)

$(RUNTIME_VENV)/.ready: requirements.lock $(shell find proto runtime -name '*.py' -o -name pyproject.toml)
	@rm -rf $(RUNTIME_VENV) proto/build runtime/build  # pip would pack modules that are gone
	@$(PYTHON) -m venv $(RUNTIME_VENV)
	@$(RUNTIME_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock \
		./proto ./runtime pytest pytest-timeout hypothesis
	@touch $@

# Their protobuf is older than ours, so they have an environment of their own.
test-clients: $(READY) $(CLIENTS_VENV)/.ready ## existing clients (tritonclient, kserve, …) against a running server
	$(BIN)/python -m pytest -m clients $(TESTED)

$(CLIENTS_VENV)/.ready: tests/clients/requirements.txt
	@echo "Setting up $(CLIENTS_VENV) (about 500 MB, a minute the first time) …"
	@rm -rf $(CLIENTS_VENV)
	@$(PYTHON) -m venv $(CLIENTS_VENV)
	@$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

lint: $(READY) ## ruff, mypy, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p outpost_runtime -p outpost_export -p examples -p bench
	$(BIN)/lint-imports
	$(BIN)/python -m tests.support.check_generated

format: $(READY) ## let ruff format and sort
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(READY) ## generate the protobuf code again
	PATH="$(BIN):$$PATH" $(BIN)/python $(PROTOC) --python_out=proto --grpc_python_out=proto \
		--mypy_out=quiet:proto --mypy_grpc_out=quiet:proto $(PROTOS)

bench-text: $(READY) ## every engine on Gemma 3 270M, in turn: speed beside quality (about 40 minutes)
	$(BIN)/python -m bench.text

bench-tensor: $(READY) ## Outpost, MLServer and Triton in turn, through gRPC: requests/s and waits (about 15 minutes)
	$(BIN)/python -m bench.tensor

bench-update: $(READY) ## how many bytes an update takes, beside zstd, chunks and hf-xet, and how long (two hours with builds)
	$(BIN)/python -m bench.update_sizes
	$(BIN)/python -m bench.update_times

soak: $(READY) ## half an hour of mixed load on a real server: nothing lost, memory flat
	$(BIN)/python -m bench.soak

lock: ## write requirements.lock from requirements.in
	@rm -rf .cache/lock-venv
	@$(PYTHON) -m venv .cache/lock-venv
	@.cache/lock-venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.in
	@{ echo "# Written by 'make lock' from requirements.in."; \
	   .cache/lock-venv/bin/python -m pip freeze --all | grep -v '^pip==' | sed 's/+cpu$$//'; } > requirements.lock
	@rm -rf .cache/lock-venv

image: ## build the disk image of a box for x86-64 UEFI (root on Debian; minutes)
	device-images/build --profile x86-generic --version 1

image-lock: ## write the versions and digests of all that goes into the image
	device-images/lock

image-test: $(READY) ## boot the image in qemu and try to break it (hours under emulation); after make image
	$(BIN)/python -m pytest -m image -v -rP $(TESTED)

clean: ## remove everything that was made here
	rm -rf $(VENV) .cache proto/build runtime/build export/build
