package verb_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/audit"
)

func TestIPAMMend(t *testing.T) {
	t.Parallel()
	newCluster(t).calicos().script("testdata/ipam-mend.txt")
}

// client is a client of the cluster's datastore for the time of the test.
func (c *cluster) client() datastore.Client {
	c.t.Helper()
	client, err := c.server.Client(c.t.Context())
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

// TestReleaseFromReports: what two reports agree on is released, and nothing that was given out anew, or is in use, in one
// of them.
func TestReleaseFromReports(t *testing.T) {
	t.Parallel()
	c := newCluster(t).calicos()
	client, dir := c.client(), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	release := func(args ...string) outcome {
		return c.run("", append([]string{"ipam", "release"}, args...)...)
	}
	has := func(ip string) string { return c.must("ipam", "show", "--ip", ip) }
	remove := func(kind, namespace, name string) {
		_, err := client.Delete(t.Context(), api.Key{Kind: kind, Namespace: namespace, Name: name}, datastore.Precondition{})
		require.NoError(t, err)
	}
	remove("WorkloadEndpoint", "default", "worker--1-cni-c--worker--1--1-eth0") // .64 and ::fb00
	remove("WorkloadEndpoint", "default", "worker--1-cni-c--worker--1--2-eth0") // .65 and ::fb01
	_, err := client.Create(t.Context(), api.NewIPAMHandle("k8s-pod-network.orphan"))
	require.NoError(t, err)
	_, err = client.Create(t.Context(), api.NewIPAMHandle("k8s-pod-network.busy"))
	require.NoError(t, err)
	c.must("ipam", "check", "-o", file("first.json"))

	// Meanwhile .65 is given to another pod, which is not reported yet, and a handle is counted up.
	a := alloc.New(client, alloc.Options{})
	_, err = a.ReleaseByHandle(t.Context(), "k8s-pod-network.c-worker-1-2")
	require.NoError(t, err)
	require.NoError(t, a.AssignIP(t.Context(), alloc.Specific{
		Addr: netip.MustParseAddr("192.168.226.65"), Node: "worker-1", Handle: "k8s-pod-network.c-worker-1-2", Attributes: map[string]string{api.OwnerNode: "worker-1"},
	}))
	o, err := client.Get(t.Context(), api.Key{Kind: "IPAMHandle", Name: "k8s-pod-network.busy"})
	require.NoError(t, err)
	o.(*api.IPAMHandle).Spec.Block["192.168.226.64/26"] = 1
	_, err = client.Update(t.Context(), o)
	require.NoError(t, err)

	stop := release("--from-report", file("first.json"))
	require.Equal(t, outcome{code: 1, stderr: "data store is not locked. Either lock the data store, or re-run with --force\n"}, stop)
	require.Equal(t, "Datastore locked.\n", c.must("datastore", "migrate", "lock"))
	stop = release("--from-report", file("first.json"))
	require.Equal(t, 1, stop.code)
	require.Contains(t, stop.stderr, "the provided reports are all stale")
	c.must("ipam", "check", "-o", file("second.json"))

	edit := func(from, to string, change func(*audit.Report)) string {
		text, err := os.ReadFile(file(from))
		require.NoError(t, err)
		var r audit.Report
		require.NoError(t, json.Unmarshal(text, &r))
		change(&r)
		text, err = json.Marshal(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file(to), text, 0o600))
		return file(to)
	}
	stop = release("--force", "--from-report", edit("second.json", "foreign.json", func(r *audit.Report) { r.ClusterGUID = "another" }))
	require.Equal(t, 1, stop.code, "not even with force")
	require.Contains(t, stop.stderr, "mismatched cluster GUID. Refusing to release")
	older := edit("second.json", "older.json", func(r *audit.Report) { r.Version = "v1.0.0" })
	stop = release("--from-report", older)
	require.Equal(t, 1, stop.code)
	require.Contains(t, stop.stderr, "produced using a different version (v1.0.0) of calicoctl")
	stop = release("--from-report", file("nothing.json"))
	require.Equal(t, 1, stop.code)
	require.Contains(t, stop.stderr, "nothing.json: no such file or directory; make one with calicoctl ipam check -o FILE")

	require.Equal(t, "Releasing 2 old IPs...\nReleased 2 IPs successfully\nReleased 1 handles; 0 skipped; 0 errors.\nYou may now unlock the data store.\n",
		c.must("ipam", "release", "--from-report", file("first.json"), "--from-report", file("second.json")))
	require.Contains(t, has("192.168.226.64"), "is not assigned")
	require.Contains(t, has("fd00:77::9905:f003:c7bd:fb00"), "is not assigned")
	require.Contains(t, has("192.168.226.65"), "is in use")
	require.Contains(t, has("192.168.226.66"), "is in use")
	require.NotContains(t, c.must("ipam", "check", "--show-all-ips"), "k8s-pod-network.orphan")
	require.Equal(t, 2, strings.Count(c.must("ipam", "check", "--show-problem-ips"), "k8s-pod-network.busy doesn't have any active IPs.")+
		strings.Count(c.must("ipam", "check", "--show-problem-ips"), "192.168.226.65 leaked; attrs Main:k8s-pod-network.c-worker-1-2"))
	nowhere := c.run("", "ipam", "check", "--kubeconfig", file("nowhere"))
	require.Equal(t, 1, nowhere.code)
	require.Contains(t, nowhere.stderr, "nowhere: no such file or directory; give the path of a kubeconfig that is valid on this host")

	// Again: what has been released meanwhile does no harm.
	out := c.must("ipam", "release", "--force", "--from-report", older)
	require.Contains(t, out, "WARNING: Report was produced using a different version of calicoctl. Ignoring due to --force option\n")
	require.Contains(t, out, "2 addresses marked as leaked in the report had already been cleaned up.\n")
	require.Contains(t, has("192.168.226.65"), "is not assigned", "that report has it as lost")
	c.must("datastore", "migrate", "unlock")
}

// TestWarmPoolIsShown as reserved for its node.
func TestWarmPoolIsShown(t *testing.T) {
	t.Parallel()
	c := newCluster(t).calicos()
	require.NoError(t, alloc.New(c.client(), alloc.Options{}).AssignIP(t.Context(), alloc.Specific{
		Addr: netip.MustParseAddr("192.168.226.70"), Node: "worker-1", Handle: "warm-worker-1-7",
		Attributes: map[string]string{api.OwnerNode: "worker-1", api.OwnerType: api.TypeWarmPool},
	}))
	c.script("testdata/ipam-warm.txt")
}

// TestBorrowedAddressIsShown with the node that has it and the one whose block it is of.
func TestBorrowedAddressIsShown(t *testing.T) {
	t.Parallel()
	c := newCluster(t).calicos()
	require.NoError(t, alloc.New(c.client(), alloc.Options{}).AssignIP(t.Context(), alloc.Specific{
		Addr: netip.MustParseAddr("192.168.97.200"), Node: "worker-1", Handle: "k8s-pod-network.borrower",
		Attributes: map[string]string{api.OwnerNode: "worker-1", api.OwnerNamespace: "shop", api.OwnerPod: "web-0"},
	}))
	c.script("testdata/ipam-borrowed.txt")
}

// TestPoolIsDeletedWithItsBlocks: nodes give them up, and what is in use stays where it is.
func TestPoolIsDeletedWithItsBlocks(t *testing.T) {
	t.Parallel()
	c := newCluster(t).calicos()
	require.Equal(t, "Successfully deleted 1 'IPPool' resource(s)\n", c.must("delete", "ippool", "default-ipv4-ippool"))
	client := c.client()
	affinities, err := client.List(t.Context(), "BlockAffinity", datastore.ListOptions{})
	require.NoError(t, err)
	for _, o := range affinities.Items {
		require.Contains(t, o.GetName(), "/fd00:77::", "those of the other pool stay")
	}
	require.Len(t, affinities.Items, 2)
	require.Contains(t, c.must("ipam", "show", "--ip", "192.168.226.64"), "is in use")
	require.Contains(t, c.must("ipam", "show", "--show-blocks"), "| No pool  |")
	o := c.run("", "delete", "ippool", "default-ipv4-ippool")
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "failed to delete 'IPPool' resource: [delete IPPool(default-ipv4-ippool): does not exist]")
}
