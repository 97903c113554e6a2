# Thin on purpose: every target is a few commands that can be typed by hand.
CARGO_FLAGS ?= -j2
BENCH_FLAGS ?=
# "processes" runs anywhere as root; "kind" where kind is installed.
CLUSTER ?= processes
# What is installed: sidecar, agent, both or none (deploy/overlays).
OVERLAY ?= both
# Empty: images without a daemon; docker or podman: by deploy/Containerfile.
ENGINE ?=
# A folder whose programs the images are to have, as target/release, for tests.
PROGRAMS ?=
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help bench smoke full publish build test lint deps ebpf ebpf-check ebpf-deps clean \
	cluster cluster-down cluster-check cluster-deps images images-load install uninstall test-kubernetes scale

help:               ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

bench: deps build   ## the quick comparison on this machine; prints the verdict and the report's path
	$(SUDO) target/release/duet-bench run --profile quick $(BENCH_FLAGS)

smoke: deps build   ## two minutes, one block: does everything work? makes no claims
	$(SUDO) target/release/duet-bench run --profile smoke $(BENCH_FLAGS)

full: deps build    ## an hour, every scenario; on a machine with nothing else to do
	$(SUDO) target/release/duet-bench run --profile full --out out/full $(BENCH_FLAGS)

publish:            ## packs out/full into bench/results, named after its day
	mkdir -p bench/results
	gzip -9nc out/full/results.json > bench/results/$$(sed -n 's/^  "started": "\([0-9-]*\)T.*/\1/p' out/full/results.json).json.gz
	ls -l bench/results

build:              ## everything, optimised, in one go, so that all modes carry the same core
	cargo build --release --workspace --locked $(CARGO_FLAGS)

test: deps          ## every test; those that need root say so when they are skipped
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

# One test binary after another: each has the cluster to itself.
test-kubernetes:    ## the tests that need a cluster with Duet on it; KUBECONFIG names it
	@[ -n "$$KUBECONFIG" ] || { echo 'which cluster? export KUBECONFIG=FILE; make cluster says which' >&2; exit 64; }
	cargo test --workspace --locked $(CARGO_FLAGS) --no-fail-fast \
	  --test crd --test injector_kube --test kube_source --test kube_identity --test kube_status --test kube_trouble \
	  --test kube_life --test manifests --test kubernetes --test kubectl_duet

scale:              ## a mesh of ten thousand simulated pods in the cluster that KUBECONFIG names: figures, minutes
	cargo test --release --workspace --locked $(CARGO_FLAGS) --test kube_scale -- --ignored --nocapture

uninstall:          ## takes it out again; deploy/README.md says what to do before
	kubectl delete -k deploy/overlays/$(OVERLAY) --ignore-not-found
