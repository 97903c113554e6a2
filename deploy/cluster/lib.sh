# Names, addresses and places of the cluster; sourced by the scripts beside it.
# shellcheck shell=bash disable=SC2034,SC2154

# Everything kernel-wide bears this prefix, and nothing without it is touched.
prefix=duet-kube
nodes=(node-1 node-2)
machines=(control "${nodes[@]}")

# The machines share one /24, this machine among them. Each node is the way to
# its pods; Services exist on the nodes alone.
host_address=10.73.0.254
pod_range=10.74.0.0/16
service_range=10.75.0.0/16
kubernetes_address=10.75.0.1
dns_address=10.75.0.10
declare -A address=([control]=10.73.0.1 [node-1]=10.73.0.11 [node-2]=10.73.0.12)
declare -A pods=([node-1]=10.74.1.0/24 [node-2]=10.74.2.0/24)
api_server=${address[control]}:6443

# What is built outlives clusters; what a cluster writes goes with it. By sudo,
# the cache is still that of whoever built it.
home=$HOME
[ -z "${SUDO_USER:-}" ] || home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
cache=${DUET_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/duet-cluster}
state=/var/lib/$prefix
kubeconfig=$state/kubeconfig
lock=/run/lock/$prefix.lock

pause_image=duet-kube/pause:1
dns_image=duet-kube/coredns:1
probe_image=duet-kube/probe:1

say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || fail 'namespaces, mounts and cgroups need root: call it with sudo'; }

kubectl() { KUBECONFIG=$kubeconfig KUBECACHEDIR=$state/kubectl "$cache/bin/kubectl" "$@"; }

# The pid, seen from here, of a machine's first process; nothing if it is down.
# Pods of its network have first processes too, one level further down.
machine_pid() {
  local pid
  [ -e "/run/netns/$prefix-$1" ] || return 0
  for pid in $(ip netns pids "$prefix-$1" 2>/dev/null); do
    if awk '$1 == "NSpid:" { found = NF == 3 && $NF == 1 } END { exit !found }' "/proc/$pid/status" 2>/dev/null; then
      echo "$pid"
      return 0
    fi
  done
}

# Keeps a component of this machine running, as an init system would. For the
# first processes of machines: their end is what ends these loops.
keep() {
  local name=$1
  shift
  while :; do
    "$@" || echo "$name ended with status $?"
    sleep 1
  done >>"$logs/$name.log" 2>&1 &
}

# cgroup hierarchies: several with version 1, one with version 2.
hierarchies() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
  else
    find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d
  fi
}

# Moves this process to the machine's own cgroups, beside which its kubelet puts
# the pods: /duet-kube/MACHINE/machine and /duet-kube/MACHINE/kubepods.
enter_cgroups() {
  local hierarchy cgroup part file
  for hierarchy in $(hierarchies); do
    cgroup=$hierarchy
    for part in "$prefix" "$1" machine; do
      # Version 2 hands a controller down only where a parent says so.
      if [ "$hierarchy" = /sys/fs/cgroup ]; then
        sed 's/[a-z][a-z]*/+&/g' "$cgroup/cgroup.controllers" >"$cgroup/cgroup.subtree_control" || true
      fi
      cgroup=$cgroup/$part
      mkdir -p "$cgroup"
      # Version 1 starts with no processor at all.
      for file in cpuset.cpus cpuset.mems; do
        if [ "$hierarchy" != /sys/fs/cgroup ] && [ -e "$cgroup/$file" ]; then
          cat "${cgroup%/*}/$file" >"$cgroup/$file"
        fi
      done
    done
    echo 0 >"$cgroup/cgroup.procs"
  done
}

# A file of conf/ with its @NAMES@ filled in.
render() {
  local file=$1 name text
  text=$(<"$here/conf/$file")
  shift
  for name in "$@"; do text=${text//@${name%%=*}@/${name#*=}}; done
  printf '%s\n' "$text"
}
