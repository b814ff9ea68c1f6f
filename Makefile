.PHONY: help setup test lint demo bench powercut clean

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install what is missing: Debian packages (as root), .venv, the test guest
	@tests/support/setup.sh

lint: setup  ## check format, style, types and the direction of imports
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

test: lint  ## everything that CI checks: lint and all tests
	.venv/bin/pytest -n 2 --dist worksteal

demo: setup  ## watch a running guest move, with kill -9 at the worst moments
	.venv/bin/python -m tests.demo

bench: setup  ## measure the pause against a bare QMP client
	@command -v gcc >/dev/null || { echo 'bench: needs a C compiler: apt-get install gcc libc6-dev' >&2; exit 1; }
	.venv/bin/python -m bench.pause_baseline

powercut: setup  ## cut a host's power in the middle of pivots: CUTS=20 SEED=…
	.venv/bin/python -m tests.powercut.campaign --cuts $(or $(CUTS),20) $(if $(SEED),--seed $(SEED))

clean:  ## remove what setup and the tools made
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
