# The words of the daily work; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo test coverage check dev bench golden
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
# A uv that the set-up fetched stands behind one that is already there.
export PATH := $(PATH):$(CURDIR)/.tools/uv/bin

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## all that the demo needs on this machine, nothing started
	@scripts/setup.sh demo

demo: setup ## set up, play one order through its whole life, then keep serving (ARGS="--once" stops after it)
	@exec .venv/bin/isocenter demo $(ARGS)

setup-test: ## all that the tests need
	@scripts/setup.sh test

test: setup-test ## set up for tests, then every check and the whole suite
	@scripts/check.sh all $(ARGS)

coverage: setup-test ## the same, and which lines no test reaches
	@scripts/check.sh coverage $(ARGS)

check: ## format, lint, floors, types and the quick tests (seconds)
	@scripts/check.sh quick $(ARGS)

dev: setup ## serve in demo mode, again after every change of a file
	@ISOCENTER_DEMO=true exec .venv/bin/watchfiles --target-type command '.venv/bin/isocenter serve $(ARGS)' app capability

bench: setup ## measure; asserts nothing
	@scripts/bench.sh $(ARGS)

golden: ## rewrite the golden files, to be reviewed in the diff
	@.venv/bin/pytest --golden $(ARGS)
