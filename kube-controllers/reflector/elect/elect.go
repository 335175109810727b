// Package elect decides which nodes reflect routes, and by which steps the cluster goes from one set-up of sessions to
// another without losing a route. It is pure: the outcome depends on what is stored, and on what the caller has seen of
// time, and on nothing else.
package elect

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
)

// Candidate is a node that may reflect.
type Candidate struct {
	Name string
	Zone string // empty: unknown, which is a zone like any other
	// Fit says that it may be chosen now. One that is not, but was chosen before, is kept: whoever is away for a moment is
	// no reason for a new choice. Nodes that are lost are no candidates at all.
	Fit bool
}

// Choose picks count reflectors, or as many as there are. Whoever reflects already stays. Places that are free go to the zone
// with the fewest reflectors, and in it to the node of the highest rank; ranks follow from names alone (rendezvous
// hashing), so that everyone who computes comes to the same, and the coming of other nodes changes little. The result is
// sorted.
func Choose(all []Candidate, now []string, count int) []string {
	chosen := map[string]Candidate{}
	for _, c := range all {
		if slices.Contains(now, c.Name) {
			chosen[c.Name] = c
		}
	}
	for len(chosen) > count {
		delete(chosen, worst(chosen).Name)
	}
	for len(chosen) < count {
		next, ok := best(all, chosen)
		if !ok {
			break
		}
		chosen[next.Name] = next
	}
	return slices.Sorted(maps.Keys(chosen))
}

// best is the candidate for the next place.
func best(all []Candidate, chosen map[string]Candidate) (Candidate, bool) {
	crowd := crowds(chosen)
	var out Candidate
	found := false
	for _, c := range all {
		if _, is := chosen[c.Name]; is || !c.Fit {
			continue
		}
		if !found || cmp.Or(cmp.Compare(crowd[c.Zone], crowd[out.Zone]), -byRank(c.Name, out.Name)) < 0 {
			out, found = c, true
		}
	}
	return out, found
}

// worst is who goes first: from the most crowded zone the one of the lowest rank.
func worst(chosen map[string]Candidate) Candidate {
	crowd := crowds(chosen)
	return slices.MinFunc(slices.Collect(maps.Values(chosen)), func(a, b Candidate) int {
		return cmp.Or(-cmp.Compare(crowd[a.Zone], crowd[b.Zone]), byRank(a.Name, b.Name))
	})
}

func crowds(chosen map[string]Candidate) map[string]int {
	n := map[string]int{}
	for _, c := range chosen {
		n[c.Zone]++
	}
	return n
}

func byRank(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) }

// rank is a number that has nothing to do with the order of names.
func rank(name string) uint64 {
	sum := sha256.Sum256([]byte("reflector " + name))
	return binary.BigEndian.Uint64(sum[:])
}
