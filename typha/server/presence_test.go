package server_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/muslin-net/muslin/api"
)

// TestPresence: a node is said to be connected by the replica that it is connected to, and not to be by the one that it was
// connected to last, also over that one's restart. A short absence is not told.
func TestPresence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, _, _ := w.cluster()
	says := func(node, want string) func() bool {
		return func() bool {
			c := meta.FindStatusCondition(get[*api.Node](w, "Node", node).Status.Conditions, api.ConditionConnected)
			return c == nil && want == "" || c != nil && string(c.Status) == want
		}
	}
	n1, n2 := w.follow("n1", []string{r.address}), w.follow("n2", []string{r.address})
	eventually(t, "n1 is connected", says("n1", "True"))
	eventually(t, "n2 is connected", says("n2", "True"))
	n1.stop()
	r.stop()
	again := w.typha()
	n2.stop()
	w.follow("n2", []string{again.address})
	eventually(t, "n1 is missed", says("n1", "False"))
	eventually(t, "n2 is there", says("n2", "True"))
	w.follow("n1", []string{again.address})
	eventually(t, "n1 is back", says("n1", "True"))
}
