# taskmeta: `make help` lists the targets.
.DEFAULT_GOAL := build
SHELL := /bin/bash
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO_BUILD = CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help build demo test check fmt lint unit soak fuzz bench prerequisites clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the static programs bin/ecs-ipam, bin/ecs-bridge and bin/ecs-resolver.
	$(GO_BUILD) -o bin/ecs-ipam ./plugins/ecs-ipam
	$(GO_BUILD) -o bin/ecs-bridge ./plugins/ecs-bridge
	$(GO_BUILD) -o bin/ecs-resolver ./resolver

demo: prerequisites build ## Show the main job on a host of its own (KEEP=1 leaves it up to explore).
	@go run ./internal/demo $(if $(KEEP),-keep)

test: prerequisites fmt lint build ## Run every test, on real namespaces and a real Docker daemon (needs root).
	go test -race -timeout 10m ./...

check: fmt lint unit ## Format, vet, lint and quick tests; needs neither root nor Docker.

fmt:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt: $$unformatted" >&2; exit 1; }

lint:
	go vet ./...
	go tool staticcheck ./...

unit:
	go test -race -short -timeout 5m ./...

soak: prerequisites build ## Run the storms and floods in full; takes up to an hour.
	TASKMETA_SOAK=1 go test -timeout 90m -count=1 ./...

fuzz: ## Run every fuzz target for a minute.
	@set -e; for package in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
	    echo "$$package $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime 60s $$package; \
	  done; \
	done

bench: prerequisites build ## Print each figure beside its peer, measured in one run.
	go run ./internal/bench

prerequisites:
	@.ci/prerequisites

clean: ## Remove what was built.
	rm -rf bin dist
