package lab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDemoTopology(t *testing.T) {
	topo, err := DemoTopology()
	require.NoError(t, err)

	want := map[string]string{"master": "10.30.0.10", "worker-1": "10.30.0.206", "worker-2": "10.30.0.56", "worker-3": "10.30.1.66"}
	require.Len(t, topo.Nodes, len(want))
	for i, n := range topo.Nodes {
		assert.Equal(t, want[n.Name], n.Addresses[0].String())
		assert.Equal(t, "ens5", n.Interface)
		assert.Equal(t, i == 0, n.runs(ProcessTypha), "typha runs on the first node only")
		for _, p := range []string{ProcessStartup, ProcessBird, ProcessFelix, ProcessConfd} {
			assert.True(t, n.runs(p), "%s runs %s", n.Name, p)
		}
	}
	assert.Empty(t, topo.Pools, "the nodes make the default one")
	assert.Equal(t, DatastoreEmbedded, topo.Datastore)
	assert.True(t, topo.sameSubnet("worker-1", "worker-2"))
	assert.False(t, topo.sameSubnet("worker-1", "worker-3"))
	assert.Equal(t, "10.30.1.1", topo.Subnets[1].Gateways[0].String())
}

// TestMachine: a machine runs none of the lab's processes, and what is wrong with it is told with its place.
func TestMachine(t *testing.T) {
	read := func(machine string) (Topology, error) {
		return ParseTopology("machine.yaml", []byte(`
subnets: [{name: a, prefixes: [10.0.0.0/24]}]
nodes: [{name: one, addresses: [10.0.0.10], machine: `+machine+`}]
`))
	}
	topo, err := read("{dirs: [/var/lib/it], programs: [{name: it, args: [/bin/it, -v]}]}")
	require.NoError(t, err)
	assert.Empty(t, topo.Nodes[0].Processes)
	dirs := topo.Nodes[0].dirs()
	assert.Equal(t, privateDir{sub: "var-lib-it", target: "/var/lib/it"}, dirs[len(dirs)-1])
	for machine, want := range map[string]string{
		"{dirs: [var]}":                         `nodes[0] (one).machine.dirs: "var" is no directory of a node`,
		"{dirs: [/]}":                           `"/" is no directory of a node`,
		"{programs: [{name: It, args: [/it]}]}": `programs: bad name "It"`,
		"{programs: [{name: it, args: [it]}]}":  "it has no absolute path",
		"{programs: [{name: it, path: [/it]}]}": "line 3: unknown field \"path\" in program; known are name, args, env",
		"{directories: []}":                     "known are dirs, programs",
	} {
		_, err := read(machine)
		assert.ErrorContains(t, err, want, machine)
	}
}

// TestTextRoundTrip: what the launcher writes for the supervisor is what it was given, empty process lists included.
func TestTextRoundTrip(t *testing.T) {
	topo, err := DemoTopology()
	require.NoError(t, err)
	topo.Nodes[1].Processes = []string{}
	topo.Nodes[2].Labels = map[string]string{"a": "b"}
	topo.Fabric.SourceDestCheck = true
	off := false
	topo.Nodes[3].SourceDestCheck = &off
	data, err := topo.text()
	require.NoError(t, err)
	again, err := ParseTopology("again", data)
	require.NoError(t, err)
	assert.Equal(t, topo, again)
	assert.True(t, again.checks(again.Nodes[0]))
	assert.False(t, again.checks(again.Nodes[3]))
}

func TestDualStackTopology(t *testing.T) {
	topo, err := DualStackTopology()
	require.NoError(t, err)
	demo, err := DemoTopology()
	require.NoError(t, err)
	for i, n := range topo.Nodes {
		assert.Equal(t, demo.Nodes[i].Addresses[0], n.Addresses[0], n.Name)
		assert.True(t, n.has(true))
	}
	assert.Equal(t, ModeVXLAN, topo.Pools[0].Mode())
	assert.Equal(t, "default-ipv6-ippool", topo.Pools[1].Name)
	assert.Equal(t, 122, topo.Pools[1].BlockSize)
	assert.Equal(t, ModeVXLAN, topo.Pools[1].Mode())
}

func TestToRTopology(t *testing.T) {
	topo, err := ToRTopology()
	require.NoError(t, err)
	dual, err := DualStackTopology()
	require.NoError(t, err)
	for i, n := range dual.Nodes {
		assert.Equal(t, n.Addresses, topo.Nodes[i].Addresses, n.Name)
	}
	client, ok := topo.node("client")
	require.True(t, ok)
	assert.Empty(t, client.Processes)
	assert.Equal(t, ModeDirect, topo.Pools[0].Mode())
	assert.Equal(t, ModeDirect, topo.Pools[1].Mode())
}

func TestDefaults(t *testing.T) {
	topo, err := ParseTopology("t", []byte(`
subnets: [{name: left, prefixes: [10.1.0.7/24, "fd00::/64"]}]
nodes: [{name: a, addresses: [10.1.0.9, "fd00::9"], zone: z1, labels: {k: v}}]
pods: [{name: p, node: a}, {name: p, namespace: other, node: a}]
pools: [{cidr: "fd10::/48"}]
datastore: etcd
`))
	require.NoError(t, err)
	assert.Equal(t, "10.1.0.0/24", topo.Subnets[0].Prefixes[0].String())
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")}, topo.Subnets[0].Gateways)
	assert.Equal(t, []string{ProcessEtcd, ProcessTypha, ProcessControllers, ProcessStartup, ProcessBird, ProcessFelix, ProcessConfd}, topo.Nodes[0].Processes)
	assert.Equal(t, 122, topo.Pools[0].BlockSize)
	assert.Equal(t, "default-ipv6-ippool", topo.Pools[0].Name)
	assert.Equal(t, "p", topo.Pods[0].id())
	assert.Equal(t, "other/p", topo.Pods[1].id())
	assert.Equal(t, map[string]string{"k": "v", zoneLabel: "z1"}, topo.Nodes[0].allLabels())
	assert.Equal(t, 1500, topo.Fabric.MTU)
}

// TestBadTopologies: each mistake gives one line that names the place and what to do.
func TestBadTopologies(t *testing.T) {
	const good = `
subnets:
- {name: left, prefixes: [10.1.0.0/24]}
- {name: right, prefixes: [10.2.0.0/24]}
nodes:
- {name: a, addresses: [10.1.0.9]}
- {name: b, addresses: [10.1.0.10]}
pods:
- {name: p, node: a}
pools:
- {cidr: 192.168.0.0/16}
`
	_, err := ParseTopology("t.yaml", []byte(good))
	require.NoError(t, err)

	cases := []struct {
		name, from, to string
		want           []string
	}{
		{"unknown field", "- {name: b,", "- {name: b, mac: 1,", []string{"t.yaml line 7", `unknown field "mac" in node`, "known are name, addresses"}},
		{"misplaced field", "pools:", "blockSize: 26\npools:", []string{`unknown field "blockSize" in topology`, "known are subnets"}},
		{"wrong type", "pods:\n- {name: p, node: a}", "pods: none", []string{"t.yaml line 8", "does not fit"}},
		{"bad address", "10.1.0.10", "10.1.0.300", []string{"t.yaml", "10.1.0.300"}},
		{"bad prefix", "10.2.0.0/24", "10.2.0.0/99", []string{"t.yaml", "10.2.0.0/99"}},
		{"not YAML", "subnets:", "subnets: [", []string{"t.yaml"}},
		{"no nodes", "nodes:\n- {name: a, addresses: [10.1.0.9]}\n- {name: b, addresses: [10.1.0.10]}", "", []string{"nodes is empty", "add one"}},
		{"same node twice", "{name: b,", "{name: a,", []string{"nodes[1] (a)", "taken"}},
		{"reserved name", "{name: b,", "{name: router,", []string{"nodes[1] (router)", "taken"}},
		{"bad node name", "{name: b,", "{name: B_1,", []string{"nodes[1]", "lower-case"}},
		{"same address twice", "10.1.0.10", "10.1.0.9", []string{"10.1.0.9 belongs to a already"}},
		{"router's address", "10.1.0.10", "10.1.0.1", []string{"10.1.0.1 belongs to the router"}},
		{"network address", "10.1.0.10", "10.1.0.0", []string{"address of the subnet itself"}},
		{"address in no subnet", "10.1.0.10", "10.9.0.10", []string{"nodes[1] (b)", "10.9.0.10 is in no subnet"}},
		{"two of a family", "[10.1.0.10]", "[10.1.0.10, 10.1.0.11]", []string{"second of its family"}},
		{"interface name", "{name: b,", "{name: b, interface: much-too-long-name0,", []string{"no interface name"}},
		{"unknown process", "{name: b,", "{name: b, processes: [birdd],", []string{`unknown process "birdd"`, "choose from"}},
		{"second embedded datastore", "{name: b,", "{name: b, processes: [typha],", []string{"first node only"}},
		{"pod on no node", "node: a", "node: c", []string{"pods[0] (p)", `no node "c"`, "nodes are a, b"}},
		{"pod named as a node", "{name: p,", "{name: a,", []string{"a node has that name"}},
		{"same pod twice", "- {name: p, node: a}", "- {name: p, node: a}\n- {name: p, node: b}", []string{"pods[1] (p)", "taken"}},
		{"subnets overlap", "10.2.0.0/24", "10.1.0.0/16", []string{"overlaps"}},
		{"subnet name twice", "{name: right", "{name: left", []string{"subnets[1] (left)", "taken"}},
		{"gateway outside", "[10.2.0.0/24]", "[10.2.0.0/24], gateways: [10.3.0.1]", []string{"10.3.0.1 is in none of its prefixes"}},
		{"pool has host bits", "192.168.0.0/16", "192.168.1.1/16", []string{"host bits", "write 192.168.0.0/16"}},
		{"pool overlaps subnet", "192.168.0.0/16", "10.0.0.0/8", []string{"overlaps subnet left"}},
		{"pools overlap", "- {cidr: 192.168.0.0/16}", "- {cidr: 192.168.0.0/16}\n- {name: two, cidr: 192.168.1.0/24}", []string{"clashes with pool"}},
		{"blocks too large", "192.168.0.0/16}", "192.168.0.0/16, blockSize: 8}", []string{"/8 do not fit"}},
		{"unknown mode", "192.168.0.0/16}", "192.168.0.0/16, vxlanMode: always}", []string{`"always" is unknown`, "use Never, Always or CrossSubnet"}},
		{"both modes", "192.168.0.0/16}", "192.168.0.0/16, vxlanMode: Always, ipipMode: Always}", []string{"both"}},
		{"unknown datastore", "pools:", "datastore: sqlite\npools:", []string{`"sqlite"`, "embedded or etcd"}},
		{"unknown speaker", "pools:", "speaker: frr\npools:", []string{`speaker "frr" is unknown`, "muslin or bird2"}},
		{"unknown backend", "pools:", "backend: gobgp\npools:", []string{`backend "gobgp" is unknown`, "bird or vxlan"}},
		{"MTU", "pools:", "fabric: {mtu: 100}\npools:", []string{"mtu 100", "1280"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			require.Contains(t, good, c.from)
			_, err := ParseTopology("t.yaml", []byte(strings.Replace(good, c.from, c.to, 1)))
			require.Error(t, err)
			assert.NotContains(t, err.Error(), "\n", "one line")
			for _, w := range c.want {
				assert.Contains(t, err.Error(), w)
			}
		})
	}

	for name, text := range map[string]string{"is empty": "", "more than one YAML document": good + "---\n" + good} {
		_, err := ParseTopology("t.yaml", []byte(text))
		assert.ErrorContains(t, err, name)
	}
	_, err = ReadTopology("no/such/file")
	assert.ErrorContains(t, err, "cannot read the topology")
}

func FuzzParseTopology(f *testing.F) {
	f.Add([]byte("subnets: [{name: left, prefixes: [10.1.0.0/24]}]\nnodes: [{name: a, addresses: [10.1.0.9]}]"))
	f.Add([]byte("nodes: [{addresses: [::]}]\npools: [{cidr: 0.0.0.0/0}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		topo, err := ParseTopology("fuzz", data)
		if err != nil {
			return
		}
		text, err := topo.text()
		require.NoError(t, err)
		again, err := ParseTopology("again", text)
		require.NoError(t, err)
		textAgain, err := again.text()
		require.NoError(t, err)
		assert.Equal(t, string(text), string(textAgain))
	})
}
