package verb_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

func TestGet(t *testing.T) {
	t.Parallel()
	newCluster(t).calicos().script("testdata/get.txt")
}

func TestChange(t *testing.T) {
	t.Parallel()
	newCluster(t).initialised().script("testdata/change.txt")
}

func TestSetsBeyondTheirLimit(t *testing.T) {
	t.Parallel()
	newCluster(t).initialised().script("testdata/set-limit.txt")
}

func TestTrouble(t *testing.T) {
	t.Parallel()
	newCluster(t).initialised().script("testdata/trouble.txt")
}

func TestModes(t *testing.T) { newCluster(t).initialised().script("testdata/modes.txt") }

// What the system says in a status is shown, changes no column, and stays when a user applies the spec.
func TestStatusesAreShownAndKept(t *testing.T) {
	c := newCluster(t).initialised()
	c.must("create", "-f", "testdata/in/pool.yaml")
	c.must("create", "-f", "testdata/in/node.yaml")
	columns := c.must("get", "ippools", "-o", "wide")
	client, err := c.server.Client(t.Context())
	require.NoError(t, err)
	defer client.Close()
	lack := metav1.Condition{
		Type: api.ConditionDataplaneSupported, Status: metav1.ConditionFalse, Reason: api.ReasonKernelLacksIPIP,
		Message: "node n: kernel has no ipip; pool small wants ipipMode Always; load module ipip, or set vxlanMode", LastTransitionTime: metav1.Unix(1, 0),
	}
	o, err := client.Get(t.Context(), api.Key{Kind: "IPPool", Name: "small"})
	require.NoError(t, err)
	pool := o.(*api.IPPool)
	pool.Status = &api.IPPoolStatus{
		Conditions: []metav1.Condition{lack},
		Transport:  &api.PoolTransport{Send: api.EncapsulationIPIP, Receive: []api.Encapsulation{api.EncapsulationIPIP}},
	}
	_, err = client.Update(t.Context(), pool)
	require.NoError(t, err)
	nodes, err := client.List(t.Context(), "Node", datastore.ListOptions{})
	require.NoError(t, err)
	node := nodes.Items[0].(*api.Node)
	node.Status.Conditions = []metav1.Condition{lack}
	node.Status.Kernel = &api.NodeKernel{Features: map[string]string{"vxlan": "kernel module"}}
	_, err = client.Update(t.Context(), node)
	require.NoError(t, err)

	const shown = "  - lastTransitionTime: \"1970-01-01T00:00:01Z\"\n    message: 'node n: kernel has no ipip; pool small wants ipipMode Always; load module\n" +
		"      ipip, or set vxlanMode'\n    reason: KernelLacksIPIP\n    status: \"False\"\n    type: DataplaneSupported\n"
	for range 2 {
		require.Contains(t, c.must("get", "ippool", "small", "-o", "yaml"), "status:\n  conditions:\n"+shown+"  transport:\n    receive:\n    - IPIP\n    send: IPIP\n")
		require.Contains(t, c.must("get", "node", node.Name, "-o", "yaml"), "status:\n  conditions:\n"+shown+"  kernel:\n    features:\n      vxlan: kernel module\n")
		require.Equal(t, columns, c.must("get", "ippools", "-o", "wide"))
		c.must("apply", "-f", "testdata/in/pool.yaml")
		c.must("replace", "-f", "testdata/in/node.yaml")
	}
}

func TestIPAM(t *testing.T) {
	t.Parallel()
	newCluster(t).calicos().script("testdata/ipam.txt")
}

func TestVersion(t *testing.T) {
	t.Parallel()
	newCluster(t).calicos().script("testdata/version.txt")
}

// What users wrote for Calico is taken as it is, again and again, by each verb.
func TestCalicosResourcesAreTaken(t *testing.T) {
	t.Parallel()
	c := newCluster(t).initialised()
	c.must("delete", "felixconfiguration", "default") // which one of them is, and each cluster has
	require.Equal(t, "Successfully created 21 resource(s)\n", c.must("create", "-f", "testdata/resources.yaml"))
	require.Equal(t, "Successfully applied 21 resource(s)\n", c.must("apply", "-f", "testdata/resources.yaml"))
	require.Equal(t, "Successfully replaced 21 resource(s)\n", c.must("replace", "-f", "testdata/resources.yaml"))
	for _, kind := range api.Kinds() {
		if kind.Internal {
			continue
		}
		for _, output := range []string{"ps", "wide", "yaml", "json"} {
			printed := c.must("get", kind.Name, "-A", "-o", output)
			require.NotEmpty(t, printed, "%s as %s", kind.Name, output)
			if output != "yaml" || kind.Name == "ClusterInformation" {
				continue
			}
			o := c.run(printed, "validate", "-f", "-", "--skip-empty")
			require.Zero(t, o.code, "what get prints can be given back: %s", o.stderr)
		}
	}
	c.must("delete", "gnp", "security.deny-bad") // before its tier
	require.Equal(t, "Successfully deleted 20 resource(s)\n", c.must("delete", "-f", "testdata/resources.yaml", "-s"))
}

// A resource that somebody else changed since it was read is not overwritten by replace, but by apply.
func TestReplaceMindsTheVersion(t *testing.T) {
	t.Parallel()
	c := newCluster(t).initialised()
	c.must("create", "-f", "testdata/in/pool.yaml")
	read := c.must("get", "ippool", "small", "-o", "yaml")
	c.must("label", "ippool", "small", "touched=yes")
	o := c.run(read, "replace", "-f", "-")
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "failed to replace 'IPPool' resource: [update IPPool(small): ")
	require.Zero(t, c.run(read, "apply", "-f", "-").code)
	require.NotContains(t, c.must("get", "ippool", "small", "-o", "yaml"), "touched")
}

func TestAnotherReleaseIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t).calicos()
	o := c.run("", "get", "node")
	require.Zero(t, o.code, "what is no release is not judged: %s", o.stderr)

	client, err := c.server.Client(t.Context())
	require.NoError(t, err)
	defer client.Close()
	set := func(version string) {
		o, err := client.Get(t.Context(), api.Key{Kind: "ClusterInformation", Name: "default"})
		require.NoError(t, err)
		o.(*api.ClusterInformation).Spec.CalicoVersion = version
		_, err = client.Update(t.Context(), o)
		require.NoError(t, err)
	}
	set("1.2.3-4-gabcdef")
	require.Zero(t, c.run("", "get", "node").code, "v1.2.3 is meant")
	set("v1.3.0")
	o = c.run("", "get", "node")
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "version mismatch: calicoctl is v1.2.3, the cluster v1.3.0")
	require.Zero(t, c.run("", "get", "node", "--allow-version-mismatch").code)
	require.Contains(t, c.must("version"), "Cluster Version:   v1.3.0")
	require.Zero(t, c.run("", "validate", "-f", "testdata/in/pool.yaml").code, "no cluster is asked")
}

// A datastore that is not there is one clear line, in seconds.
func TestUnreachableDatastore(t *testing.T) {
	t.Parallel()
	config := configFile(t, "http://127.0.0.1:1")
	for _, args := range []string{"get node", "apply -f testdata/in/pool.yaml", "version", "ipam show"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			o := run(t, "", append([]string{"-c", config}, strings.Fields(args)...)...)
			require.Equal(t, 1, o.code)
			require.Equal(t, 1, strings.Count(strings.TrimSpace(o.stderr), "\n")+1, o.stderr)
			require.Contains(t, o.stderr, "127.0.0.1:1")
			require.Less(t, time.Since(begin), time.Minute)
		})
	}
	require.Zero(t, run(t, "", "-c", config, "version", "--client").code)
	require.Zero(t, run(t, "", "-c", config, "validate", "-f", "testdata/in/pool.yaml").code)
	o := run(t, "", "-c", "/nowhere/at/all.cfg", "get", "node")
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "/nowhere/at/all.cfg")
}
