//go:build lab

package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestCNI: the plugins as a container runtime knows them, called by libcni, on nodes that run everything else.
func TestCNI(t *testing.T) {
	c := up(t, "suite-cni", lab.ModeDirect, func(topo *lab.Topology) {
		dual, err := lab.DualStackTopology()
		require.NoError(t, err)
		*topo = dual
		topo.Nodes[0].Env = map[string]string{"TYPHA_UNMANAGED": "10.77.0.0/24"} // of cniHostLocal
	})
	t.Run("versions", c.cniVersions)
	t.Run("CHECK finds what is not as it was made", c.cniCheck)
	t.Run("GC removes what is of no pod", c.cniCollect)
	t.Run("sandboxes come and go out of order", c.cniSandboxes)
	t.Run("felix is restarted", c.cniRestart)
	t.Run("bad input", c.cniBadInput)
	t.Run("exhausted pool", c.cniExhausted)
	t.Run("annotations", c.cniAnnotations)
	t.Run("bandwidth", c.cniBandwidth)
	t.Run("host ports", c.cniHostPorts)
	t.Run("host-local", c.cniHostLocal)
}

// conflist lets a node have another network configuration until the test ends. change is given its only plugin.
func (c *cluster) conflist(t *testing.T, node, version string, change func(plugin map[string]any) (further []any)) {
	t.Helper()
	path := filepath.Join(c.StateDir(), "nodes", node, "etc-cni", "net.d", "10-calico.conflist")
	ordinary, err := os.ReadFile(path)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.WriteFile(path, ordinary, 0o644)) })
	var list map[string]any
	require.NoError(t, json.Unmarshal(ordinary, &list))
	list["cniVersion"] = version
	plugins := list["plugins"].([]any)
	if change != nil {
		list["plugins"] = append(plugins, change(plugins[0].(map[string]any))...)
	}
	body, err := json.Marshal(list)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, body, 0o644))
}

// cniVersions: every version of the specification, with every verb that it has.
func (c *cluster) cniVersions(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			c.conflist(t, "worker-1", version, nil)
			st := c.add(t, "versioned", "worker-1")
			defer c.del(t, "versioned")
			require.Len(t, st.Addresses, 2, "one of each family")
			c.reaches(t, "pod-2", st.Addresses[0])
			err := c.PodCheck(within(t, patience), "versioned")
			if version == "0.3.1" {
				require.ErrorContains(t, err, "CHECK", "there was none yet")
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, c.CNIStatus(within(t, patience), "versioned"))
		})
	}
}

func (c *cluster) cniCheck(t *testing.T) {
	st := c.add(t, "checked", "worker-1")
	defer c.del(t, "checked")
	check := func() error { return c.PodCheck(within(t, patience), "checked") }
	require.NoError(t, check())
	v4, v6 := st.Addresses[0], st.Addresses[1]
	c.cniRepair(t, st, check)
	for _, x := range []struct{ spoil, repair, says string }{
		{
			fmt.Sprintf("ip addr del %s/32 dev eth0", v4),
			fmt.Sprintf("ip addr add %s/32 dev eth0; ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1; "+
				"ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent", v4),
			"lacks address " + v4.String(),
		},
		{fmt.Sprintf("ip addr del %s/128 dev eth0", v6), fmt.Sprintf("ip addr add %s/128 dev eth0 nodad", v6), "lacks address " + v6.String()},
		{"ip route del default", "ip route add default via 169.254.1.1", "lacks the route to 0.0.0.0/0"},
		{"ip neigh del 169.254.1.1 dev eth0", "ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent", "its gateway 169.254.1.1"},
		{"sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0", "net/ipv4/ip_forward in the pod is 1, not 0"},
		{"ip -6 route del default", "ip -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0", "lacks the route to ::/0"},
		{"ip link set eth0 down", "ip link set eth0 up", "interface eth0 in the pod is down"},
	} {
		c.sh(t, "checked", x.spoil)
		require.ErrorContains(t, check(), x.says, x.spoil)
		if x.repair == "ip link set eth0 up" {
			return // with the link all routes went, too
		}
		c.sh(t, "checked", x.repair)
		require.NoError(t, check(), x.repair)
	}
}

// cniRepair: what is felix's is there again when CHECK has ended, whether or not CHECK named it.
func (c *cluster) cniRepair(t *testing.T, st lab.PodStatus, check func() error) {
	node, iface := "worker-1", st.HostInterface
	for _, x := range []struct{ what, spoil, shows string }{
		{"guard", "nft flush chain netdev calico from-" + iface, "nft -s list chain netdev calico from-" + iface},
		{"rules", "nft flush chain ip calico filter-FORWARD", "nft -s list chain ip calico filter-FORWARD"},
		{"route", fmt.Sprintf("ip route del %s dev %s", st.Addresses[0], iface), "ip route show dev " + iface},
		{"IPv6 route", fmt.Sprintf("ip -6 route del %s dev %s", st.Addresses[1], iface), "ip -6 route show " + st.Addresses[1].String() + " dev " + iface},
		{"sysctl", "sysctl -qw net.ipv4.conf." + iface + ".proxy_arp=0", "sysctl net.ipv4.conf." + iface + ".proxy_arp"},
	} {
		before := c.sh(t, node, x.shows)
		c.sh(t, node, x.spoil)
		if err := check(); err != nil {
			t.Logf("%s: CHECK says %v", x.what, err)
			require.ErrorContains(t, err, iface, x.what)
		}
		require.Equal(t, before, c.sh(t, node, x.shows), "%s is there again when CHECK has ended", x.what)
		require.NoError(t, check(), x.what)
	}
	c.reaches(t, "pod-2", st.Addresses[0])
}

func (c *cluster) cniCollect(t *testing.T) {
	for _, version := range []string{"1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			c.conflist(t, "worker-1", version, nil)
			stale, stays := c.add(t, "stale", "worker-1"), c.add(t, "stays", "worker-1")
			defer c.del(t, "stays")
			defer c.del(t, "stale") // again, after its DEL by GC
			require.NoError(t, c.CNICollect(within(t, patience), "stale"))
			links := c.run(t, "worker-1", "ip", "-o", "link")
			require.NotContains(t, links, stale.HostInterface)
			require.Contains(t, links, stays.HostInterface)
			c.reaches(t, "pod-2", stays.Addresses[0])
		})
	}
}

// plugin calls the calico plugin of a node as a runtime does, and returns what it printed and its exit code.
func (c *cluster) plugin(t *testing.T, node, verb, container, netns, pod string, more map[string]any) (out string, code int) {
	t.Helper()
	conf := map[string]any{"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico", "ipam": map[string]any{"type": "calico-ipam"}}
	maps.Copy(conf, more)
	stdin, err := json.Marshal(conf)
	require.NoError(t, err)
	var said bytes.Buffer
	code, err = c.Exec(within(t, patience), node, lab.Command{
		Args: []string{"/opt/cni/bin/calico"}, Stdin: bytes.NewReader(stdin), Stdout: &said, Stderr: io.Discard,
		Env: []string{
			"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + pod,
		},
	})
	require.NoError(t, err)
	return said.String(), code
}

// refused calls the plugin, which must fail with a code of the specification.
func (c *cluster) refused(t *testing.T, wantCode uint, says, verb, container, netns, pod string, more map[string]any) {
	t.Helper()
	out, code := c.plugin(t, "worker-1", verb, container, netns, pod, more)
	require.NotZero(t, code, out)
	var e struct {
		Code         uint
		Msg, Details string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &e), out)
	assert.Equal(t, wantCode, e.Code, out)
	assert.Contains(t, e.Msg+" "+e.Details, says)
}

// space makes a network namespace on worker-1 for as long as the test takes, and returns its path.
func (c *cluster) space(t *testing.T, name string) string {
	t.Helper()
	c.run(t, "worker-1", "ip", "netns", "add", name)
	t.Cleanup(func() { _, _ = c.Run(t.Context(), "worker-1", "ip", "netns", "del", name) })
	return "/run/netns/" + name
}

// cniSandboxes: what runtimes do to pods of one name.
func (c *cluster) cniSandboxes(t *testing.T) {
	one, two := c.space(t, "cni-one"), c.space(t, "cni-two")
	first, code := c.plugin(t, "worker-1", "ADD", "sandbox-1", one, "again", nil)
	require.Zero(t, code, first)
	same, code := c.plugin(t, "worker-1", "ADD", "sandbox-1", one, "again", nil)
	require.Zero(t, code, same)
	require.JSONEq(t, first, same, "the same call again")

	second, code := c.plugin(t, "worker-1", "ADD", "sandbox-2", two, "again", nil)
	require.Zero(t, code, second)
	out, code := c.plugin(t, "worker-1", "DEL", "sandbox-1", one, "again", nil)
	require.Zero(t, code, out)
	require.Contains(t, c.run(t, "worker-1", "ip", "-n", "cni-two", "addr"), "scope global", "a late DEL does not hurt the successor")

	c.run(t, "worker-1", "ip", "netns", "del", "cni-two") // gone before its DEL
	for range 2 {
		out, code = c.plugin(t, "worker-1", "DEL", "sandbox-2", two, "again", nil)
		require.Zero(t, code, out)
	}
	out, code = c.plugin(t, "worker-1", "DEL", "never-was", "", "never", nil)
	require.Zero(t, code, out)
}

// cniRestart: pods start and end while felix is restarted, without the runtime's trying again; and STATUS says that it is away. Where
// felix takes longer to start than the plugin waits, on a busy machine, it is restarted once more.
func (c *cluster) cniRestart(t *testing.T) {
	restart := func() error {
		c.add(t, "leaves", "worker-1")
		c.kill(t, felix)
		status, code := c.plugin(t, "worker-1", "STATUS", "", "", "", map[string]any{"cniVersion": "1.1.0"})
		require.NotZero(t, code)
		require.Contains(t, status, `"code": 50`)
		require.Contains(t, status, "felix has not answered on ")
		var calls errgroup.Group
		calls.Go(func() error {
			_, err := c.PodAdd(within(t, patience), lab.Pod{Name: "comes", Node: "worker-1"})
			return err
		})
		calls.Go(func() error { return c.PodDel(within(t, patience), "leaves") })
		c.start(t, felix)
		return calls.Wait()
	}
	for try := 1; ; try++ {
		err := restart()
		if err == nil {
			break
		}
		require.Less(t, try, 5, err)
		t.Log(err)
		c.awaitReady(t, "worker-1")
		for _, pod := range []string{"comes", "leaves"} {
			_ = c.PodDel(within(t, patience), pod) // it may not be there
		}
	}
	c.reaches(t, "pod-2", c.address(t, "comes"))
	c.del(t, "comes")
}

// annotated is a configuration with an annotation of the pod, as containerd hands it on.
func annotated(key, value string) map[string]any {
	return map[string]any{"runtimeConfig": map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{key: value}}}
}

func (c *cluster) cniBadInput(t *testing.T) {
	bad := c.space(t, "cni-bad")
	for _, x := range []struct {
		name  string
		code  uint
		says  string
		netns string
		more  map[string]any
	}{
		{"unknown key", 7, `key "mtuu" is unknown; did you mean "mtu"?`, bad, map[string]any{"mtuu": 1400}},
		{"bad annotation", 7, `"nonsense" is not the Ethernet address`, bad, annotated("cni.projectcalico.org/hwAddr", "nonsense")},
		{"no such pool", 7, "no-such-pool", bad, annotated("cni.projectcalico.org/ipv4pools", `["no-such-pool"]`)},
		{"address outside of all pools", 7, "203.0.113.9", bad, annotated("cni.projectcalico.org/ipAddrs", `["203.0.113.9"]`)},
		{"missing namespace", 4, "/run/netns/nowhere", "/run/netns/nowhere", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.refused(t, x.code, x.says, "ADD", "bad-1", x.netns, "bad", x.more)
			out, code := c.plugin(t, "worker-1", "DEL", "bad-1", x.netns, "bad", x.more)
			require.Zero(t, code, "the runtime cleans up: %s", out)
		})
	}
	require.NotContains(t, c.run(t, "worker-1", "ip", "-n", "cni-bad", "link"), "eth0", "nothing stays behind")
}

// cniExhausted: a pool that has no address left is named, with why others were passed over.
func (c *cluster) cniExhausted(t *testing.T) {
	c.apply(t, pool("one-address", "cidr: 10.99.99.0/32, blockSize: 32, assignmentMode: Manual"))
	c.apply(t, pool("balancers", "cidr: 10.99.98.0/28, blockSize: 28, allowedUses: [LoadBalancer]"))
	one := lab.Pod{Name: "first-of-one", Node: "worker-1", Annotations: map[string]string{
		"cni.projectcalico.org/ipv4pools": `["one-address", "balancers"]`, "cni.projectcalico.org/ipFamilies": `["IPv4"]`,
	}}
	st, err := c.PodAdd(within(t, patience), one)
	require.NoError(t, err)
	require.Equal(t, netip.MustParseAddr("10.99.99.0"), st.Addresses[0])
	second := one
	second.Name = "second-of-one"
	_, err = c.PodAdd(within(t, patience), second)
	require.ErrorContains(t, err, "Assigned 0 out of 1 requested IPv4 addresses; No IPs available in pools: [10.99.99.0/32]; "+
		"Pools tried: one-address (10.99.99.0/32): 0 of 1 addresses free, 1 in use; "+
		"Pools passed over: balancers (10.99.98.0/28): its allowedUses are [LoadBalancer]")
	c.del(t, one.Name)
	c.run(t, "master", "calicoctl", "delete", "ippool", "one-address", "balancers")
}

func (c *cluster) cniAnnotations(t *testing.T) {
	want := c.fixedAddress(t)
	st, err := c.PodAdd(within(t, patience), lab.Pod{Name: "asked", Node: "worker-1", Annotations: map[string]string{
		"cni.projectcalico.org/ipAddrs": fmt.Sprintf("[%q]", want), "cni.projectcalico.org/hwAddr": "02:00:5e:10:00:01",
	}})
	require.NoError(t, err)
	defer c.del(t, "asked")
	require.Equal(t, []netip.Addr{want}, st.Addresses)
	require.Contains(t, c.run(t, "asked", "ip", "link", "show", "eth0"), "02:00:5e:10:00:01")
	c.reaches(t, "pod-2", want)
	c.refused(t, 7, "(pod default/asked on node worker-1); choose another one", "ADD", "late-1", c.space(t, "cni-late"), "late",
		annotated("cni.projectcalico.org/ipAddrs", fmt.Sprintf("[%q]", want)))

	four, err := c.PodAdd(within(t, patience), lab.Pod{Name: "four", Node: "worker-1", Annotations: map[string]string{"cni.projectcalico.org/ipFamilies": `["IPv4"]`}})
	require.NoError(t, err)
	defer c.del(t, "four")
	require.Len(t, four.Addresses, 1)
	require.True(t, four.Addresses[0].Is4())
}

// fixedAddress is one that nobody has: the last of a pod's block.
func (c *cluster) fixedAddress(t *testing.T) netip.Addr {
	t.Helper()
	b := c.address(t, "pod-1").As4()
	b[3] |= 63
	return netip.AddrFrom4(b)
}

// cniBandwidth: limits are programmed on both ends of the pair, shown by the endpoint, and gone with it.
func (c *cluster) cniBandwidth(t *testing.T) {
	st, err := c.PodAdd(within(t, patience), lab.Pod{Name: "slow", Node: "worker-1", Annotations: map[string]string{
		"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1M", "qos.projectcalico.org/egressBandwidth": "20M",
	}})
	require.NoError(t, err)
	c.reaches(t, "pod-2", st.Addresses[0])
	require.Contains(t, c.run(t, "worker-1", "tc", "qdisc", "show", "dev", st.HostInterface), "tbf ca11: root refcnt 2 rate 10Mbit")
	require.Contains(t, c.run(t, "slow", "tc", "qdisc", "show", "dev", "eth0"), "rate 20Mbit", "Calico's form beats Kubernetes'")
	require.NoError(t, c.PodCheck(within(t, patience), "slow"))
	c.sh(t, "slow", "tc qdisc del dev eth0 root")
	require.ErrorContains(t, c.PodCheck(within(t, patience), "slow"), "what the pod sends is not bounded to 20000000 bit/s")
	seen, ok := c.calicoctl(t, "", "get", "workloadendpoints", "-n", "default", "-o", "yaml")
	require.True(t, ok, seen)
	require.Contains(t, seen, "ingressBandwidth: 10000000")
	c.del(t, "slow")
	require.NotContains(t, c.run(t, "worker-1", "tc", "qdisc"), "tbf")
}

// stock builds plugins of the CNI project and puts them where a node's runtime looks.
func (c *cluster) stock(t *testing.T, node string, packages ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range packages {
		to := filepath.Join(dir, filepath.Base(p))
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", to, "github.com/containernetworking/plugins/plugins/"+p)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		link := filepath.Join(c.StateDir(), "nodes", node, "opt-cni", "bin", filepath.Base(p))
		require.NoError(t, os.Symlink(to, link))
		t.Cleanup(func() { assert.NoError(t, os.Remove(link)) })
	}
}

// cniHostPorts: the reference portmap behind calico in a chain.
func (c *cluster) cniHostPorts(t *testing.T) {
	c.stock(t, "worker-1", "meta/portmap")
	c.conflist(t, "worker-1", "1.0.0", func(map[string]any) []any {
		return []any{map[string]any{"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true}}}
	})
	_, err := c.PodAdd(within(t, patience), lab.Pod{Name: "served", Node: "worker-1", HostPorts: []lab.HostPort{{Host: 8088, Pod: 80, Protocol: "tcp"}}})
	require.NoError(t, err)
	defer c.del(t, "served")
	require.NoError(t, c.PodCheck(within(t, patience), "served"))
	listener, err := c.Listen(within(t, patience), "served", netip.MustParseAddrPort("0.0.0.0:80"))
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("hello"))
			conn.Close()
		}
	}()
	port := netip.AddrPortFrom(c.nodeAddress("worker-1"), 8088)
	eventually(t, patience, func() string {
		conn, err := c.Dial(within(t, bound(5*time.Second)), "worker-2", port)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		said, err := io.ReadAll(conn)
		if string(said) != "hello" {
			return fmt.Sprintf("%s said %q: %v", port, said, err)
		}
		return ""
	})
}

// nodeAddress is a node's own address.
func (c *cluster) nodeAddress(name string) netip.Addr {
	for _, n := range c.topology.Nodes {
		if n.Name == name {
			return n.Addresses[0]
		}
	}
	return netip.Addr{}
}

// cniHostLocal: another IPAM plugin gives addresses, of no pool; felix wires and polices the pod all the same.
func (c *cluster) cniHostLocal(t *testing.T) {
	c.stock(t, "worker-1", "ipam/host-local")
	c.conflist(t, "worker-1", "1.0.0", func(plugin map[string]any) []any {
		plugin["ipam"] = map[string]any{"type": "host-local", "dataDir": "/run/host-local", "ranges": [][]map[string]string{{{"subnet": "10.77.0.0/24"}}}}
		return nil
	})
	st := c.add(t, "local", "worker-1")
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.77.0.2")}, st.Addresses)
	c.reaches(t, "worker-1", st.Addresses[0])
	require.NoError(t, c.PodCheck(within(t, patience), "local"))
	c.del(t, "local")
	require.NotContains(t, c.run(t, "worker-1", "ip", "route"), "10.77.0.2")
}
