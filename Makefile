# One way to do each thing. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# name of the binary and its package
BINARIES := typha:typha kube-controllers:kube-controllers felix:felix confd:confd bird:bird calicoctl:calicoctl calico-node:node csi-node-driver:csi \
            calico:cni/calico calico-ipam:cni/calico-ipam lab:integration/lab/cmd/lab k8s:integration/k8s/cmd/k8s vm:integration/vm/cmd/vm scale:integration/scale/cmd/scale
TOOL     := go tool -modfile=tools.mod
# the flags of everything that is run: one set, so that compiled packages are shared between binaries and suites
BUILD    := -trimpath
# No program here is linked with what debuggers want to know, and to compile that is a sixth of a compiler's work, to link it a
# third of a linker's. Tests that build programs do it with the same flags.
LEAN     := -gcflags=all=-dwarf=false -ldflags=-s
export GOFLAGS := $(strip $(filter-out $(LEAN),$(GOFLAGS)) $(LEAN))
# packages with suites that need root and network namespaces; those of GUESTS have a second kernel
GUESTS   := ./integration/vm/
SUITES   := $(filter-out $(GUESTS),$(sort $(dir $(shell grep -rl --include='*_test.go' '^//go:build lab' .))))
# the promises that are proven on whole clusters take as long as all others together
CLUSTERS := ./integration/suite/
# and this one waits for timers of BGP
SPEAKER  := ./bird/
# those that start an API server, which takes minutes to build
SERVED   := $(filter $(SUITES),./integration/k8s/ $(sort $(dir $(shell grep -rl --include='*_test.go' 'muslin/integration/k8s"' .))))
# what each driver of felix does in a kernel
NODES    := $(filter ./felix/%,$(SUITES))
# suites side by side, the longest first; the one of whole clusters is five, of which one waits for kube-proxy to be built
LANES    := lab-clusters-3 lab-bird lab-leaks lab-others lab-clusters-1 lab-felix lab-clusters-2 lab-proxy lab-served
# packages with tests of random changes, which go all the way only without the race detector
RANDOM_TESTS := $(sort $(dir $(shell grep -rl --include='*_test.go' 'muslin/internal/thorough"' .)))
# Debian keeps some tools where an ordinary user's PATH does not look
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## every binary, into bin/ (about 5 minutes the first time, seconds after)
	@mkdir -p bin
	@for b in $(BINARIES); do \
		echo "build bin/$${b%%:*}"; \
		CGO_ENABLED=0 go build $(BUILD) -o bin/$${b%%:*} ./$${b##*:}; \
	done

.PHONY: images
images: ## container images, as archives for ctr -n k8s.io images import, into bin/images (2 minutes); IMAGES=node for one, TAG=v1 for another tag
	CGO_ENABLED=0 go run $(BUILD) ./deploy/image/cmd/images -o bin/images $(if $(TAG),-tag $(TAG)) $(IMAGES)

.PHONY: demo
demo: demo-deps build ## a cluster of four nodes on this machine, every routing mode shown with its packets (20 seconds once built)
	@bin/lab demo

.PHONY: walkthrough
walkthrough: demo-deps build ## docs/walkthrough.md anew, from what a real cluster does; needs root for IP-in-IP (20 seconds once built)
	@[ "$$(id -u)" = 0 ] || { echo "make walkthrough needs root: the page has to show IP-in-IP, which a user namespace may not have; run it with sudo" >&2; exit 1; }
	bin/lab walkthrough --doc docs/walkthrough.md

.PHONY: demo-deps
demo-deps:
	@integration/deps/install demo

.PHONY: k8s-up
k8s-up: k8s-deps build ## a Kubernetes of three machines on this one, with Muslin in it; needs root (the first time 10 minutes, a minute once built)
	@$(MAKE) -s images
	@bin/k8s up

.PHONY: k8s-down
k8s-down: ## remove it
	@bin/k8s down

.PHONY: k8s-deps
k8s-deps:
	@[ "$$(id -u)" = 0 ] || { echo "a Kubernetes on this machine needs root: it runs containers; use sudo" >&2; exit 1; }
	@integration/deps/install k8s

# gobgp keeps settings in package variables, which two speakers in one test would both write: not in a process of ours
RACE := -race -gcflags=github.com/osrg/gobgp/v3/pkg/server=-race=false

.PHONY: unit
unit: ## tests that need no root, with the race detector (1 to 5 minutes on two cores once compiled)
	@# Many packages and tests wait for timers and sockets, so more run at a time than there are cores. Tests of random
	@# changes go a part of the way here, and all of it in make property. Half of the work is to
	@# link the test binaries. Vet is part of make lint.
	@# The race detector rests for a second at the end of each process, for reports that are under way; none is then.
	GORACE=atexit_sleep_ms=10 go test $(RACE) -vet=off -timeout 30m -p 4 -parallel 8 $(if $(RUN_BY),-exec '$(RUN_BY)') ./...

.PHONY: property
property: ## tests of random changes by the thousand, without the race detector (3 minutes)
	CGO_ENABLED=0 go test $(BUILD) -vet=off -timeout 30m $(if $(RUN_BY),-exec '$(RUN_BY)') $(RANDOM_TESTS)

.PHONY: nightly
nightly: ## a million courses of events of nodes that lease addresses, and a million verdicts of each rule driver (20 minutes on two cores)
	CGO_ENABLED=0 go test $(BUILD) -vet=off -timeout 2h -v ./ipam/lease/sim -courses 1000000
	CGO_ENABLED=0 ORACLE_VERDICTS=1000000 go test $(BUILD) -vet=off -timeout 2h -v -run '^TestRulesMeanWhatPolicyMeans$$' ./integration/oracle

# fuzzers, as package:target:time; what one finds stays in its package's testdata, and all that was found is tried in make unit.
# CI runs those of rules, and not those of what comes from the wire, for which all that they import is compiled once more
FUZZERS  := integration/oracle:FuzzSelectors:30s integration/oracle:FuzzPolicies:30s integration/oracle:FuzzRules:30s \
            felix/dataplane/rules/iptables:FuzzParseSave:10s
WIRE     := ipam/lease:FuzzDecode:15s deploy/render:FuzzParse:15s typha/server:FuzzRequests:15s typha/client:FuzzFrames:10s \
            felix/server:FuzzRequests:10s bird/server:FuzzRequests:10s bird/server:FuzzConfig:10s cni/conf:FuzzParse:10s

.PHONY: fuzz
fuzz: ## fuzzers of selectors, policies, rule renderers, iptables-save, requests and frames; FUZZTIME=10m for longer than a short while each (8 minutes)
	@# Without bounds a minute goes by on each input that is to be made smaller.
	@for f in $(FUZZERS) $(WIRE); do \
		IFS=: read -r package target time <<<"$$f"; \
		echo "fuzz $$package $$target"; \
		CGO_ENABLED=0 go test $(BUILD) -vet=off -run '^$$' -fuzz "^$$target\$$" -fuzztime $${FUZZTIME:-$$time} -fuzzminimizetime 1x ./$$package; \
	done

.PHONY: test
test: test-deps build root ## everything that CI runs: suites on real kernels, unit, random changes, fuzzers, storms (three quarters of an hour on two cores)
	@CGO_ENABLED=0 go list $(BUILD) -tags lab -export -test -deps $(SUITES) >/dev/null # once, and not in each lane
	@$(MAKE) -s -j8 behind guests-at-last # so seven suites at a time

.PHONY: test-deps
test-deps:
	@integration/deps/install test

# Suites mostly wait, and what they wait for must not come late: they have the processors when they need them, several at a time.
# An emulated kernel needs all of a processor, or what runs in it is late: so guests come last, with nothing but idle priority beside.
.PHONY: k8s-after-lanes guests-at-last
k8s-after-lanes: $(filter-out lab-served,$(LANES)) storm-test
	@$(MAKE) -s k8s-test
guests-at-last: k8s-after-lanes lab-served
	@$(MAKE) -s guest-test

# What takes processors and can wait has what is left of them, at idle priority. First come the programs of Kubernetes, in
# the order in which suites start them, and a little above that, since suites wait for them. Tests that wait for each other's
# messages, or start an etcd, must not rest for seconds: they are compiled at idle priority, and run above it.
.PHONY: behind
behind:
	nice -n 5 bin/k8s build kube-proxy kube-apiserver
	nice -n 5 bin/k8s build
	chrt -i 0 go build -C deploy/tools tool
	@chrt -i 0 $(MAKE) -s property RUN_BY='chrt -o 0 nice -n 15'
	@chrt -i 0 $(MAKE) -s fuzz WIRE=
	@chrt -i 0 $(MAKE) -s gen-check
	@chrt -i 0 $(MAKE) -s unit RUN_BY='chrt -o 0 nice -n 15'

.PHONY: lab-test
lab-test: root ## suites with real namespaces, packets, etcd and BIRD; needs root (20 minutes)
	@$(MAKE) -s -j7 $(LANES)

LAB := CGO_ENABLED=0 go test $(BUILD) -vet=off -tags lab -p 1 -timeout 60m

.PHONY: $(LANES)
lab-clusters-1:
	$(LAB) -run '^Test[AB]' -skip '^TestBesideKubeProxy$$' $(CLUSTERS)
lab-proxy:
	$(LAB) -run '^TestBesideKubeProxy$$' $(CLUSTERS)
lab-clusters-2:
	$(LAB) -run '^Test[C-K]' $(CLUSTERS)
lab-clusters-3:
	$(LAB) -skip '^Test[A-K]|^TestLeaks$$' $(CLUSTERS)
lab-leaks:
	$(LAB) -run '^TestLeaks$$' $(CLUSTERS)
lab-bird:
	$(LAB) $(SPEAKER)
lab-felix:
	$(LAB) $(NODES)
lab-others:
	$(LAB) $(filter-out $(CLUSTERS) $(SPEAKER) $(NODES) $(SERVED),$(SUITES))
lab-served:
	$(LAB) $(filter-out $(CLUSTERS) $(NODES),$(SERVED))

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "the suites need root: they make network namespaces; run make with sudo" >&2; exit 1; }

.PHONY: guest-test
guest-test: root ## what this machine's kernel may lack, in a second one that is emulated; needs root (20 minutes)
	CGO_ENABLED=0 go test $(BUILD) -vet=off -tags lab -timeout 60m $(GUESTS)

.PHONY: storm-test
storm-test: test-deps build ## a short share of the storms, 20 clients (4 minutes)
	CGO_ENABLED=0 go test $(BUILD) -vet=off -tags storm -timeout 15m ./integration/storm

.PHONY: leaks
leaks: test-deps build root ## felix, and what it puts into the kernel, watched for leaks for an hour under churn, with each rule driver; needs root
	MUSLIN_LEAK_WATCH=1h $(LAB) -timeout 2h -v -run '^TestLeaks$$' $(CLUSTERS)

STORM := -clients 1000 -for 10m -every 10s -rate 200 -watch 1h
NODE_STORM := 10m

.PHONY: storm
storm: test-deps build root ## eight nodes whose processes are killed under traffic; then three typhas with 1,000 clients through kills, frozen datastores and bad networks, judged by what each client is sent; needs root (2 hours); STORM="-clients 100 -watch 10m" NODE_STORM=2m for less
	MUSLIN_NODE_STORM=$(NODE_STORM) $(LAB) -timeout 5h -v -run '^TestNodeStorm$$' $(CLUSTERS)
	CGO_ENABLED=0 go test $(BUILD) -vet=off -tags storm -timeout 5h -v ./integration/storm -args $(STORM)

.PHONY: k8s-test
k8s-test: k8s-deps build images ## Muslin in a real Kubernetes, and the manifests by kustomize and Helm; needs root (10 minutes; the first time 20 more to build Kubernetes and Helm)
	CGO_ENABLED=0 go test $(BUILD) -vet=off -tags k8s -p 1 -timeout 60m ./integration/k8s/suite ./integration/k8s/cluster ./deploy/render

.PHONY: bench
bench: build ## figures of docs/performance.md, as lines "BENCH name value unit"; BENCH=demo|dataplane|dataplane6|ipip|change|repair|cni|bgp|policy|typha|felix|k8s for one area; SIZE=small|medium|large of typha and felix
	@[ -n "$(filter typha felix k8s,$(BENCH))" ] || bin/lab bench $(BENCH)
	@[ -n "$(filter-out k8s,$(BENCH))" ] || { integration/deps/install k8s && $(MAKE) -s images && bin/k8s bench; }
	@[ -n "$(filter-out dataplane,$(BENCH))" ] || $(MAKE) -s bench-module
	@[ -n "$(filter-out cni,$(BENCH))" ] || CGO_ENABLED=0 go test $(BUILD) -run '^$$' -bench Assign ./ipam/alloc | \
		awk '/^BenchmarkAssign/ { split($$1, name, /[\/-]/); for (i = 3; i < NF; i += 2) if ($$(i+1) == "addresses/s") print "BENCH ipam.assign." name[2], $$i, $$(i+1) }'
	@[ -n "$(filter-out policy,$(BENCH))" ] || CGO_ENABLED=0 go test $(BUILD) -run '^$$' -bench Policy100k ./typha/compute | \
		awk '/^BenchmarkPolicy100k/ { split($$1, name, /[\/-]/); for (i = 3; i < NF; i += 2) if ($$(i+1) == "ns/op") print "BENCH policy.compute." name[2], $$i/1e6, "ms"; else { split($$(i+1), unit, "/"); print "BENCH policy.compute." name[2] "." unit[1], $$i, $$(i+1) } }'
	@for area in $(if $(BENCH),$(filter typha felix,$(BENCH)),typha felix); do bin/scale bench $$area --size $(or $(SIZE),large); done

# IP-in-IP by the module's tunl0, beside the same by hand, in the second kernel: only ratios tell anything there
.PHONY: bench-module
bench-module: build
	@CGO_ENABLED=0 go build $(BUILD) -o bin/stock/ $(addprefix github.com/containernetworking/plugins/plugins/,main/ptp ipam/host-local)
	@bin/vm --module ipip -- bin/lab bench --plugins $(CURDIR)/bin/stock ipip | sed 's/^\(BENCH dataplane\.[a-z0-9]*\)\.ipip/\1.ipip.module/'

.PHONY: lint
lint: ## golangci-lint, buf, and whether generated files are up to date (5 minutes the first time)
	$(TOOL) golangci-lint run ./...
	cd proto && go tool -modfile=../tools.mod buf lint
	@sums() { cat proto/muslin/*/v1/*.go | sha256sum; }; \
	before=$$(sums); $(MAKE) -s gen-proto; \
	[ "$$before" = "$$(sums)" ] || { echo "protobuf code was out of date; make gen has mended it: commit the result" >&2; exit 1; }
	@$(MAKE) -s gen-check

.PHONY: gen gen-proto
gen: gen-proto gen-api ## everything generated: protobuf code, deep copies, CRDs
gen-proto:
	cd proto && go tool -modfile=../tools.mod buf generate

# deep copies and CRDs, into INTO
INTO := .
.PHONY: gen-api gen-check
gen-api:
	@mkdir -p $(INTO)/api $(INTO)/deploy/chart/crds
	$(TOOL) controller-gen object paths=./api output:object:dir=$(INTO)/api
	rm -f $(INTO)/deploy/chart/crds/*.yaml
	$(TOOL) controller-gen crd:allowDangerousTypes=true paths=./api output:crd:dir=$(INTO)/deploy/chart/crds
	@# kinds that Kubernetes objects stand for have no CRD
	cd $(INTO)/deploy/chart/crds && rm -f $(foreach k,nodes workloadendpoints profiles livemigrations,projectcalico.org_$(k).yaml)
	@# controller-gen cannot say that the items of a list may be null, as free addresses of a block are
	sed -i '/^              allocations:/,/^                type: array/s/^                  type: integer/                  nullable: true\n&/' $(INTO)/deploy/chart/crds/projectcalico.org_ipamblocks.yaml
gen-check: # beside suites that read the CRDs, so they are generated elsewhere
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(MAKE) -s gen-api INTO="$$fresh"; \
	diff "$$fresh/api/zz_generated.deepcopy.go" api && diff -r -x kustomization.yml "$$fresh/deploy/chart/crds" deploy/chart/crds || \
		{ echo "deep copies or CRDs are out of date: run make gen, and commit the result" >&2; exit 1; }

.PHONY: gen-bpf
gen-bpf: ## bytecode of IP-in-IP; needs clang, llvm and libbpf-dev (apt-get install), which nothing else does
	clang -O2 -g -Wall -Werror -target bpfel -mcpu=v2 -I/usr/include/$$(uname -m)-linux-gnu \
		-fdebug-prefix-map=$(CURDIR)=. -c felix/dataplane/ipip/bpf/ipip.c -o felix/dataplane/ipip/bpf/ipip.o
	llvm-strip -g felix/dataplane/ipip/bpf/ipip.o # what remains of -g is BTF, which describes the maps
	cd felix/dataplane/ipip/bpf && sha256sum ipip.c > ipip.sum # a test finds bytecode that is older than its source

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
