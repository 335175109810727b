package verb_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// The archive of a cluster that real Calico wrote has all its objects; what needs typha or Kubernetes is named.
func TestClusterDiags(t *testing.T) {
	c := newCluster(t).calicos()
	t.Chdir(t.TempDir())
	out := c.must("cluster", "diags", "--focus-nodes", "worker-3", "--typha", "", "--max-parallelism", "3")
	files, err := filepath.Glob("calico-diagnostics-*.tar.gz")
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.Contains(t, out, "Diags saved to "+files[0])
	read := func(name string) string {
		text, err := exec.Command("tar", "-xzOf", files[0], strings.TrimSuffix(files[0], ".tar.gz")+"/"+name).CombinedOutput()
		require.NoError(t, err, string(text))
		return string(text)
	}
	for _, kind := range api.Kinds() {
		require.Regexp(t, `^# \d+, revision \d+\n`, read("resources/"+kind.Plural+".yaml"), kind.Plural)
	}
	require.Contains(t, read("resources/ippools.yaml"), "ipipMode: ")
	require.Contains(t, read("resources/ipamblocks.yaml"), "kind: IPAMBlock")
	require.Contains(t, read("ipam/pools.txt"), "IP Pool")
	require.Contains(t, read("version.txt"), "Cluster Version:   bench")
	index := read("index.txt")
	require.Regexp(t, `(?m)^none .* pods/pods.txt  \(pods: the datastore is not kubernetes`, index)
	require.Regexp(t, `(?m)^none .* nodes/master/bgp.yaml  \(BGP of master: where typha is, is not known`, index)
	require.Less(t, strings.Index(index, "nodes/worker-3/"), strings.Index(index, "nodes/master/"), "it is in focus")

	got := c.run("", "cluster", "diags", "--max-logs", "-1")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "--max-logs -1")
}

// Without a datastore there is an archive, which says so.
func TestClusterDiagsWithoutDatastore(t *testing.T) {
	file := configFile(t, "http://127.0.0.1:1")
	t.Chdir(t.TempDir())
	got := run(t, "", "-c", file, "cluster", "diags")
	require.Equal(t, 0, got.code, got.stderr)
	require.Contains(t, got.stdout, "missing or not whole")
	require.Contains(t, got.stdout, "  ippools: ")
}
