//go:build lab

package suite

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// tls are a node's certificates as flags.
const tls = " --ca /etc/calico/pki/ca.crt --cert /etc/calico/pki/tls.crt --key /etc/calico/pki/tls.key"

// TestTrouble: bad input and what the machine lacks give one clear line that says what, where and what to do, a non-zero
// exit, and nothing half-done.
func TestTrouble(t *testing.T) {
	c := up(t, "suite-input", lab.ModeDirect, nil)
	before, pools := c.settled(t), c.run(t, "master", "calicoctl", "get", "ippools", "-o", "yaml")
	felix := "felix --node worker-1 --typha 10.30.0.10:5473"
	asNobody := `mkdir -p /run/nobody; cp -r /etc/calico/pki /run/nobody/; chown -R nobody /run/nobody; exec setpriv --reuid nobody --clear-groups `
	ownTLS := strings.ReplaceAll(tls, "/etc/calico", "/run/nobody")
	for _, trouble := range []struct {
		name, where, command string
		input                string
		want                 []string // what the line names: what, where, what to do
	}{
		{"unknown field", "master", "calicoctl apply -f -", pool("x", "cidr: 10.9.0.0/16, colour: blue"), []string{"IPPool(x)", "spec.colour", "remove it"}},
		{"misplaced field", "master", "calicoctl apply -f -", "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\ncidr: 10.9.0.0/16\n", []string{"IPPool(x)", "cidr", "wrong location"}},
		{"wrong enum", "master", "calicoctl apply -f -", pool("x", "cidr: 10.9.0.0/16, vxlanMode: Sometimes"), []string{"IPPool(x)", "spec.vxlanMode", "Sometimes", "CrossSubnet"}},
		{"overlapping pool", "master", "calicoctl create -f -", pool("x", "cidr: 192.168.7.0/24"), []string{"192.168.7.0/24", "default-ipv4-ippool", "choose"}},
		{"bad CIDR", "master", "calicoctl apply -f -", pool("x", "cidr: 10.9.0.0/33"), []string{"spec.cidr", "10.9.0.0/33", "192.168.0.0/16"}},
		{"unknown kind", "master", "calicoctl apply -f -", "apiVersion: projectcalico.org/v3\nkind: IPPoll\nmetadata: {name: x}\n", []string{"IPPoll"}},
		{"no YAML", "master", "calicoctl apply -f -", "a: [", []string{"-"}},
		{"no such file", "master", "calicoctl apply -f /nowhere.yaml", "", []string{"/nowhere.yaml"}},
		{"no such object", "master", "calicoctl get ippool nowhere", "", []string{"nowhere"}},
		{"no datastore given", "worker-1", "calicoctl get nodes", "", []string{"ETCD_ENDPOINTS"}},
		{"unreachable datastore", "worker-1", "ETCD_ENDPOINTS=http://10.30.0.10:9 calicoctl get nodes", "", []string{"http://10.30.0.10:9", "refused", "check"}},
		{"unreachable datastore of typha", "worker-1", "typha --datastore etcdv3 --datastore-endpoints http://10.30.0.10:9" + tls, "", []string{"http://10.30.0.10:9", "refused", "check"}},
		{"missing certificate of felix", "worker-1", felix + strings.Replace(tls, "tls.crt", "gone.crt", 1), "", []string{"/etc/calico/pki/gone.crt", "--cert"}},
		{"missing CA of felix", "worker-1", felix + strings.Replace(tls, "ca.crt", "gone.crt", 1) + " --lib-dir /run/other --run-dir /run/other", "", []string{"/etc/calico/pki/gone.crt", "--ca"}},
		{"missing key of confd", "worker-1", "confd --node worker-1 --typha 10.30.0.10:5473" + strings.Replace(tls, "tls.key", "gone.key", 1), "", []string{"/etc/calico/pki/gone.key", "--key"}},
		{"missing CA of confd", "worker-1", "confd --node worker-1 --typha 10.30.0.10:5473" + strings.Replace(tls, "ca.crt", "gone.crt", 1), "", []string{"/etc/calico/pki/gone.crt", "--ca"}},
		{"missing certificate of typha", "worker-1", "typha --datastore embedded --datastore-dir /run/other", "", []string{"missing CA certificate", "--ca"}},
		{"typha's port in use", "master", "typha --datastore embedded --datastore-dir /run/other" + tls, "", []string{":5473", "address already in use", "choose"}},
		{"felix's port in use", "worker-1", felix + tls + " --health 127.0.0.1:9099", "", []string{"127.0.0.1:9099", "in use", "choose"}},
		{"felix runs already", "worker-1", felix + tls, "", []string{"/var/lib/calico/felix", "another process", "end that first"}},
		{"bird runs already", "worker-1", "bird --health 127.0.0.1:0", "", []string{"/run/calico/", "stop"}},
		{"no root for felix", "worker-1", asNobody + felix + ownTLS + " --lib-dir /run/nobody --run-dir /run/nobody", "", []string{"needs root", "CAP_NET_ADMIN"}},
		{"certificate of root's for felix", "worker-1", asNobody + felix + tls, "", []string{"/etc/calico/pki/", "permission denied", "root"}},
		{"no node name", "worker-1", "felix --node ''" + tls, "", []string{"--node"}},
		{"unknown flag", "worker-1", "felix --colour blue", "", []string{"colour"}},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code, err := c.Exec(within(t, patience), trouble.where, lab.Command{
				Args: []string{"sh", "-c", trouble.command}, Stdin: strings.NewReader(trouble.input), Stdout: &out, Stderr: &errOut,
			})
			require.NoError(t, err)
			assert.NotZero(t, code)
			said := withoutStart(out.String() + errOut.String())
			assert.Len(t, said, 1, "one line")
			for _, w := range trouble.want {
				assert.Contains(t, strings.Join(said, "\n"), w)
			}
		})
	}
	items := func(list string) string { // without the revision of the whole datastore
		items, _, _ := strings.Cut(list, "kind: IPPoolList")
		return items
	}
	assert.Equal(t, items(pools), items(c.run(t, "master", "calicoctl", "get", "ippools", "-o", "yaml")), "nothing was stored")
	c.awaitKernel(t, before, patience)

	t.Run("second lab of the same name", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "demo.yaml")
		require.NoError(t, os.WriteFile(file, []byte("subnets: [{name: a, prefixes: [10.1.0.0/24]}]\nnodes: [{name: a, addresses: [10.1.0.9], processes: []}]\n"), 0o600))
		said, err := exec.Command(filepath.Join(bin(t), "lab"), "--name", c.Name(), "--state-dir", c.StateDir(), "up", "-f", file).CombinedOutput()
		require.Error(t, err)
		assert.Equal(t, 1, bytes.Count(said, []byte("\n")), "%s", said)
		assert.Contains(t, string(said), "suite-input is up already")
		assert.Contains(t, string(said), "lab down --name suite-input")
	})
}

func pool(name, spec string) string {
	return "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
}

// withoutStart are the lines that a program said beside that it starts.
func withoutStart(out string) (said []string) {
	for l := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		if !strings.Contains(l, "level=INFO") {
			said = append(said, l)
		}
	}
	return said
}

// nodeStatus is the table of calicoctl node status on the first node; times differ.
const nodeStatus = `Calico process is running.

IPv4 BGP status
+--------------+-------------------+-------+----------+-------------+
| PEER ADDRESS |     PEER TYPE     | STATE |  SINCE   |    INFO     |
+--------------+-------------------+-------+----------+-------------+
| 10.30.0.56   | node-to-node mesh | up    | 00:00:00 | Established |
| 10.30.0.206  | node-to-node mesh | up    | 00:00:00 | Established |
| 10.30.1.66   | node-to-node mesh | up    | 00:00:00 | Established |
+--------------+-------------------+-------+----------+-------------+

IPv6 BGP status
No IPv6 peers found.`

var clock = regexp.MustCompile(`\d\d:\d\d:\d\d`)

// TestTables: what an operator looks at has the shape that is known, and follows what happens.
func TestTables(t *testing.T) {
	c := up(t, "suite-tables", lab.ModeDirect, func(topology *lab.Topology) {
		for i := range topology.Nodes { // how many addresses they hold ready is a matter of time
			topology.Nodes[i].Env = map[string]string{"FELIX_WARMPOOLSIZE": "0"}
		}
	})
	table := clock.ReplaceAllString(c.run(t, "master", "calicoctl", "node", "status"), "00:00:00")
	assert.Equal(t, nodeStatus, strings.TrimSpace(table))

	show := func(used string) string {
		free := "65533"
		if used == "4" {
			free = "65532"
		}
		return "+----------+----------------+-----------+------------+--------------+--------------+\n" +
			"| GROUPING |      CIDR      | IPS TOTAL | IPS IN USE | IPS RESERVED |   IPS FREE   |\n" +
			"+----------+----------------+-----------+------------+--------------+--------------+\n" +
			"| IP Pool  | 192.168.0.0/16 | 65536     | " + used + " (0%)     | 0 (0%)       | " + free + " (100%) |\n" +
			"+----------+----------------+-----------+------------+--------------+--------------+\n"
	}
	assert.Equal(t, show("3"), c.run(t, "master", "calicoctl", "ipam", "show"))
	late := c.add(t, "late", "worker-1")
	assert.Equal(t, show("4"), c.run(t, "master", "calicoctl", "ipam", "show"))
	holder := c.run(t, "master", "calicoctl", "ipam", "show", "--ip="+late.Addresses[0].String())
	assert.Contains(t, holder, "late")
	assert.Contains(t, holder, "worker-1")
	c.awaitStored(t)
	c.del(t, "late")
	c.awaitStored(t) // its address and its endpoint are given back
	assert.Equal(t, show("3"), c.run(t, "master", "calicoctl", "ipam", "show"))
	blocks := c.run(t, "master", "calicoctl", "ipam", "show", "--show-blocks")
	assert.Equal(t, 3, strings.Count(blocks, "| Block "), blocks)

	c.kill(t, victim{"master", lab.ProcessBird})
	assert.Contains(t, c.run(t, "master", "calicoctl", "node", "status"), "The BGP backend process (BIRD) is not running.")
}
