# One environment for everything: .venv, made once and again when pyproject.toml changes.
#   make demo    build an index over the sample images, search it, write a gallery
#   make test    linter, formatter, type checker, all tests
#   make check   linter, formatter, type checker, the fast tests: the inner loop
#   make eval    measure nano, its controls and random encoders on the sample images, write the leaderboard
# EVAL_DATA: a folder or tar of images with captions to measure on too.
# CLAIM_DATA: a folder of train-*.tar and val.tar for make claim, which measures what LLM2CLIP claims on real models.
# PYTHON chooses the interpreter, TEST_WORKERS the number of test processes (0: in this one); PIP_INSTALL_ARGS,
# PYTEST_ARGS and BENCH_ARGS add arguments.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= cpu,eval,train,dev
AREAS := common encoders indexer retrieval train eval
PIP_INSTALL_ARGS ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
BENCH_ARGS ?=
DEMO_OUT ?= demo-output
EVAL_OUT ?= eval-output
EVAL_DATA ?=
CLAIM_DATA ?=
CLAIM_ARGS ?=

# A file stays in one process, so that what its tests share is made once.
PARALLEL = -n $(TEST_WORKERS) --dist loadfile

# The tested interpreters first, then whatever else is new enough.
ifndef PYTHON
PYTHON := $(shell for range in '(3,11)<=v<=(3,13)' '(3,11)<=v'; do \
	for python in python3 python3.13 python3.12 python3.11 python; do \
		"$$python" -c "import sys; v = sys.version_info[:2]; sys.exit(not $$range)" >/dev/null 2>&1 \
			&& echo "$$python" && exit; done; done)
endif

.PHONY: help install demo test check attack bench eval claim lint typecheck pytest format docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       build an index over the sample images, search it, write a gallery'
	@echo 'make test       linter, formatter, type checker, all tests'
	@echo 'make check      linter, formatter, type checker, the fast tests'
	@echo 'make bench      speed of building and searching'
	@echo 'make eval       measure nano, its controls and random encoders, write the leaderboard'
	@echo 'make lint       linter and formatter only;  make format  lets them change files'
	@echo 'make typecheck  type checker only;          make pytest  tests only'
	@echo 'make docs       regenerate the --help blocks of docs/cli.md and the module map'
	@echo 'make clean      delete the environment and everything generated'

install: $(STAMP)

$(STAMP): pyproject.toml
	@test -n '$(PYTHON)' || { echo 'no Python >= 3.11 found: install one, or name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	@test -x $(BIN)/python || '$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON) -m venv' failed: install the venv module of this Python (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo 'installing into $(VENV): once, a few minutes (torch is large)'
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q $(PIP_INSTALL_ARGS) -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m llm2clip.retrieval.demo --out $(DEMO_OUT)

test: lint typecheck pytest

check: lint typecheck
	$(BIN)/python -m pytest $(PARALLEL) -q --fast $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An editable install is an import hook, which type checkers do not see: links spell the package out for them.
typecheck: $(STAMP)
	@mkdir -p .typing/llm2clip && for area in $(AREAS); do ln -sfn ../../$$area .typing/llm2clip/$$area; done
	$(BIN)/mypy .typing/llm2clip benchmarks

pytest: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# Ten minutes of damaged and hostile inputs, failing writes and kills; docs/reliability.md has the figures.
attack: $(STAMP)
	$(BIN)/python -m tests.indexer.attack $(ATTACK_ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

eval: $(STAMP)
	$(BIN)/python -m llm2clip.eval.commands.make_eval --out $(EVAL_OUT) $(addprefix --data ,$(EVAL_DATA))

claim: $(STAMP)
	@test -n '$(CLAIM_DATA)' || { echo 'say where the images with captions are: make claim CLAIM_DATA=FOLDER' >&2; exit 1; }
	$(BIN)/python -m benchmarks.claim --data $(CLAIM_DATA) $(CLAIM_ARGS)

docs: $(STAMP)
	$(BIN)/python tests/test_docs.py

clean:
	rm -rf $(VENV) .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DEMO_OUT) $(EVAL_OUT)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
