# Everything runs in .venv, made from a bare Python 3.11 with the pins of constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO ?= actlake-demo
export PYTHONUNBUFFERED = 1

.PHONY: help demo test test-slow test-torch-free test-oracle test-oldest test-vllm docs lint format clean

help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# One stamp per set of extras: an unchanged pyproject.toml costs nothing.
$(VENV)/stamp-base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch  # first and pinned: a later resolver would take the newest build
	$(PIP) -e '.[extract,report]'
	@touch $@

$(VENV)/stamp-test: $(VENV)/stamp-base
	$(PIP) -e '.[extract,report,paper,test,lint,docs]'
	@touch $@

demo: $(VENV)/stamp-base ## run the bundled study offline and write its report
	$(BIN)/actlake demo --out $(DEMO)

test: $(VENV)/stamp-test ## run the suite, real S3 servers and a browser included; test-slow has the rest
	sh tests/install-chromium.sh
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/stamp-test ## run the suites that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

# The laptop's half, without torch, on the newest Python that is here.
NEWEST := $(shell sh .ci/newest-python)
test-torch-free: ## run the torch-free suite on the newest Python 3.12+
	@test -n "$(NEWEST)" || { echo "no Python 3.12 or newer found"; exit 1; }
	sh tests/install-chromium.sh
	test -x .venv-newest/bin/python || $(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,paper,test]'
	.venv-newest/bin/python -m pytest -m "not torch and not slow and not gpu" $(ARGS)

# The sources come from this clone, all else from environments that clones share.
test-oracle test-oldest test-vllm: export PYTHONPATH = src
test-oracle test-oldest test-vllm: export HF_HUB_OFFLINE = 1
test-oracle: ## hold captured activations against TransformerLens and nnsight
	python=$$(sh tests/environment.sh oracle tests/oracle/requirements.txt $(PYTHON)) && "$$python" -m pytest tests/oracle $(ARGS)

# It asks this torch's compiler, which ModernBERT uses, for what is deprecated there.
OLDEST := $(addprefix tests/extract/test_,capture.py sites.py heads.py encoders.py checks.py) \
    $(addprefix tests/steer/test_,intervention.py generation.py patching.py)
test-oldest: ## test every architecture on the oldest transformers that is admitted
	python=$$(sh tests/environment.sh oldest tests/oldest/requirements.txt $(PYTHON)) && "$$python" -m pytest -W ignore::DeprecationWarning -m "not slow and not gpu" $(OLDEST) $(ARGS)

test-vllm: export OMP_NUM_THREADS = 1
test-vllm: export VLLM_CPU_OMP_THREADS_BIND = nobind
test-vllm: export VLLM_CPU_KVCACHE_SPACE = 1
test-vllm: ## test the vLLM engine with vLLM for the CPU
	python=$$(sh tests/environment.sh vllm tests/vllm/requirements.txt $(PYTHON)) && "$$python" -m pytest -o timeout=900 tests/vllm $(ARGS)

docs: $(VENV)/stamp-test ## build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site

lint: $(VENV)/stamp-test ## check style, imports and types
	$(BIN)/ruff check src/actlake/*/ src tests benchmarks
	$(BIN)/ruff format --check src/actlake/*/ src tests benchmarks
	$(BIN)/mypy

format: $(VENV)/stamp-test ## rewrite the code in the house style
	$(BIN)/ruff check --fix src/actlake/*/ src tests benchmarks
	$(BIN)/ruff format src/actlake/*/ src tests benchmarks

bench-%: $(VENV)/stamp-test ## run benchmarks/NAME.py; the last line is one JSON object
	$(BIN)/python benchmarks/$(subst -,_,$*).py

clean: ## remove what the targets made
	rm -rf $(VENV) .venv-newest $(DEMO) site dist build .pytest_cache .mypy_cache .ruff_cache
