// Package gone decides which Nodes are of machines that Kubernetes does not know any more, what else is theirs alone, and what
// the labels of the others should be. It is pure.
package gone

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
)

// AnnotationLabels is the annotation of Nodes with the labels that were copied last, as a JSON map. It tells them from those
// that a user has set.
const AnnotationLabels = "projectcalico.org/kube-labels"

// orchestrator is Kubernetes as Nodes refer to it.
const orchestrator = "k8s"

// KubernetesName is the name of a Node in Kubernetes; false if it is no node of Kubernetes.
func KubernetesName(n *api.Node) (string, bool) {
	for _, r := range n.Spec.OrchRefs {
		if r.Orchestrator == orchestrator && r.NodeName != "" {
			return r.NodeName, true
		}
	}
	return "", false
}

// Node is one that Kubernetes does not know any more.
type Node struct {
	*api.Node
	Kubernetes string       // its name there
	Own        []api.Object // what is to be deleted before it, in the order of keys
}

// Memory is what is remembered between looks: since when nodes are gone. The zero value remembers nothing.
type Memory struct{ since map[string]time.Time }

// Look returns the Nodes to be deleted, in order: those that Kubernetes has not had for as long as wait. It may be told of a
// node anew at once, as when a kubelet is set up again. others are what may be theirs. next is after which time to look again;
// 0 is when something changes.
func (m *Memory) Look(nodes []*api.Node, known func(name string) bool, others []api.Object, wait time.Duration, now time.Time) (list []Node, next time.Duration) {
	since := map[string]time.Time{}
	for _, n := range nodes {
		name, is := KubernetesName(n)
		if !is || known(name) {
			continue
		}
		began, before := m.since[n.Name]
		if !before {
			began = now
		}
		since[n.Name] = began
		if left := wait - now.Sub(began); left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		list = append(list, Node{Node: n, Kubernetes: name, Own: own(n.Name, others)})
	}
	m.since = since
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return list, next
}

// own are the objects that are of use to this node only.
func own(node string, others []api.Object) (list []api.Object) {
	for _, o := range others {
		is := false
		switch o := o.(type) {
		case *api.BGPPeer:
			is = o.Spec.Node == node
		case *api.FelixConfiguration, *api.BGPConfiguration:
			is = o.GetName() == "node."+node
		case *api.HostEndpoint:
			is = o.Spec.Node == node
		}
		if is {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b api.Object) int { return strings.Compare(api.KeyOf(a).String(), api.KeyOf(b).String()) })
	return list
}

// Labelled returns a copy of a Node with the labels that it has in Kubernetes, which win; nil if it has them. Those that it
// once had from there go; those that a user has set stay.
func Labelled(n *api.Node, kubernetes map[string]string) *api.Node {
	var before map[string]string
	if json.Unmarshal([]byte(n.Annotations[AnnotationLabels]), &before) != nil {
		before = nil // nobody knows what was copied; what is there stays
	}
	labels := maps.Clone(n.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.DeleteFunc(labels, func(k, v string) bool { return before[k] == v && has(before, k) && !has(kubernetes, k) })
	maps.Copy(labels, kubernetes)
	if kubernetes == nil {
		kubernetes = map[string]string{}
	}
	text, err := json.Marshal(kubernetes)
	if err != nil {
		panic("gone: labels are no JSON: " + err.Error()) // strings always are
	}
	if maps.Equal(labels, n.Labels) && n.Annotations[AnnotationLabels] == string(text) {
		return nil
	}
	out := n.DeepCopy()
	out.Labels = labels
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	out.Annotations[AnnotationLabels] = string(text)
	return out
}

func has(m map[string]string, k string) bool { _, ok := m[k]; return ok }
