//go:build lab

package suite

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// try runs a program that may fail, and returns all that it says.
func (c *cluster) try(t *testing.T, where string, args ...string) (code int, said string) {
	t.Helper()
	var out strings.Builder
	code, err := c.Exec(within(t, patience), where, lab.Command{Args: args, Stdout: &out, Stderr: &out})
	require.NoError(t, err)
	return code, out.String()
}

// saysInTime waits until a command says something.
func (c *cluster) saysInTime(t *testing.T, where, want string, args ...string) {
	t.Helper()
	eventually(t, patience, func() string {
		_, said := c.try(t, where, args...)
		if strings.Contains(said, want) {
			return ""
		}
		return fmt.Sprintf("%v does not say %q:\n%s", args, want, said)
	})
	_, said := c.try(t, where, args...)
	t.Logf("%s on %s:\n%s", strings.Join(args, " "), where, said)
}

// TestOperators: what operators see of BGP on a cluster: the status of this node and of others, by root and by users with an
// operator's certificate, why sessions are not up, what was rejected and by what, draining, CalicoNodeStatus, and probes
// that pass though all peers are down.
func TestOperators(t *testing.T) {
	c := up(t, "operators", lab.ModeDirect, nil)
	address := map[string]string{}
	for _, n := range c.topology.Nodes {
		address[n.Name] = n.Addresses[0].String()
	}

	c.saysInTime(t, "master", address["worker-1"]+" ", "calicoctl", "node", "status")
	c.saysInTime(t, "master", address["master"]+" ", "calicoctl", "node", "status", "--node", "worker-2", "-o", "wide")
	code, said := c.try(t, "master", "calicoctl", "node", "status", "--node", "nowhere")
	assert.Equal(t, 1, code)
	assert.Contains(t, said, `node "nowhere" is not connected`)

	nobody := []string{"setpriv", "--reuid", "65534", "--clear-groups", "calicoctl", "node", "status"}
	code, said = c.try(t, "master", nobody...)
	assert.Equal(t, 1, code)
	assert.Contains(t, said, "run this as root, or ask through typha")
	c.sh(t, "master", "cp -r /etc/calico/operator /run/mine && chown -R 65534 /run/mine")
	c.saysInTime(t, "master", "| Established", append(nobody, "--credentials", "/run/mine")...)

	// A peering with the wrong AS number, one with a host that is not there, and one where there is no route.
	c.sh(t, "master", "ip route add unreachable 203.0.113.9/32")
	c.apply(t, peerOfMaster("wrong-as", address["worker-3"], 65001, ""))
	c.apply(t, peerOfMaster("absent", "10.30.0.99", 65002, ""))
	c.apply(t, peerOfMaster("no-route", "203.0.113.9", 65003, ""))
	c.saysInTime(t, "master", "Error: peer says its AS is 64512, configured 65001", "calicoctl", "node", "status")
	c.saysInTime(t, "master", "Socket: No route to host: no host answers at the address, or there is no route to it", "calicoctl", "node", "status")
	c.saysInTime(t, "master", "Received: Bad peer AS: the peer expects another AS than 64512, which this node shows", "calicoctl", "node", "status", "--node", "worker-3")
	c.saysInTime(t, "master", "Received: Bad peer AS", "calicoctl", "bgp", "peers", "--node", "worker-3", "-o", "wide")

	// A filter of a peering with a node; the mesh has none.
	c.apply(t, "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: no-hosts}\nspec:\n  importV4:\n"+
		"  - {action: Accept, cidr: 10.0.0.0/8, matchOperator: In}\n  - {action: Reject, cidr: 192.168.0.0/16, matchOperator: In}\n")
	c.apply(t, peerOfMaster("filtered", address["worker-1"], 64512, "no-hosts"))
	c.saysInTime(t, "master", "BGPFilter(no-hosts).importV4[1]", "calicoctl", "bgp", "rejected", "--within", "192.168.0.0/16")
	c.saysInTime(t, "master", "learned over iBGP; only a reflector passes it on", "calicoctl", "bgp", "rejected", "--node", "worker-2", "--peer", address["master"])
	c.saysInTime(t, "master", address["worker-2"], "calicoctl", "bgp", "routes")
	c.saysInTime(t, "master", "this node", "calicoctl", "bgp", "routes", "--node", "worker-2", "--peer", address["master"], "--view", "advertised", "-o", "wide")
	for _, peer := range []string{"wrong-as", "absent", "no-route", "filtered"} {
		c.run(t, "master", "calicoctl", "delete", "bgppeer", peer)
	}

	// Draining another node, and putting it back.
	route := func() string { return c.sh(t, "master", "ip route show proto 79; ip route") }
	via := " via " + address["worker-1"] + " "
	eventually(t, patience, func() string {
		if !strings.Contains(route(), via) {
			return "no route to worker-1's block"
		}
		return ""
	})
	c.saysInTime(t, "master", "The node announces nothing any more.", "calicoctl", "node", "drain-bgp", "--node", "worker-1", "--wait", "500ms")
	c.saysInTime(t, "master", "The node is drained", "calicoctl", "node", "status", "--node", "worker-1")
	eventually(t, patience, func() string {
		if strings.Contains(route(), via) {
			return "still a route to worker-1's block"
		}
		return ""
	})
	c.saysInTime(t, "master", "back in service", "calicoctl", "node", "drain-bgp", "--node", "worker-1", "--cancel")
	eventually(t, patience, func() string {
		if !strings.Contains(route(), via) {
			return "no route to worker-1's block again"
		}
		return ""
	})
	c.run(t, "worker-1", "calico-node", "-drain-bgp", "-drain-wait", "100ms")
	c.run(t, "worker-1", "calico-node", "-undrain-bgp")

	// CalicoNodeStatus.
	c.apply(t, "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: of-worker-2}\n"+
		"spec: {node: worker-2, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}\n")
	eventually(t, patience, func() string {
		var got struct {
			Status struct {
				Agent struct{ BirdV4 struct{ State string } }
				BGP   struct{ NumberEstablishedV4 int }
			}
		}
		text := c.run(t, "master", "calicoctl", "get", "caliconodestatus", "of-worker-2", "-o", "json")
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		if got.Status.Agent.BirdV4.State == "Ready" && got.Status.BGP.NumberEstablishedV4 == len(c.topology.Nodes)-1 && strings.Contains(text, `"NodeMesh"`) {
			return ""
		}
		return text
	})
	t.Log(c.run(t, "master", "calicoctl", "get", "caliconodestatus", "of-worker-2", "-o", "yaml"))

	// All peers of a node go down: its bird is ready all the same, and says which are.
	for _, n := range c.topology.Nodes {
		if n.Name != "worker-3" {
			c.kill(t, victim{n.Name, "bird"})
			c.sh(t, n.Name, "true")
		}
	}
	c.run(t, "worker-3", "calico-node", "-bird-ready", "-bird-live", "--threshold-time=1h") // which it does not wait for
}

// peerOfMaster is a BGPPeer of the master.
func peerOfMaster(name, address string, as int, filter string) string {
	doc := fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: %s}\nspec:\n  node: master\n  peerIP: %s\n  asNumber: %d\n", name, address, as)
	if filter != "" {
		doc += "  filters: [" + filter + "]\n"
	}
	return doc
}
