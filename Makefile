# One way to do each thing. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# name of the binary and its package
BINARIES := typha:typha felix:felix confd:confd bird:bird calicoctl:calicoctl calico-node:node \
            calico:cni/calico calico-ipam:cni/calico-ipam lab:integration/lab/cmd/lab
TOOL     := go tool -modfile=tools.mod
# Debian keeps some tools where an ordinary user's PATH does not look
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## every binary, into bin/ (about 5 minutes the first time, seconds after)
	@mkdir -p bin
	@for b in $(BINARIES); do \
		echo "build bin/$${b%%:*}"; \
		CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o bin/$${b%%:*} ./$${b##*:}; \
	done

.PHONY: demo
demo: demo-deps build ## a cluster of four nodes on this machine: routes, sessions and packets shown (a minute)
	@bin/lab demo

.PHONY: demo-deps
demo-deps:
	@integration/deps/install demo

.PHONY: unit
unit: ## tests that need no root, with the race detector (under a minute once compiled)
	go test -race ./...

.PHONY: test
test: test-deps build unit lab-test ## everything that CI runs: unit, then the suites on real kernels (10 minutes)

.PHONY: test-deps
test-deps:
	@integration/deps/install test

.PHONY: lab-test
lab-test: ## suites with real namespaces, packets, etcd and BIRD; needs root (5 minutes)
	@[ "$$(id -u)" = 0 ] || { echo "make lab-test needs root: it makes network namespaces; run it with sudo" >&2; exit 1; }
	go test -tags lab -p 1 -timeout 20m ./...

.PHONY: bench
bench: build ## figures of docs/performance.md, as lines "BENCH name value unit"; BENCH=area for one area
	@bin/lab bench $(BENCH)

.PHONY: lint
lint: ## golangci-lint and buf
	$(TOOL) golangci-lint run ./...
	cd proto && go tool -modfile=../tools.mod buf lint

.PHONY: gen
gen: ## everything generated: protobuf code, deep copies, CRDs
	cd proto && go tool -modfile=../tools.mod buf generate
	$(TOOL) controller-gen object paths=./api
	$(TOOL) controller-gen crd paths=./api output:crd:dir=deploy/crds

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
