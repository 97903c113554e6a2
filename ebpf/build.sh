#!/bin/sh
# Builds the kernel programs into duet.bpf.o, which is checked in so that building
# the agent needs no BPF toolchain.
#
#   build.sh            writes duet.bpf.o, and duet.bpf.toolchain: what made it
#   build.sh --check    builds elsewhere and compares; exit 1 if the checked-in
#                       object is not what the source gives, 2 if that cannot be
#                       told here
#
# Needs bpf-linker 0.10.3 (cargo install bpf-linker --version 0.10.3 --locked),
# llvm-strip, and either
#   Debian's rustc-web and libstd-rust-web-dev-bpf, which have a core library for
#   BPF ready-made, or
#   a nightly toolchain with rust-src (rustup toolchain install nightly
#   --component rust-src).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=bpfel-unknown-none
object=$here/duet.bpf.o
recorded=$here/duet.bpf.toolchain

check=no
case "${1:-}" in
    '') ;;
    --check) check=yes ;;
    *) echo "build.sh: unknown argument $1: there is only --check" >&2; exit 64 ;;
esac

missing() {
    echo "build.sh: $1" >&2
    exit 2
}

command -v bpf-linker >/dev/null ||
    missing "no bpf-linker: cargo install bpf-linker --version 0.10.3 --locked"
strip=$(command -v llvm-strip || command -v llvm-strip-22 || command -v rust-strip) ||
    missing "no llvm-strip: apt-get install llvm"

if [ -d "/usr/lib/rustlib/$target" ] && [ -x /usr/bin/rustc ]; then
    RUSTC=/usr/bin/rustc
    # aya-ebpf uses features that stable compilers keep locked.
    RUSTC_BOOTSTRAP=1
    export RUSTC RUSTC_BOOTSTRAP
    compiler=$($RUSTC --version)
    toolchain= std=
elif compiler=$(rustc +nightly --version 2>/dev/null); then
    toolchain=+nightly std='-Z build-std=core'
else
    missing "no Rust for BPF: apt-get install rustc-web libstd-rust-web-dev-bpf, or rustup toolchain install nightly --component rust-src"
fi

made_by="$compiler
$(bpf-linker --version | head -n 1)"

# Not RUSTFLAGS: its separator is the space, which paths may have.
separator=$(printf '\037')
flags="-Clinker=bpf-linker${separator}-Cdebuginfo=2${separator}-Clink-arg=--btf"
flags="$flags${separator}--cfg=bpf_target_arch=\"x86_64\""
flags="$flags${separator}--remap-path-prefix=$here=/duet/ebpf"
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags="$flags${separator}--remap-path-prefix=$registry=/registry"
done
CARGO_ENCODED_RUSTFLAGS=$flags
CARGO_TARGET_DIR=${DUET_EBPF_TARGET:-$here/../target/ebpf}
export CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_DIR
unset RUSTFLAGS

cd "$here"
# shellcheck disable=SC2086 # both are lists of arguments
cargo $toolchain build --quiet --locked --release --features programs --target $target $std
built=$CARGO_TARGET_DIR/$target/release/duet-bpf
"$strip" --strip-debug -o "$built.o" "$built"

if [ $check = no ]; then
    cp "$built.o" "$object"
    printf '%s\n' "$made_by" > "$recorded"
    echo "wrote $(wc -c < "$object") bytes to ebpf/duet.bpf.o"
elif [ "$made_by" != "$(cat "$recorded")" ]; then
    echo "build.sh: duet.bpf.o was made by" >&2
    sed 's/^/    /' "$recorded" >&2
    echo "and here is another toolchain, which may rightly give other code:" >&2
    printf '%s\n' "$made_by" | sed 's/^/    /' >&2
    exit 2
elif cmp -s "$built.o" "$object"; then
    echo "ebpf/duet.bpf.o is what the source gives"
else
    echo "build.sh: ebpf/duet.bpf.o is not what the source gives: run make ebpf" >&2
    exit 1
fi
