package server_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
)

// ask puts a question to a node, as kube-controllers do, and waits until typha has seen it.
func (w *world) ask(r *replica, node, question string) {
	w.t.Helper()
	modify(w, "Node", node, func(n *api.Node) {
		if n.Annotations == nil {
			n.Annotations = map[string]string{}
		}
		n.Annotations[api.AnnotationEndpointsAsked] = question
	})
	eventually(w.t, "the question is known", func() bool {
		seen := r.state.Snapshot().Node(node)
		return seen != nil && seen.Annotations[api.AnnotationEndpointsAsked] == question
	})
}

func (w *world) told(node string) string {
	o, err := w.store.Get(w.t.Context(), api.Key{Kind: "Node", Name: node})
	require.NoError(w.t, err)
	return o.(*api.Node).Annotations[api.AnnotationEndpointsTold]
}

// A question is answered by a report that came after it, when all of that is stored: also what somebody has deleted by hand.
func TestQuestionsAreAnsweredByWholeReports(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	a := reserve(t, n1, "c1")
	whole := func(sequence uint64, list ...client.Endpoint) {
		t.Helper()
		report(t, n1, "x", sequence, append(list, pod("c1", a))...)
	}
	stored := func() {
		t.Helper()
		eventually(t, "all is stored", func() bool {
			_, stored, err := n1.Report(t.Context(), client.Report{Instance: "x"})
			require.NoError(t, err)
			return stored
		})
	}
	whole(1)
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	stored()
	assert.Empty(t, w.told("n1"), "nobody has asked")

	_, err := w.store.Delete(t.Context(), api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "n1-cni-c1-eth0"}, datastore.Precondition{})
	require.NoError(t, err)
	w.ask(r, "n1", "q1")
	stored()
	assert.Empty(t, w.told("n1"), "nothing was reported since")
	whole(2) // the same as before
	eventually(t, "an answer", func() bool { return w.told("n1") == "q1" })
	w.eventuallyEndpoints("n1-cni-c1-eth0")

	w.ask(r, "n1", "q2")
	foreign := pod("c9", netip.MustParseAddr("192.168.99.99"))
	whole(3, foreign)
	stored()
	assert.Equal(t, "q1", w.told("n1"), "one endpoint was refused, so that not all are stored")
	whole(4)
	eventually(t, "an answer", func() bool { return w.told("n1") == "q2" })
}
