//go:build lab

package suite

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestDeletedNodeLeavesNoAddress: a machine burns down with pods on it, and its Node is deleted. Its pods' addresses, its
// tunnel's, what it held ready and its blocks are free soon after, and nobody else's.
func TestDeletedNodeLeavesNoAddress(t *testing.T) {
	const burnt = "worker-3"
	c := up(t, "suite-collect", lab.ModeVXLAN, nil)
	c.add(t, "victim", burnt)
	c.awaitStored(t)
	talks := c.converse(t, [2]string{"pod-1", "pod-2"})
	for _, process := range []string{lab.ProcessConfd, lab.ProcessFelix, lab.ProcessBird} {
		c.kill(t, victim{burnt, process})
	}
	require.Contains(t, c.run(t, "master", "calicoctl", "ipam", "check", "--show-all-ips"), "node="+burnt)
	c.run(t, "master", "calicoctl", "delete", "node", burnt)
	took := eventually(t, 3*time.Minute, func() string {
		out := c.run(t, "master", "calicoctl", "ipam", "check", "--show-all-ips")
		if strings.Contains(out, burnt) {
			return out
		}
		if out := c.run(t, "master", "calicoctl", "get", "workloadendpoints"); strings.Contains(out, burnt) {
			return out
		}
		return ""
	})
	t.Logf("all of it was free after %s", took.Round(time.Second))
	require.Contains(t, c.run(t, "master", "calicoctl", "ipam", "check", "--show-problem-ips"), "Check complete; found 0 problems.")
	talks.goOn(t, burnt+" is collected")
}
