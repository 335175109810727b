//go:build lab

package suite

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestDiags packs a live node: what the kernel, felix, bird and typha have is in the archive, no password is, and with daemons gone
// the rest is still there, and what is missing is named.
func TestDiags(t *testing.T) {
	c := up(t, "diags", lab.ModeDirect, nil)
	const password = "hunter2-of-this-test"
	c.sh(t, "worker-1", "mkdir -p /var/log/calico && echo 'level=info msg=dialled password="+password+"' > /var/log/calico/other.log")
	c.saysInTime(t, "worker-1", "| Established", "calicoctl", "node", "status")

	archive := func(args ...string) (read func(string) string) {
		said := c.run(t, "worker-1", append([]string{"calicoctl", "node", "diags"}, args...)...)
		match := regexp.MustCompile(`Diags saved to (\S+/(diags-\S+)\.tar\.gz)`).FindStringSubmatch(said)
		require.NotNil(t, match, said)
		all := c.sh(t, "worker-1", "tar -xzOf "+match[1])
		assert.NotContains(t, all, password)
		assert.NotContains(t, all, "PRIVATE KEY")
		t.Log(c.sh(t, "worker-1", "tar -tvzf "+match[1]))
		return func(name string) string { return c.sh(t, "worker-1", "tar -xzOf "+match[1]+" "+match[2]+"/"+name) }
	}
	read := archive()
	assert.Contains(t, read("kernel/routes4.txt"), "proto 80", "routes of pods and blocks")
	assert.Contains(t, read("kernel/routes4.txt"), "via ")
	assert.Contains(t, read("kernel/nftables.txt"), "table ")
	assert.Regexp(t, `^\d+ connections\n`, read("kernel/connections.txt"))
	assert.Regexp(t, `(?m)^ +\d+ IPv4 +tcp +established +both ways assured`, read("kernel/connections.txt"), "to typha")
	assert.Regexp(t, `(?s)\n# as wanted\n.*\nroute `, read("felix/kernel.txt"))
	assert.Contains(t, read("felix/metrics.txt"), "felix_")
	assert.Contains(t, read("bird/status.yaml"), "state: Established")
	assert.Contains(t, read("bird/routes.txt"), "this node")
	assert.Contains(t, read("config/bird.yaml"), "peers")
	assert.Regexp(t, `felix build_info\{program="felix"`, read("versions.txt"))
	assert.Contains(t, read("logs/other.log"), "msg=dialled password=<removed>")
	assert.Contains(t, read("host/processes.txt"), " felix ")

	// Through typha, with an operator's certificate, the views that it serves; the master has one.
	views := c.sh(t, "master", "d=$(calicoctl node diags | sed -n 's/^Diags saved to //p'); tar -xzOf $d $(basename $d .tar.gz)/typha/views.txt")
	for _, node := range []string{"master", "worker-1", "worker-2", "worker-3"} {
		assert.Contains(t, views, node+" ")
	}

	c.kill(t, victim{"worker-1", lab.ProcessBird})
	c.kill(t, victim{"worker-1", lab.ProcessFelix})
	read = archive("--bird-socket", "/run/calico/nobody.sock", "--felix-socket", "/run/calico/nobody.sock")
	assert.Contains(t, read("kernel/routes4.txt"), "proto 80", "the dataplane works on")
	index := read("index.txt")
	assert.Regexp(t, `(?m)^none .* bird/routes.txt  \(BGP routes: bird does not run: `, index)
	assert.Regexp(t, `(?m)^none .* felix/kernel.txt  \(.*is felix running on this node\?\)$`, index)

	// And the cluster: everything in the datastore, and the state of all nodes through typha.
	list := c.sh(t, "master", "cd $(mktemp -d) && calicoctl cluster diags --focus-nodes worker-3 && tar -xzOf calico-diagnostics-*.tar.gz")
	for _, want := range []string{"kind: IPPool", "kind: IPAMBlock", "# as wanted", "nodes/worker-3/bgp.yaml"} {
		assert.Contains(t, list, want)
	}
	assert.Less(t, strings.Index(list, "nodes/worker-3/"), strings.Index(list, "nodes/master/"))
}
