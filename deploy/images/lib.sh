# What an image is called and says of itself; sourced by the scripts beside it.
# shellcheck shell=bash disable=SC2034

images=(control sidecar init agent bench)
version=$(awk -F'"' '/^\[/ { section = $0 } section == "[workspace.package]" && /^version/ { print $2 }' Cargo.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || revision+=-dirty
source=$(git config --get remote.origin.url || true)
