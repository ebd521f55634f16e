# make lab | test | bench | bench-pki | bench-flanneld | lint | down: each does its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

INVENTORY ?= inventories/lab
VENV := .venv
BIN := $(VENV)/bin
# `su` without a dash keeps a user's PATH, which lacks the directories of an administrator's programs.
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/sbin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

setup: $(VENV)/.ready ## Install what the controller needs (Debian packages, a virtual environment)

$(VENV)/.ready: requirements.txt pyproject.toml scripts/setup src/kubewright/lab/programs.txt
	@scripts/setup $(VENV)

lab: setup ## Three machines and a cluster on them, from nothing
	@python -m kubewright.lab -i $(INVENTORY) up
	@ansible-playbook site.yml -i $(INVENTORY)
	@python -m kubewright.report -i $(INVENTORY)

down: setup ## Remove the machines of the lab
	@python -m kubewright.lab -i $(INVENTORY) down

lint: setup ## Linters
	@scripts/lint

test: setup ## Everything that CI runs
	@scripts/test

bench: setup ## Measure installs and re-runs, write docs/benchmarks.md
	@python -m kubewright.bench -i $(INVENTORY)

bench-pki: setup ## Compare kubepki with cfssl, write docs/benchmarks.md
	@python tests/pki/bench.py

bench-flanneld: setup ## Measure flanneld, write docs/benchmarks.md
	@python tests/netns/bench_flanneld.py

.PHONY: help setup lab down lint test bench bench-pki bench-flanneld
