# Every target that needs the environment builds it first, and rebuilds it only when the lock has changed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
EXTRAS := cpu,notebooks,dev,book
# Two at a time, each file in one process: TensorFlow makes little of a second core, a second chapter makes all of it.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
NBVAL := $(PYTEST) --nbval-lax --nbval-current-env \
	-p no:python -p no:cacheprovider -p tools.nbval_plugin -x notebooks
export TF_CPP_MIN_LOG_LEVEL ?= 2

# A relative path starts here, also for the kernels, which run in notebooks/.
ifneq ($(VAE_UTILS_DATA),)
override export VAE_UTILS_DATA := $(if $(filter /%,$(VAE_UTILS_DATA)),,$(CURDIR)/)$(VAE_UTILS_DATA)
endif

OLDEST := .venv-oldest
COLAB := .venv-colab
BACKENDS := .venv-backends
UNIT_TESTS := tests/unit

.PHONY: help venv lab test robustness test-classroom test-lab test-oldest test-backends test-colab test-repeat verify notebooks book book-serve pdf offline-kit weights benchmark lint linkcheck lock slug clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## create .venv from requirements.lock, unless it is up to date
	@tools/make_venv.sh $(VENV)

lab: venv  ## open JupyterLab on notebooks/ (ARGS="--no-browser --port 8899")
	$(BIN)/jupyter lab --ServerApp.root_dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

test: venv  ## unit tests, structure tests, every notebook in quick mode (minutes)
	$(PYTEST) tests
	VAE_UTILS_QUICK=1 $(NBVAL)

robustness: venv  ## broken downloads, bad files, bad calls, kills, hostile models (minutes)
	$(PYTEST) tests/robustness -m "not classroom"

test-classroom: venv  ## twelve kernels at once, from notebooks that nobody may write to (minutes, 15 GB of memory)
	$(BIN)/python -m pytest tests -m classroom

test-lab: venv  ## every chapter through JupyterLab in a browser, in quick mode (minutes)
	$(BIN)/python -m pytest tests/system/test_lab.py -m lab

test-oldest:  ## unit tests and quick notebooks on the oldest supported versions, in an environment of their own
	test -x $(OLDEST)/bin/jupyter || { $${PYTHON:-python3} -m venv $(OLDEST) && $(OLDEST)/bin/pip install --quiet --disable-pip-version-check \
		-c tests/constraints/oldest.txt -e ".[$(EXTRAS)]"; }
	$(OLDEST)/bin/python -m pytest tests
	VAE_UTILS_QUICK=1 $(subst $(BIN),$(OLDEST)/bin,$(NBVAL))

test-backends:  ## vae_utils's unit tests on Keras' other backends, JAX and PyTorch, in an environment of their own
	test -e $(BACKENDS)/installed || { $${PYTHON:-python3} -m venv $(BACKENDS) && $(BACKENDS)/bin/pip install --quiet \
		--disable-pip-version-check -e ".[cpu,notebooks,dev,bench]" && touch $(BACKENDS)/installed; }
	KERAS_BACKEND=jax $(BACKENDS)/bin/python -m pytest $(UNIT_TESTS)
	KERAS_BACKEND=torch $(BACKENDS)/bin/python -m pytest $(UNIT_TESTS)

test-colab: venv  ## every notebook in quick mode on Colab's versions, installed as on Colab, in an environment of its own
	@tools/make_colab_venv.sh $(COLAB)
	$(BIN)/python -m pytest tests/system/test_colab.py -m colab

test-repeat: venv  ## every notebook twice in quick mode: the same outputs and the same weights (ONLY=04)
	VAE_UTILS_QUICK=1 $(BIN)/python -m tools.repeat_notebooks $(ONLY)

verify: venv  ## every notebook at full length on real MNIST, the faults, the book in a browser
	@$(BIN)/python -c "from vae_utils.datasets import load_mnist; print('verify runs on', load_mnist().name)"
	$(PYTEST) tests -m "mnist or robustness"
	$(MAKE) --no-print-directory book
	$(PYTEST) --dist load tests/system/test_book.py -m book
	VAE_UTILS_QUICK= $(NBVAL)

notebooks: venv  ## bring notebooks up to date with their .py and execute them in full (ONLY=04)
	VAE_UTILS_QUICK= $(BIN)/python tools/build_notebooks.py $(ONLY)

book: venv  ## build the web book in book/_build/html from the executed notebooks
	@rm -rf book/_build
	$(BIN)/sphinx-build -W --keep-going --quiet -b html -c book -d book/_build/doctrees . book/_build/html
	@echo "Open book/_build/html/index.html"

book-serve: book  ## open the book in your browser, at localhost:8000 (another port: PORT=8001)
	$(BIN)/python -m webbrowser http://localhost:$(PORT)
	$(BIN)/python -m http.server $(PORT) --bind localhost --directory book/_build/html

pdf: book  ## print each chapter to book/_build/pdf
	$(BIN)/python -m tools.print_book

offline-kit: book  ## offline-kit/ for a USB stick: wheels, notebooks, book, MNIST from VAE_UTILS_DATA; and try it
	$(BIN)/python -m tools.offline_kit
	$(BIN)/python -m pytest tests/system/test_offline_kit.py -m kit

weights: venv  ## train the models that ship with vae_utils anew (ONLY=conv-2d; half an hour)
	$(BIN)/python tools/train_weights.py $(ONLY)

benchmark: venv  ## speed beside the published recipes: a table, results.json, a figure (ONLY=dense-epoch)
	$(BIN)/python -m benchmarks $(ONLY)

linkcheck: venv  ## ask every address in the book and the notebooks whether it still answers (needs the network)
	$(BIN)/sphinx-build --keep-going --quiet -b linkcheck -c book -d book/_build/doctrees . book/_build/linkcheck

lint: venv  ## ruff over the module, the tests, the tools and the notebooks' sources; zizmor over GitHub's workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check vae_utils tests tools benchmarks book
	$(BIN)/zizmor --offline --quiet .github

lock: venv  ## compile requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade \
		$(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) pyproject.toml -o requirements.lock
	@! grep -nE '://|--(extra-)?index-url|--find-links' requirements.lock

slug: venv  ## rewrite the repository's address everywhere (SLUG=you/fork)
	$(BIN)/python tools/set_slug.py $(SLUG)

clean:  ## remove .venv, caches and everything built
	rm -rf $(VENV) $(OLDEST) $(COLAB) $(BACKENDS) build *.egg-info .pytest_cache .ruff_cache book/_build offline-kit
	find . -name .git -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

comma := ,
