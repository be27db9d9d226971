# Every target that needs the environment makes it first, and makes it anew only when the lock has changed.
# It is written for make 3.81, which macOS has: one modifier for each variable, nothing newer.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
OLDEST := .venv-oldest
BACKENDS := .venv-backends
COLAB := .venv-colab
BIN := $(VENV)/bin
PORT ?= 8000
# Two at a time, each file in one process: TensorFlow makes little of a second core, a second chapter makes all of it.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
NBVAL := $(PYTEST) --nbval-lax --nbval-current-env \
	-p no:python -p no:cacheprovider -p tools.nbval_plugin -x notebooks
FORMATTED := vae_utils tests tools benchmarks book
export TF_CPP_MIN_LOG_LEVEL ?= 2

# A relative path starts here, also for the kernels, which run in notebooks/.
ifneq ($(VAE_UTILS_DATA),)
override VAE_UTILS_DATA := $(if $(filter /%,$(VAE_UTILS_DATA)),,$(CURDIR)/)$(VAE_UTILS_DATA)
export VAE_UTILS_DATA
endif

.PHONY: help venv lab test robustness test-classroom test-lab test-oldest test-backends test-colab test-repeat
.PHONY: test-cells-twice verify notebooks book book-serve pdf offline-kit weights benchmark lint linkcheck format lock slug clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:  ## make .venv from requirements.lock, unless it is up to date
	@tools/make_venv.sh $(VENV)

lab: venv  ## open JupyterLab on notebooks/ (ARGS="--no-browser --port 8899")
	$(BIN)/jupyter lab --ServerApp.root_dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

test: venv  ## unit tests, structure tests, every notebook in quick mode (minutes)
	$(PYTEST) tests
	VAE_UTILS_QUICK=1 $(NBVAL)

robustness: venv  ## broken downloads, bad files, bad calls, kills, hostile models, cells run twice (minutes)
	$(PYTEST) tests/robustness -m "not classroom"

test-cells-twice: venv  ## every cell of every chapter twice in a row, in quick mode (ONLY=04)
	$(BIN)/python -m tools.run_cells_twice $(ONLY)

test-classroom: venv  ## twelve kernels at once, from notebooks that nobody may write to (minutes, 15 GB of memory)
	$(BIN)/python -m pytest tests/robustness -m classroom

test-lab: venv  ## every chapter through JupyterLab in a browser, in quick mode (minutes)
	$(BIN)/python -m pytest tests/system/test_lab.py -m lab

test-oldest:  ## all tests and quick notebooks on the oldest supported versions, in an environment of their own
	@tools/make_venv.sh $(OLDEST) oldest
	$(OLDEST)/bin/python -m pytest tests
	VAE_UTILS_QUICK=1 $(subst $(BIN),$(OLDEST)/bin,$(NBVAL))

test-backends:  ## the unit tests on Keras' other backends, JAX and PyTorch, in an environment of their own
	@tools/make_venv.sh $(BACKENDS) backends
	KERAS_BACKEND=jax $(BACKENDS)/bin/python -m pytest tests/unit
	KERAS_BACKEND=torch $(BACKENDS)/bin/python -m pytest tests/unit

test-colab: venv  ## every notebook in quick mode on Colab's versions, installed as on Colab, in an environment of its own
	@tools/make_venv.sh $(COLAB) colab
	$(BIN)/python -m pytest tests/system/test_colab.py -m colab

test-repeat: venv  ## every notebook twice in quick mode: the same outputs and the same weights (ONLY=04)
	VAE_UTILS_QUICK=1 $(BIN)/python -m tools.repeat_notebooks $(ONLY)

verify: venv  ## every notebook at full length on real MNIST, the robustness tests, the book in a browser
	@$(BIN)/python -c "from vae_utils.datasets import load_mnist; print('verify runs on', load_mnist().name)"
	$(PYTEST) tests -m "mnist or robustness"
	$(MAKE) --no-print-directory book
	$(PYTEST) --dist load tests/system/test_book.py -m book
	VAE_UTILS_QUICK= $(NBVAL)

notebooks: venv  ## bring notebooks up to date with their .py and execute them in full (ONLY=04)
	VAE_UTILS_QUICK= $(BIN)/python -m tools.build_notebooks $(ONLY)

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
	$(BIN)/python -m tools.train_weights $(ONLY)

benchmark: venv  ## speed beside the published recipes: a table, results.json, a figure (ONLY=dense-epoch)
	$(BIN)/python -m benchmarks $(ONLY)

lint: venv  ## ruff over the module, the tests, the tools and the notebooks' sources; zizmor over GitHub's workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/zizmor --offline --quiet .github

linkcheck: venv  ## ask every address in the book and the notebooks whether it still answers (needs the network)
	$(BIN)/sphinx-build --keep-going --quiet -b linkcheck -c book -d book/_build/doctrees . book/_build/linkcheck

format: venv  ## bring all that `make lint` looks at into its form, as far as ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format $(FORMATTED)

lock: venv  ## bring requirements.lock in step with pyproject.toml; pins stay (UPGRADE=1: the newest of all)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		$(if $(UPGRADE),--upgrade) --extra cpu --extra notebooks --extra dev --extra book pyproject.toml -o requirements.lock
	@! grep -nE '://|--(extra-)?index-url|--find-links' requirements.lock

slug: venv  ## rewrite the repository's address everywhere (SLUG=you/fork)
	$(BIN)/python -m tools.set_slug $(SLUG)

clean:  ## remove the environments, caches and everything built
	@for venv in $(VENV) $(OLDEST) $(COLAB) $(BACKENDS); do tools/make_venv.sh $$venv remove || exit; done
	rm -rf build vae_utils.egg-info .pytest_cache .ruff_cache book/_build offline-kit
	find $(FORMATTED) notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
