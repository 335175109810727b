//go:build k8s

package suite

import (
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
)

// few is how many workers the clusters have that are there for one overlay: one in each subnet. These clusters are up at the same
// time, as the start of each is mostly waiting.
const few = 2

// TestEtcd: with the overlay etcd, by the guide, resources are in an etcd that wants certificates, and none is in Kubernetes.
func TestEtcd(t *testing.T) {
	t.Parallel()
	w := up(t, cluster.Options{Name: "etcd", Workers: few}, func(w *world, t *testing.T) {
		require.NoError(t, w.Start(within(t, patience), cluster.Control, cluster.Resources))
		w.datastore = append(cluster.Environment(), "DATASTORE_TYPE=etcdv3", "ETCD_ENDPOINTS="+cluster.ResourcesURL, "ETCD_CA_CERT_FILE="+cluster.ResourcesFile("ca.crt"),
			"ETCD_CERT_FILE="+cluster.ResourcesFile("tls.crt"), "ETCD_KEY_FILE="+cluster.ResourcesFile("tls.key"))
		w.bringImages(t)
		w.follow(t, "etcd", "https://10.0.0.1:2379", cluster.ResourcesURL,
			"ca.pem", cluster.ResourcesFile("ca.crt"), "cert.pem", cluster.ResourcesFile("tls.crt"), "key.pem", cluster.ResourcesFile("tls.key"))
		w.awaitInstalled(t)
	})
	t.Run("NetworkPolicy", w.networkPolicy)
	w.follow(t, "etcd: look", "https://10.0.0.1:2379", cluster.ResourcesURL,
		"ca.pem", cluster.ResourcesFile("ca.crt"), "cert.pem", cluster.ResourcesFile("tls.crt"), "key.pem", cluster.ResourcesFile("tls.key"))
	pools, err := w.calicoctl(t, "get", "ippools")
	require.NoError(t, err)
	assert.Contains(t, pools, thePool)
	assert.Empty(t, w.kubectl(t, "get", "clusterinformations,felixconfigurations,ippools,ipamblocks", "-o", "name"), "resources in Kubernetes")
	w.nothingLeaks(t)
}

// TestPolicyOnly: with the overlay policy-only pods have addresses of the ranges that Kubernetes gives to nodes, and the network leads
// these to the nodes, as a cloud's does. Muslin makes no pool, no tunnel and no route to another node, and enforces policy. It is
// installed by helm here.
func TestPolicyOnly(t *testing.T) {
	t.Parallel()
	w := up(t, cluster.Options{Name: "policy-only", Workers: few, NodeRanges: true}, func(w *world, t *testing.T) {
		w.bringImages(t)
		for node, r := range w.ranges(t) {
			_, err := w.Run(within(t, patience), "router", "ip", "route", "add", r.String(), "via", w.kubelet(t, node).Addr().String())
			require.NoError(t, err)
		}
		helm, err := exec.CommandContext(t.Context(), "go", "tool", "-C", filepath.Join(w.source, "deploy/tools"), "-n", "helm").Output() // the program's file
		require.NoError(t, err)
		w.follow(t, "helm", "helm install", strings.TrimSpace(string(helm))+" install", "overlays/ipip", "overlays/policy-only")
		w.awaitInstalled(t)
	})
	t.Run("NetworkPolicy", w.networkPolicy)
	t.Run("Ranges", func(t *testing.T) {
		ns, ranges := w.namespace(t), w.ranges(t)
		for node := range ranges {
			w.run(t, ns, pod("on-"+node, node, "", "serve"))
		}
		for node, r := range ranges {
			address := w.address(t, ns, "on-"+node)
			assert.True(t, r.Contains(netip.MustParseAddr(address)), "%s on %s, which has %s", address, node, r)
			found, err := w.Run(within(t, patience), node, "sh", "-ec", "ip -o link; ip route")
			require.NoError(t, err)
			assert.Contains(t, found, address+" dev cali")
			assert.NotContains(t, found, "tunl0:")
			assert.NotContains(t, found, "vxlan")
			for other, theirs := range ranges {
				assert.True(t, other == node || !strings.Contains(found, theirs.Masked().Addr().String()), "%s has a route to %s of %s:\n%s", node, theirs, other, found)
			}
		}
		assert.Empty(t, w.kubectl(t, "get", "ippools,ipamblocks", "-o", "name"))
	})
}

// ranges are those that Kubernetes gave to the workers.
func (w *world) ranges(t *testing.T) map[string]netip.Prefix {
	t.Helper()
	all := map[string]netip.Prefix{}
	w.eventually(t, func() error {
		for _, node := range w.Workers() {
			r, err := netip.ParsePrefix(w.kubectl(t, "get", "node", node, "-o", "jsonpath={.spec.podCIDR}"))
			if err != nil {
				return err
			}
			all[node] = r
		}
		return nil
	})
	return all
}
