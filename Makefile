# Every target sets itself up; the environment is made once and made again when pyproject.toml
# changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test slow runbook fashion fashionfiles types oldest newest docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch comes first and pinned: pip then keeps the CPU build where one is offered (2.13.0+cpu
# satisfies 2.13.0), rather than take a newer release whose CUDA libraries are several gigabytes.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[test,dev,docs]'
	touch $@

install: $(INSTALLED) ## Make the environment

demo: $(INSTALLED) ## Distill the packaged digits teacher on the CPU into runs/digits
	$(BIN)/pdmd distill digits --out runs/digits --overwrite

test: $(INSTALLED) ## Lint, check types and the imports' direction, run the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) types
	$(BIN)/python -m pytest -n auto --durations 25

slow: $(INSTALLED) ## Run the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

runbook: $(INSTALLED) ## Run every command of the runbook, at tiny size
	$(BIN)/python -m pytest -q -m slow tests/test_runbook.py

# The original files, unpacked from the Debian package; on other systems FASHION_MNIST names their folder.
FASHION_MNIST ?= $(CURDIR)/.fashion-mnist/usr/share/datasets/fashion-mnist

$(CURDIR)/.fashion-mnist/usr/share/datasets/fashion-mnist:
	rm -rf .fashion-mnist && mkdir .fashion-mnist
	cd .fashion-mnist && apt-get download dataset-fashion-mnist
	dpkg-deb -x .fashion-mnist/dataset-fashion-mnist_*.deb .fashion-mnist

fashionfiles: $(FASHION_MNIST)

fashion: $(INSTALLED) $(FASHION_MNIST) ## Run the tests that need Fashion-MNIST
	FASHION_MNIST=$(FASHION_MNIST) $(BIN)/python -m pytest -q -m slow tests/benchmarks/test_fashion_files.py

types: $(INSTALLED) ## Check the types, and by mypy those of a program that uses the library
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -m slow tests/test_packaging.py -k mypy

# What differs between releases: teachers' classes, exports, stores, checkpoints. torch and its parts for
# ranks are pinned. Each has an environment of its own.
ENDS := tests/test_extras.py tests/teachers/families/test_qwen_image.py tests/teachers/families/test_encoders.py \
    tests/teachers/conditioning/embeddings tests/export/test_phased_transformer.py \
    tests/export/test_phased_transformer_methods.py tests/training/checkpoints/test_sizes.py

oldest: ## Run a few tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet torch==2.13.0
	.venv-oldest/bin/python -m pip install --quiet -e '.[diffusers,report,train]' pytest hypothesis -c oldest.txt
# diffusers before 0.38 offloads groups to an accelerator alone
	.venv-oldest/bin/python -m pytest -q $(ENDS) -k 'not enable_group_offload'

newest: ## Run a few tests with the newest versions
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet torch==2.13.0
	.venv-newest/bin/python -m pip install --quiet --upgrade -e '.[diffusers,report,train]' pytest hypothesis
	.venv-newest/bin/python -m pytest -q $(ENDS)

docs: $(INSTALLED) ## Build the documentation, warnings as errors
	$(BIN)/sphinx-build -n -W --keep-going -j auto -b html docs docs/_build/html

clean: ## Remove what was built, runs/ and the environment apart
	rm -rf docs/_build build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find pdmd tests examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
