//go:build lab

package suite

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestPeerWishes follows what BGPPeers ask for beside a session: a way to the peer, a password that is not there yet, a port
// that only one node has.
func TestPeerWishes(t *testing.T) {
	c := up(t, "suite-wishes", lab.ModeDirect, nil)
	peer := func(name, more string) string {
		return fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: %s}\nspec: {node: worker-1, asNumber: 65001, %s}\n", name, more)
	}

	t.Run("reachableBy", func(t *testing.T) {
		route := func() string { return strings.TrimSpace(c.run(t, "worker-1", "ip", "route", "show", "10.99.0.1/32")) }
		await := func(want string) {
			eventually(t, patience, func() string {
				if got := route(); !strings.HasPrefix(got, want) || want == "" && got != "" {
					return fmt.Sprintf("the route is %q, not %q", got, want)
				}
				return ""
			})
		}
		c.apply(t, peer("far", "peerIP: 10.99.0.1, reachableBy: 10.30.0.1"))
		await("10.99.0.1 via 10.30.0.1 dev ens5 proto 80")
		require.Empty(t, c.run(t, "master", "ip", "route", "show", "10.99.0.1/32"), "it is announced to nobody")
		c.apply(t, peer("far", "peerIP: 10.99.0.1, reachableBy: 10.30.0.206"))
		await("") // a node is no gateway to itself
		c.apply(t, peer("far", "peerIP: 10.99.0.1, reachableBy: 10.30.0.56"))
		await("10.99.0.1 via 10.30.0.56 dev ens5 proto 80")
		c.run(t, "master", "calicoctl", "delete", "bgppeer", "far")
		await("")
	})

	t.Run("a secret that is missing", func(t *testing.T) {
		c.apply(t, peer("locked", "peerIP: 10.30.0.1, password: {secretKeyRef: {name: tor, key: md5}}"))
		eventually(t, patience, func() string {
			out := c.run(t, "worker-1", "calicoctl", "node", "status")
			if !strings.Contains(out, "waiting for Secret tor, key md5") {
				return out
			}
			return ""
		})
		c.awaitSessions(t)
		c.run(t, "master", "calicoctl", "delete", "bgppeer", "locked")
	})

	t.Run("a port that only one node has", func(t *testing.T) {
		c.apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: node.worker-1}\nspec: {listenPort: 1179}\n")
		eventually(t, patience, func() string {
			if out := c.run(t, "worker-1", "ss", "-Hltn", "sport = :1179"); !strings.Contains(out, ":1179") {
				return "nobody listens on 1179"
			}
			return ""
		})
		c.awaitSessions(t)
		require.Empty(t, c.run(t, "worker-1", "ss", "-Hltn", "sport = :179"))
	})
}
