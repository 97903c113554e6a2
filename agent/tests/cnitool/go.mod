// Pins cnitool and what it needs: agent/tests/cni.rs builds it.
module duet.dev/cnitool

go 1.21

require github.com/containernetworking/cni v1.2.3
