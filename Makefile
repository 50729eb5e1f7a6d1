# `make help` lists the targets. Needs: make, Python 3.11 to 3.13. Everything else goes into .venv.
PYTHON  ?= python3
PROFILE ?= cpu
JOBS    ?= 1
# Smoke runs and tests use one thread each.
TEST_JOBS ?= 2
CHAPTER ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN   := .venv/bin
READY := .venv/ready.lock
# Kernels run in the notebooks' folder, so a relative data folder has to be made absolute here.
ifneq ($(COMPANION_DATA),)
export COMPANION_DATA := $(abspath $(COMPANION_DATA))
endif

.DEFAULT_GOAL := help
.PHONY: help install book run test lint lab bench scaling links lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  options: PROFILE=smoke|cpu|gpu JOBS=n TEST_JOBS=n CHAPTER=name PYTHON=python3.12 COMPANION_DATA=folder"

install: $(READY)  ## .venv with the versions of requirements.lock (the other targets do it themselves)

# The copied lock is written last, so that an interrupted installation is taken up again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	  || { echo "make: '$(PYTHON)' is not Python 3.11 to 3.13; name one that is: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
# Without an NVIDIA driver the CPU build of torch saves gigabytes; if its index is out of reach, the lock's line decides.
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  $(BIN)/pip install --retries 1 --timeout 20 --no-deps --index-url $(TORCH_INDEX) "$$(grep '^torch==' requirements.lock)" \
	  || echo "make: $(TORCH_INDEX) did not answer; taking torch from the default index"; fi
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@cp requirements.lock $(READY)

book: $(READY)  ## run every chapter and render _build/html (PROFILE=cpu, JOBS=1)
	$(BIN)/companion run --profile $(PROFILE) -j $(JOBS)
	$(BIN)/companion build --profile $(PROFILE)

run: $(READY)  ## run one chapter: make run CHAPTER=01 PROFILE=cpu
	@test -n "$(CHAPTER)" || { echo "make: name a chapter: make run CHAPTER=01 PROFILE=$(PROFILE)" >&2; exit 2; }
	$(BIN)/companion run $(CHAPTER) --profile $(PROFILE)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, notebook pairs, unit tests, chapters (papermill and nbval), the site in a browser
	$(BIN)/companion pair --check
	$(BIN)/companion check --profile smoke -j $(TEST_JOBS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_JOBS) --dist loadgroup --no-loadscope-reorder --durations 12 tests/unit tests/chapters tests/site

lab: $(READY)  ## JupyterLab on the notebooks; saving keeps the .py and .ipynb together
	$(BIN)/jupyter lab --notebook-dir=notebooks

bench: $(READY)  ## one table of speed, kept in book/results/speed.json
	$(BIN)/pytest benchmarks --record --quiet --benchmark-quiet

scaling: $(READY)  ## the sweeps of the page on scaling, kept in book/results/scaling.json
	$(BIN)/python benchmarks/scaling.py

links: $(READY)  ## ask every web address of the staged book whether it answers (after make book; needs a network)
	@rm -rf _build/links
	@$(BIN)/jupyter-book build _build/stage --path-output _build/links --builder linkcheck > _build/links.log 2>&1 || true
	@$(BIN)/python .ci/links || { tail -n 5 _build/links.log; exit 1; }

lock: $(READY)  ## rewrite requirements.lock from .venv
	{ sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --exclude-editable --exclude companion \
	  | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > requirements.new && mv requirements.new requirements.lock

clean:  ## remove _build and tool caches; keeps .venv and the data
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
