// Package scale loads a whole cluster onto one machine. It fills a real etcd with the objects of hundreds of nodes, has a real
// typha serve them to a thousand clients, changes objects at known rates, and measures what that takes: how long from a write to
// its delivery, how many bytes, how much CPU and memory of typha alone and of one felix.
//
// Everything but the nodes' kernels is real: typha is its own process, clients are typha/client over mutual TLS in processes of
// their own, and the core of felix is felix's, with a driver that takes notes where the kernel would be (felix.go). What is
// generated is a function of its shape, seed included.
package scale

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Shape says how large a cluster is.
type Shape struct {
	Nodes, Endpoints, Policies, Sets int
	// Local is how many of the endpoints are on the first node; 0 means as many as on any other.
	Local int
	Seed  uint64
}

// sizes are those that Calico was measured with.
var sizes = map[string]Shape{
	"small":  {Nodes: 100, Endpoints: 2_000, Policies: 200, Sets: 20},
	"medium": {Nodes: 500, Endpoints: 20_000, Policies: 1_000, Sets: 50},
	"large":  {Nodes: 2_000, Endpoints: 100_000, Policies: 5_000, Sets: 250},
}

// SizeOf is the shape that goes by a name.
func SizeOf(name string) (Shape, error) {
	if s, ok := sizes[name]; ok {
		s.Seed = 1
		return s, nil
	}
	return Shape{}, fmt.Errorf("size %q is none; use %s", name, strings.Join(slices.Sorted(maps.Keys(sizes)), ", "))
}

// What a shape must at least have, so that its parts can refer to each other.
const (
	leastPolicies = 8
	leastSets     = 2
)

// maxPerNode is how many endpoints a node may have: its blocks are counted, see World.block.
const maxPerNode = 400

// Validate tells what is too little or too much.
func (s Shape) Validate() error {
	switch most := max(s.Local, (s.Endpoints+max(s.Nodes, 1)-1)/max(s.Nodes, 1)); {
	case s.Nodes < 2 || s.Nodes > 20_000:
		return fmt.Errorf("nodes %d: give from 2 to 20,000", s.Nodes)
	case s.Endpoints < s.Nodes || most > maxPerNode:
		return fmt.Errorf("endpoints %d on %d nodes: give at least one and at most %d a node", s.Endpoints, s.Nodes, maxPerNode)
	case s.Policies < leastPolicies:
		return fmt.Errorf("policies %d: give at least %d", s.Policies, leastPolicies)
	case s.Sets < leastSets:
		return fmt.Errorf("sets %d: give at least %d", s.Sets, leastSets)
	case s.Local > s.Endpoints-s.Nodes:
		return fmt.Errorf("local %d: leave an endpoint for each of the %d nodes", s.Local, s.Nodes)
	}
	return nil
}
