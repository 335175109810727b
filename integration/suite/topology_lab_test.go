//go:build lab

package suite

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/integration/lab"
)

// onEtcd makes the datastore Debian's etcd, as a process of its own on the first node.
func onEtcd(topo *lab.Topology) {
	topo.Datastore = lab.DatastoreEtcd
	topo.Nodes[0].Processes = append([]string{lab.ProcessEtcd}, topo.Nodes[0].Processes...)
}

// TestExternalEtcd: the same cluster on Debian's etcd instead of the embedded one, with labels and a zone on a node.
func TestExternalEtcd(t *testing.T) {
	c := up(t, "suite-etcd", lab.ModeDirect, func(topo *lab.Topology) {
		onEtcd(topo)
		topo.Nodes[1].Labels = map[string]string{"rack": "7"}
		topo.Nodes[1].Zone = "west"
	})
	c.reachable(t)
	out := c.run(t, "master", "calicoctl", "get", "node", "worker-1", "-o", "yaml")
	assert.Contains(t, out, `rack: "7"`)
	assert.Contains(t, out, "topology.kubernetes.io/zone: west")
}

// TestCloudFabric: where the fabric drops what is not from or to a node's own address, pods reach each other by VXLAN.
func TestCloudFabric(t *testing.T) {
	c := up(t, "suite-cloud", lab.ModeVXLAN, func(topo *lab.Topology) { topo.Fabric.SourceDestCheck = true })
	c.reachable(t)
}

// TestSeveralClusters: two clusters with the same addresses do not see each other.
func TestSeveralClusters(t *testing.T) {
	one, two := up(t, "suite-one", lab.ModeDirect, nil), up(t, "suite-two", lab.ModeDirect, nil)
	one.reachable(t)
	one.kill(t, victim{"worker-1", lab.ProcessBird})
	two.reachable(t)
}
