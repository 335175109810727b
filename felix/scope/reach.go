// Package scope decides what one pod is told of the node's state: its own endpoint, what applies to it, in order, and the sets
// that this names. It is pure: it reads package state and does no I/O.
package scope

import (
	"cmp"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

// Pod is who is told.
type Pod struct {
	Namespace, Name string
	UID             string // empty: any
}

// ID is the id of the pod's endpoint. A pod with several interfaces is told of the first one, as by Calico.
func (p Pod) ID() string {
	return view.EndpointID{Orchestrator: "k8s", Workload: p.Namespace + "/" + p.Name, Endpoint: "eth0"}.String()
}

func (p Pod) key() view.Key { return view.Key{Kind: view.KindWorkloadEndpoint, ID: p.ID()} }

// Reach returns the keys of what concerns a pod, in ascending order of kind and none twice, whether all of it is known or
// not. Without the pod itself that is nothing.
func Reach(s *state.State, pod Pod) []view.Key {
	w, ok := s.Workloads[pod.ID()]
	if !ok || pod.UID != "" && w.UID != "" && w.UID != pod.UID { // one that had the pod's name before, or has it after
		return nil
	}
	out := []view.Key{pod.key()}
	if w.PolicyList != "" {
		out = append(out, view.Key{Kind: view.KindPolicyList, ID: w.PolicyList})
	}
	for _, id := range policies(s.Lists[w.PolicyList]) {
		out = append(out, view.Key{Kind: view.KindPolicy, ID: id})
		for _, set := range sets(s.Policies[id]) {
			out = append(out, view.Key{Kind: view.KindIPSet, ID: set})
		}
	}
	slices.SortFunc(out, compare)
	return slices.Compact(out)
}

// Deciders are the policies and profiles that may decide on what a pod receives, with the number of their ingress rules.
func Deciders(s *state.State, pod Pod) map[string]int {
	out := map[string]int{}
	for _, key := range Reach(s, pod) {
		if p, ok := s.Policies[key.ID]; ok && key.Kind == view.KindPolicy {
			out[key.ID] = len(p.Ingress)
		}
	}
	return out
}

// policies are the ids of all policies and profiles of a list.
func policies(l view.PolicyList) (out []string) {
	for _, t := range l.Tiers {
		out = slices.Concat(out, t.Ingress, t.Egress)
	}
	return slices.Concat(out, l.Profiles)
}

// sets are the ids of all sets that a policy names.
func sets(p view.Policy) (out []string) {
	for _, rules := range [][]view.Rule{p.Ingress, p.Egress} {
		for i := range rules {
			for _, m := range []*view.Match{&rules[i].Source, &rules[i].Destination} {
				for _, ids := range [][]string{m.Sets, m.NotSets, m.IPPortSets, m.NamedPorts, m.NotNamedPorts} {
					out = append(out, ids...)
				}
			}
		}
	}
	return out
}

func compare(a, b view.Key) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) }
