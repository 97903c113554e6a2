module duet.dev/cluster/tools

go 1.26.0
