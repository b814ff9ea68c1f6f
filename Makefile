.PHONY: help setup man test test-long lint demo demo-fleet bench fuzz trixie pins qemus libvirts etcds chaos chaos-libvirt fleet host-crash powercut powercut-libvirt mutation deb deb-trixie clean

unexport PYTHONDONTWRITEBYTECODE  # the tests start pivotd some thousand times: from bytecode in two thirds of the time

help:  ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install what is missing: Debian packages (as root), .venv, the test guest
	@tests/support/setup.sh

lint: setup  ## check format, style, types and the direction of imports
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

test: lint  ## everything that CI checks: lint and all tests
	.venv/bin/pytest -n 3 --dist worksteal

test-long: lint  ## the same, and what takes too long for every run
	PIVOTD_LONG=1 .venv/bin/pytest -n 3 --dist worksteal

demo: setup  ## watch a running guest move, with kill -9 at the worst moments
	.venv/bin/python -m tests.demo

demo-fleet: setup  ## watch another host take over a guest whose host was lost in the middle of a pause
	.venv/bin/python -m tests.demo_fleet

bench: setup  ## measure the pause beside a bare client and with readers, the recovery after a kill, idling, a long history, thin disks, a fleet
	@command -v gcc >/dev/null || { echo 'bench: needs a C compiler: apt-get install gcc libc6-dev' >&2; exit 1; }
	.venv/bin/python -m bench.pause
	.venv/bin/python -m bench.pause --rounds 8 --dirty-mib 750
	.venv/bin/python -m bench.recovery
	.venv/bin/python -m bench.recovery --domains 100 --rounds 3
	.venv/bin/python -m bench.idle
	.venv/bin/python -m bench.domains
	.venv/bin/python -m bench.monitor
	.venv/bin/python -m bench.readers
	.venv/bin/python -m bench.history
	.venv/bin/python -m bench.thin
	.venv/bin/python -m bench.libvirt_start
	.venv/bin/python -m bench.libvirt_pause
	.venv/bin/python -m bench.fleet
	.venv/bin/python -m bench.fleet_pause

FUZZ ?= 20
fuzz: setup  ## try more wrong input than the tests do: FUZZ=20 times as much, SEED=n to repeat
	@export PIVOTD_SEED=$${SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} && echo "seed $$PIVOTD_SEED" && \
	PIVOTD_FUZZ=$(FUZZ) PIVOTD_WIRE_ROUNDS=$$((60 * $(FUZZ))) .venv/bin/pytest -q -n 2 --timeout 0 \
		tests/fuzz tests/wire/test_honesty.py

trixie:  ## run demo and test on a fresh Debian 13 in .cache/trixie (as root, with debootstrap; 1 GB)
	@tests/support/trixie.sh
	@$(MAKE) --no-print-directory setup
	.venv/bin/pytest -q tests/systemd -k trixie

MAN = build/man
man: setup  ## make the manual pages from the help: MAN=DIRECTORY
	.venv/bin/python -m docs.man_pages $(MAN)

pins: setup  ## check that the pinned libraries can be installed on every Python that is supported
	@for version in 3.11 3.12 3.13 3.14; do \
		.venv/bin/pip install --quiet --dry-run --no-deps --only-binary=:all: --python-version $$version --target .cache/none \
			-r requirements.txt && echo "$$version: ok" || exit 1; done

ROUNDS = 60
export SEED
chaos: setup  ## kill pivotd and QEMU at random under a writing guest: ROUNDS=1000 SEED=7
	.venv/bin/python -m tests.chaos.guest_rounds --rounds $(ROUNDS) --seed $(or $(SEED),0)

chaos-libvirt: setup  ## kill libvirtd in its pivots: plain, with pivotd's hook, guarded by pivotd: ROUNDS=200 SEED=7 KINDS='pivot abort'
	.venv/bin/python -m tests.chaos.libvirt_rounds --rounds $(ROUNDS) --seed $(or $(SEED),0) $(KINDS:%=--kind %)

fleet: setup  ## kill and freeze hosts, etcd, pivotd and QEMU at random, with messages lost, late and doubled: ROUNDS=200 SEED=7
	.venv/bin/python -m tests.fleet.rounds --rounds $(ROUNDS) --seed $(or $(SEED),0)

qemus:  ## fetch the QEMUs of Debian 13 and sid, for tests against every version
	@tests/support/qemus.sh

libvirts:  ## fetch the libvirt of Debian 13 and sid with its QEMU, for tests against every release (as root)
	@tests/support/libvirts.sh

etcds:  ## fetch the etcd of Debian 13 and sid, for tests of a fleet with every release
	@tests/support/etcds.sh

host-crash: setup  ## crash a host in its pivots; its guest has to start from the right images: CRASHES=20 SEED=7
	.venv/bin/python -m tests.systemd.crashes --crashes $(or $(CRASHES),20) $(if $(SEED),--seed $(SEED))

powercut: setup  ## cut a host's power in the middle of pivots: CUTS=20 SEED=…
	.venv/bin/python -m tests.powercut.campaign --cuts $(or $(CUTS),20) $(if $(SEED),--seed $(SEED))

powercut-libvirt: setup  ## the same around the pivots of a host's libvirt (as root): CUTS=20 SEED=…
	.venv/bin/python -m tests.powercut.libvirt_cut --cuts $(or $(CUTS),20) $(if $(SEED),--seed $(SEED))

mutation: setup  ## build deliberate defects in, one at a time; each must turn a test red
	.venv/bin/python -m tests.mutation

deb:  ## build the Debian package for the release that this runs on, dist/pivotd_*.deb
	@debian/build.sh

deb-trixie:  ## the same for Debian 13, in .cache/trixie (as root, with debootstrap; 1 GB)
	@tests/support/trixie.sh "$$(debian/build.sh --environment) debian/build.sh >/dev/null"
	@mkdir -p dist && cp $${PIVOTD_CACHE:-.cache}/trixie/srv/pivotd/dist/*~deb13_*.deb dist/ && ls dist/*~deb13_*.deb

clean:  ## remove what setup and the tools made
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
