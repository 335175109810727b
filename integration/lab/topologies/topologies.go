// Package topologies holds the topology files that come with the lab.
package topologies

import _ "embed"

// Demo is the cluster of make demo: four nodes in two subnets, a pod on each worker.
//
//go:embed demo.yaml
var Demo []byte

// DualStack is the same cluster with IPv4 and IPv6.
//
//go:embed dualstack.yaml
var DualStack []byte

// ToR is a cluster whose nodes can peer with the router between their racks, and a client behind it.
//
//go:embed tor.yaml
var ToR []byte
