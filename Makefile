# The two commands: `make demo` and `make test`. They need Python 3.11+ (with venv) and make, nothing else.
# Everything they install goes into .venv, everything they run keeps its data in .synapse.

SHELL := /bin/sh
HERE := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
override MAKEFLAGS += --no-print-directory
PYTHON ?= python3
VENV := $(HERE).venv
BIN := $(VENV)/bin
SETUP := cd "$(HERE)" && PYTHON="$(PYTHON)" sh requirements/install

.PHONY: help install demo demo-recovery test test-scenarios test-stores test-cluster test-compose image prove-monitoring prove-release ui quick check bench soak docs lock clean

help:
	@echo "make demo    start the embedded stack, back it up, prove the backup, plan retention, show what happened"
	@echo "make install install the program into .venv, and start nothing"
	@echo "make demo-recovery  lose everything but the bucket, and recover from it"
	@echo "make test    run the tests"
	@echo "make test-scenarios  whole stacks: closed terminals, killed processes, a year of history"
	@echo "make test-stores  the backup-repository tests against a second S3 server, built with Go"
	@echo "make test-cluster  apply the rendered manifests to a real Kubernetes control plane, built with Go"
	@echo "make test-compose  build the images and start the rendered compose file on a Docker engine (installs it; root)"
	@echo "make image   build the image of Synapse Ops with Docker, and list what is in it (SBOM)"
	@echo "make prove-monitoring  run the rendered files in a real Prometheus and Alertmanager (installs Debian packages)"
	@echo "make prove-release  check every rendered document of the example spec with outside tools"
	@echo "make ui      open the Dagster instance that the demo filled"
	@echo "make quick   format, lint, types, imports, tests of domain and spec: under 30 s"
	@echo "make check   quick, and check that the generated pages are up to date"
	@echo "make bench   measure a dump, as in docs/benchmarks.md"
	@echo "make soak    kill the primary of an embedded stack every minute for ten minutes, and compare the ledger"
	@echo "make docs    regenerate the generated pages"
	@echo "make lock    update the lock files"

install:
	@$(SETUP) run

demo:
	@$(SETUP) run
	@cd "$(HERE)" && "$(BIN)/synapse-ops" demo

demo-recovery:
	@$(SETUP) run
	@cd "$(HERE)" && "$(BIN)/synapse-ops" demo-recovery

ui:
	@$(SETUP) run
	@cd "$(HERE)" && exec "$(BIN)/synapse-ops" ui

test:
	@$(SETUP) dev
	@cd "$(HERE)" && "$(BIN)/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not scenario and not cluster and not engine"

test-scenarios:
	@$(SETUP) dev
	@cd "$(HERE)" && "$(BIN)/python" -m pytest -n 2 --dist loadfile -m scenario

test-stores:
	@$(SETUP) dev
	@cd "$(HERE)" && sh requirements/versitygw
	@cd "$(HERE)" && PATH="$(HERE).synapse-tools/bin:$$PATH" SYNAPSE_TEST_STORE=versitygw \
	  "$(BIN)/python" -m pytest -n 2 --dist loadfile tests/systems/s3/test_store.py tests/operations/backup tests/operations/database tests/operations/cleanup \
	  --ignore=tests/operations/database/test_mutations.py --ignore=tests/operations/database/test_throwaway_server.py

test-cluster:
	@$(SETUP) dev
	@cd "$(HERE)" && sh requirements/cluster/install && sh requirements/cluster/node-packages
	@cd "$(HERE)" && sh requirements/engine || echo "note: tests with the stack's images on a real node are skipped" >&2
	@cd "$(HERE)" && SYNAPSE_TEST_CLUSTER=1 "$(BIN)/python" -m pytest tests/cluster
	@cd "$(HERE)" && "$(BIN)/python" -m tests.judged test-cluster --passed

# where no engine can be had, nothing is proven and nothing kept as passed; that is said, and is no failure
test-compose:
	@$(SETUP) dev
	@cd "$(HERE)" && sh requirements/manifest-tools
	@cd "$(HERE)" && if sh requirements/engine && "$(BIN)/python" -m tests.engine.engine; then \
	  SYNAPSE_TEST_ENGINE=1 "$(BIN)/python" -m pytest tests/engine && \
	  "$(BIN)/python" -m tests.judged test-compose --passed; \
	else echo "!!! test-compose is SKIPPED: the line above says why. No image and no compose file was tried" >&2; fi

image:
	@cd "$(HERE)" && docker build --file deploy/Dockerfile --tag synapse-ops .
	@cd "$(HERE)" && sh deploy/sbom synapse-ops:latest dist/synapse-ops.cdx.json

prove-monitoring:
	@$(SETUP) dev
	@cd "$(HERE)" && sh requirements/monitoring-tools
	@cd "$(HERE)" && PATH="$$PATH:/usr/sbin:/sbin" SYNAPSE_PROVE=1 "$(BIN)/python" -m pytest -s tests/prove tests/manifests/monitoring/test_tools.py

prove-release:
	@$(SETUP) dev
	@cd "$(HERE)" && sh requirements/manifest-tools
	@cd "$(HERE)" && PATH="$(HERE).synapse-tools/bin:$$PATH" "$(BIN)/python" -m tools.prove_release \
	  --spec examples/synapse/infrastructure.yaml
	@cd "$(HERE)" && PATH="$(HERE).synapse-tools/bin:$$PATH" SYNAPSE_PROVE=1 \
	  "$(BIN)/python" -m pytest -q -n 2 -m tools tests/tools tests/manifests
	@cd "$(HERE)" && PATH="$(HERE).synapse-tools/bin:$$PATH" "$(BIN)/python" -m tests.judged prove-release --passed

quick:
	@$(SETUP) dev
	@cd "$(HERE)" && "$(BIN)/ruff" format --check . && "$(BIN)/ruff" check .
	@cd "$(HERE)" && "$(BIN)/mypy" && "$(BIN)/lint-imports" --no-cache
	@cd "$(HERE)" && "$(BIN)/python" -m pytest -q tests/domain tests/spec

check: quick
	@cd "$(HERE)" && "$(BIN)/python" docs/generate.py --check

docs:
	@$(SETUP) dev
	@cd "$(HERE)" && "$(BIN)/python" docs/generate.py

bench:
	@$(SETUP) dev
	@cd "$(HERE)" && "$(BIN)/python" -m benchmarks.dump

soak:
	@$(SETUP) dev
	@cd "$(HERE)" && "$(BIN)/python" -m benchmarks.failover --rounds 10 --every-s 60

lock:
	@$(SETUP) run
	@cd "$(HERE)" && sh requirements/resolve

clean:
	@cd "$(HERE)" && if [ -x "$(BIN)/synapse-ops" ]; then "$(BIN)/synapse-ops" local reset --yes; fi
	@rm -rf "$(VENV)"
