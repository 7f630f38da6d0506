# Two commands for a stranger: `make demo` shows the whole job, `make test` proves it. `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)

HARNESS := cargo run --quiet --package harness --bin harness -- run --
SECONDS := 60
ROWS := 10000000
RUNS := 5
ONLY :=
RUNNER := $(shell command -v cargo-nextest >/dev/null 2>&1 && echo 'nextest run' || echo 'test')

.PHONY: help setup demo try test stress cost bench check fmt lint deny build clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## Install what the local stack needs (PostgreSQL, OpenSSH, moto, cargo-lambda), if it is missing
	@tests/setup.sh

demo: setup ## Show the whole job on a local PostgreSQL, bastion and S3
	@echo "building (some minutes the first time)" >&2
	@cargo build --bin bastion-sync
	@cargo build --package harness --bins
	@$(HARNESS) cargo run --quiet --package harness --bin demo

# The names come by the environment, where make puts what its command line sets: they may hold quotes and spaces.
try: ## Sync your own tables into ./out: CONFIG=configuration.json TABLES=public.users
	@[ -n "$${CONFIG:-}" ] || { echo "usage: make try CONFIG=configuration.json [TABLES=public.users,sales.*] [OUT=out]" >&2; exit 2; }
	@echo "building (some minutes the first time)" >&2
	@cargo build --quiet --release --bin bastion-sync
	@cargo build --quiet --package harness --bin try
	@FUNCTION=$(CURDIR)/target/release/bastion-sync target/debug/try "$$CONFIG" "$${TABLES:-}" "$${OUT:-out}"

test: setup ## Run every test against the local stack
	@cargo build --package harness --bins
	@cargo build --release --bin bastion-sync
	@cargo $(RUNNER) --workspace --no-run
	@BASTION_SYNC_BINARY=$(CURDIR)/target/release/bastion-sync $(HARNESS) cargo $(RUNNER) --workspace

stress: setup ## Run the cursor against hostile writers for SECONDS=60; the last line counts what was lost and repeated
	@cargo build --package harness --bin harness
	@cargo test --quiet --test it --no-run
	@mkdir -p target; status=0; STRESS_SECONDS=$(SECONDS) $(HARNESS) cargo test --quiet --test it stress:: -- --nocapture 2>&1 \
		| tee target/stress.log || status=$$?; \
		awk '/ lost, [0-9]+ repeated;/ { for (i = 2; i <= NF; i++) { if ($$i == "lost,") lost += $$(i-1); \
		if ($$i == "repeated;") repeated += $$(i-1) } runs++ } \
		END { printf "%d runs: %d lost, %d repeated\n", runs, lost, repeated; exit runs != 3 || lost + repeated > 0 }' \
		target/stress.log && exit $$status

cost: setup ## Measure what the cursor costs the server, on ROWS=10000000
	@cargo build --release --bin bastion-sync
	@cargo build --package harness --bins
	@ROWS=$(ROWS) FUNCTION=$(CURDIR)/target/release/bastion-sync $(HARNESS) target/debug/cost

bench: setup ## Measure what is deployed against psql through ssh -L, and beside other tools (RUNS=5; ONLY=backfill: a part)
	@cargo lambda build --release
	@cargo lambda build --release --output-format zip
	@cargo build --profile bench --package benches
	@benches/setup.sh
	@FUNCTION=target/lambda/bastion-sync/bootstrap RUNS=$(RUNS) ONLY="$(ONLY)" target/release/benches

check: fmt lint test deny ## Formatting, lints, tests, licences and advisories

fmt:
	@cargo fmt --all --check

lint:
	@cargo clippy --workspace --all-targets -- --deny warnings

deny: ## Check licences, sources and advisories (installs cargo-deny; DENY=--offline takes the advisories at hand)
	@command -v cargo-deny >/dev/null 2>&1 || cargo install --locked cargo-deny
	@cargo deny $(DENY) check --hide-inclusion-graph

build: setup ## Build the Lambda packages for x86-64 and Graviton: target/lambda
	@cargo lambda build --release --output-format zip
	@cp target/lambda/bastion-sync/bootstrap.zip target/lambda/bootstrap-x86_64.zip
	@cargo lambda build --release --arm64 --output-format zip
	@cp target/lambda/bastion-sync/bootstrap.zip target/lambda/bootstrap-arm64.zip
	@ls -l target/lambda/*.zip

clean: ## Remove what was built and the virtual environment
	@rm -rf target .venv
