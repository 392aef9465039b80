# `make` lists what there is; `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
TORCH ?= torch
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check fmt gradcheck fuzz bench bench-ptb bench-ranks docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/installed  ## make .venv and install rnnlm into it

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnnlm needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/developing: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,plot,report,rescore]'
	@touch $@

.venv/benching: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]' $(TORCH)
	@touch $@

demo: install  ## train on the text in data/, write ten sentences, and hold both against the text's own grammar
	$(BIN)/rnnlm train data/train.txt --valid data/valid.txt --config configs/demo.toml --model demo --overwrite
	$(BIN)/rnnlm generate --model demo --count 10 --seed 1
	@$(BIN)/rnnlm generate --model demo --count 1000 --seed 2 | $(BIN)/python data/grammar.py report --model demo -

test: .venv/developing check  ## run everything that CI runs
	$(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

check: .venv/developing  ## look at style and types, and change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: .venv/developing  ## mend style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gradcheck: install  ## hold every gradient against finite differences
	$(BIN)/rnnlm gradcheck

fuzz: .venv/developing  ## give every command harmed models, odd texts and lines: ROUNDS=10 SEED=2 for more and others
	$(BIN)/python tests/fuzz.py --heavy --rounds $(or $(ROUNDS),1) --seed $(or $(SEED),1)

bench: .venv/benching .venv/developing  ## measure speed on this machine, beside PyTorch: benchmarks/results.md
	$(BIN)/pytest tests/test_torch.py
	$(BIN)/python benchmarks/bench.py

bench-ptb: .venv/developing  ## measure time to perplexities on CORPUS=FOLDER; FULL=1: longer ones as well
	$(BIN)/python benchmarks/ptb.py $(or $(CORPUS),$(error name the folder of ptb.train.txt: make bench-ptb CORPUS=FOLDER)) $(if $(FULL),--full)

bench-ranks: .venv/developing  ## measure training on several ranks, by MPI, beside one process: benchmarks/ranks.md
	$(BIN)/python benchmarks/ranks.py

docs: .venv/developing  ## write docs/cli.md anew from the commands' help
	$(BIN)/python docs/make_cli.py > docs/cli.md.new && mv docs/cli.md.new docs/cli.md

clean:  ## remove what was made here, the environment and the demo's model included
	rm -rf .venv build dist demo src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
