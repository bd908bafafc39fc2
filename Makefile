# taskmeta: `make help` lists the targets.
.DEFAULT_GOAL := build
SHELL := /bin/bash
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -s -w -X main.version=$(VERSION)
GO_BUILD = CGO_ENABLED=0 go build -trimpath -ldflags

.PHONY: help build demo test engines machines check fmt lint unit soak fuzz bench prerequisites clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the static programs bin/ecs-ipam, bin/ecs-bridge and bin/ecs-resolver.
	$(GO_BUILD) "$(LDFLAGS)" -o bin/ecs-ipam ./plugins/ecs-ipam
	$(GO_BUILD) "$(LDFLAGS)" -o bin/ecs-bridge ./plugins/ecs-bridge
	$(GO_BUILD) "$(LDFLAGS)" -o bin/ecs-resolver ./resolver

demo: prerequisites build ## Show the main job on a host of its own (KEEP=1 leaves it up to explore).
	@go run ./internal/dev/demo $(if $(KEEP),-keep)

test: prerequisites fmt lint build ## Run every test, on real namespaces and a real Docker daemon (needs root).
	go test -race -count=1 -timeout 15m ./...

engines: ## Run the tests that need Docker on that of Debian 14 (needs root).
	.ci/prerequisites engines
	internal/dev/testnet/tree.sh debian14
	TASKMETA_ENGINE=debian14 go test -count=1 -timeout 20m ./internal/docker ./internal/attach ./internal/dev/testnet ./internal/dev/e2e ./internal/dev/demo

machines: ## Install, use and purge the package on Debian 12 and 14, booted in qemu (needs root).
	.ci/prerequisites machines
	internal/dev/testnet/tree.sh debian12
	internal/dev/testnet/tree.sh debian14
	rm -rf $(DIST)/machines
	$(MAKE) deb DIST=$(DIST)/machines
	TASKMETA_DEB=$$(echo $(CURDIR)/$(DIST)/machines/*.deb) go test -tags machines -v -count=1 -timeout 40m ./internal/dev/machines

check: fmt lint unit ## Format, vet, lint and quick tests; needs neither root nor Docker.

fmt:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt: $$unformatted" >&2; exit 1; }

lint:
	go vet -tags machines ./...
	go vet -tags man ./resolver
	go tool staticcheck -tags machines ./...

unit:
	go test -race -short -timeout 5m ./...

soak: prerequisites build ## Run the storms and floods in full; takes up to an hour.
	TASKMETA_SOAK=1 go test -timeout 90m -count=1 ./...

fuzz: ## Run every fuzz target for a minute.
	@set -e; for package in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
	    echo "$$package $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime 60s -fuzzminimizetime 10x $$package; \
	  done; \
	done

bench: prerequisites build ## Print each figure beside its peer, measured in one run.
	go run ./internal/dev/bench/plugins
	go run ./internal/dev/bench/attach
	go run ./internal/dev/bench/resolver

prerequisites:
	@.ci/prerequisites

clean: ## Remove what was built.
	rm -rf bin dist

# What is packaged: the version that a package manager sorts by, and the time of its files.
DIST ?= dist
PACKAGE_VERSION := $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/+/g' | grep . || echo 0.0.0+$$(git rev-list --count HEAD 2>/dev/null || echo unknown))
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
# What runs here, whatever machine GOOS and GOARCH are to build for.
GO_RUN = CGO_ENABLED=0 GOOS=$$(go env GOHOSTOS) GOARCH=$$(go env GOHOSTARCH) go run
# The last version whose modules the Go module proxy has: v2.46 and later need one that it lacks.
NFPM = $(GO_RUN) github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0

.PHONY: deb image man

man:
	rm -rf $(DIST)/man
	mkdir -p $(DIST)/man
	$(GO_RUN) -tags man -ldflags "$(LDFLAGS)" ./resolver $(DIST)/man
	cp internal/packaging/man/*.8 $(DIST)/man
	gzip -9n $(DIST)/man/*.8

deb: build man ## Build the Debian package dist/*.deb.
	DIST=$(DIST) VERSION=$(PACKAGE_VERSION) ARCH=$$(go env GOARCH) \
	  $(NFPM) package --config internal/packaging/nfpm.yaml --packager deb --target $(DIST)/

# A tag has no +. The classic builder is in each Docker daemon, others are not; DOCKER_BUILDKIT=1 is for another GOARCH
# than the daemon's, which Debian 12's classic builder cannot build for.
IMAGE = taskmeta:$(subst +,-,$(PACKAGE_VERSION))
export DOCKER_BUILDKIT ?= 0

image: build ## Build the container image, in the Docker daemon and as dist/ecs-resolver.tar (docker load).
	mkdir -p $(DIST)
	docker build --quiet --platform linux/$$(go env GOARCH) --build-arg VERSION=$(PACKAGE_VERSION) \
	  --tag $(IMAGE) --file internal/packaging/Dockerfile bin
	docker save --output $(DIST)/ecs-resolver.tar $(IMAGE)
