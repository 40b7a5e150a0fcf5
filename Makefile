# Two commands are enough on a fresh machine: `make book` and `make test`.
PYTHON  ?= python3
PROFILE ?= laptop
TORCH   := 2.13.0

VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
TESTS   := $(VENV)/.tests
LAB     := $(VENV)/.lab
PIP     := $(BIN)/python -m pip --disable-pip-version-check

# What `make chapter` passes on: only what was given.
GIVEN = $(if $(filter-out file default undefined,$(origin PROFILE)),--profile $(PROFILE)) \
        $(if $(EXPERTS),--experts $(EXPERTS)) $(if $(WIDTH),--width $(WIDTH)) \
        $(if $(TOP_K),--top-k $(TOP_K)) $(if $(SEEDS),--seeds $(SEEDS))

.DEFAULT_GOAL := help
.PHONY: help setup book test paper lab chapter bench wasm clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make the environment in .venv

book: $(READY)  ## retrain the models (PROFILE=laptop) and build the book
	@$(BIN)/sparsity-moves train --profile $(PROFILE)
	@$(BIN)/sparsity-moves book --profile $(PROFILE)
	@echo "Open file://$(CURDIR)/_build/html/index.html"

test: $(TESTS)  ## check style, types and behaviour
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n 2 $(ARGS)

paper: $(READY)  ## retrain at full scale, on a GPU (hours), and build the book from it
	@$(MAKE) --no-print-directory book PROFILE=paper

lab: $(LAB)  ## open the chapters in JupyterLab, live
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/book/redistribution.md \
	  --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

chapter: $(READY)  ## rerun one chapter: make chapter NAME=redistribution EXPERTS=8 (WIDTH, TOP_K, SEEDS)
	@test -n "$(NAME)" || { echo "Say which chapter: make chapter NAME=redistribution" >&2; exit 2; }
	@$(BIN)/sparsity-moves chapter $(NAME) $(GIVEN)

bench: $(READY)  ## measure the speed of training against a plain loop (ARGS=--peers: against JAX and others too)
	@$(BIN)/sparsity-moves bench $(ARGS)

wasm: $(TESTS)  ## compile the live lab's trainer from C again
	@$(BIN)/python -m sparsity_moves.widgets.lab.build

clean:  ## remove what was built; trained models and the environment stay
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache

# Without an NVIDIA GPU the CPU build of torch is taken, first from where pip looks anyway, then from
# PyTorch's own index; torch comes before everything else so that nothing can pull in CUDA packages.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": name another with make PYTHON=python3.12.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) install -q -c constraints.txt 'torch==$(TORCH)+cpu' 2>/dev/null || \
	  $(PIP) install -c constraints.txt 'torch==$(TORCH)+cpu' --extra-index-url https://download.pytorch.org/whl/cpu; \
	else \
	  $(PIP) install -c constraints.txt 'torch==$(TORCH)'; \
	fi
	$(PIP) install -q --progress-bar on -c constraints.txt -e '.[book]'
	@touch $@

$(TESTS): $(READY)
	$(PIP) install -q --progress-bar on -c constraints.txt -e '.[book,test]'
	@touch $@

# A double click on a chapter opens it as a notebook; the setting stays inside .venv.
$(LAB): $(READY)
	$(PIP) install -q -c constraints.txt -e '.[book,lab]'
	@mkdir -p $(VENV)/etc/jupyter/labconfig
	@$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json set-default-viewer markdown myst
	@touch $@
