//go:build lab

package suite

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// followTime is how long devices, pods and routes may take to follow the network below, on a machine that rests for seconds
// now and then.
const followTime = 20 * time.Second

// tunnel is what a tunnel adds to a packet, in bytes, and its device.
type tunnel struct {
	bytes  int
	device string
}

// overhead are the tunnels of the modes of an IPv4 pool.
var overhead = map[lab.Mode]tunnel{
	lab.ModeDirect: {}, lab.ModeIPIP: {20, "tunl0"}, lab.ModeVXLAN: {50, "vxlan.calico"},
	lab.ModeIPIPCrossSubnet: {20, "tunl0"}, lab.ModeVXLANCrossSubnet: {50, "vxlan.calico"},
}

// overheadIPv6 is that of VXLAN over IPv6.
var overheadIPv6 = tunnel{70, "vxlan-v6.calico"}

// TestMTU: a packet as large as pods may send fits the path, one byte more does not and is answered so; when the network below
// changes, devices, both ends of pods, routes and the plugin's file follow, and connections go on.
func TestMTU(t *testing.T) {
	for _, mode := range lab.Modes() {
		t.Run(string(mode), func(t *testing.T) {
			c := up(t, "suite-mtu", mode, func(topo *lab.Topology) { forceBPF(t, topo) })
			if mode == lab.ModeDirect {
				c.teachRouter(t)
			}
			c.followsMTU(t, overhead[mode], false)
		})
	}
	t.Run("vxlan over IPv6", func(t *testing.T) {
		c := up(t, "suite-mtu", lab.ModeVXLAN, func(topo *lab.Topology) {
			dual, err := lab.DualStackTopology()
			require.NoError(t, err)
			dual.Pools[0], dual.Pools[1] = dual.Pools[0].WithMode(lab.ModeDirect), dual.Pools[1].WithMode(lab.ModeVXLAN)
			*topo = dual
		})
		c.followsMTU(t, overheadIPv6, true)
	})
}

// followsMTU changes the MTU of the network below.
func (c *cluster) followsMTU(t *testing.T, through tunnel, v6 bool) {
	bulk := c.stream(t, "pod-1", "pod-3", v6)
	c.sized(t, 1500, through)
	c.fits(t, 1500-through.bytes, v6)
	for _, mtu := range []int{1400, 1500} {
		began := time.Now()
		for _, n := range c.topology.Nodes {
			c.sh(t, n.Name, fmt.Sprintf("ip link set ens5 mtu %d", mtu))
		}
		c.sized(t, mtu, through)
		took := time.Since(began)
		t.Logf("all nodes followed to %d within %s", mtu, took.Round(time.Millisecond))
		assert.Less(t, took, bound(followTime))
		c.fits(t, mtu-through.bytes, v6)
		bulk.goesOn(t, "the network takes "+itoa(mtu))
	}
}

// sized waits until everything that has an MTU has the one that follows from the network's and the tunnel in use.
func (c *cluster) sized(t *testing.T, network int, extra tunnel) {
	t.Helper()
	size := itoa(network - extra.bytes)
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	eventually(t, patience, func() string {
		for _, p := range st.Pods {
			inside, err := c.Run(within(t, patience), p.ID, "ip", "-o", "link", "show", "eth0")
			if err != nil || !strings.Contains(inside, "mtu "+size+" ") {
				return fmt.Sprintf("%s is not at %s: %s %v", p.ID, size, inside, err)
			}
			outside := c.sh(t, p.Node, "ip -o link show "+p.HostInterface+"; echo file $(cat /var/lib/calico/mtu)")
			if !strings.Contains(outside, "mtu "+size+" ") || !strings.Contains(outside, "file "+size) {
				return fmt.Sprintf("the node's end of %s, or the file, is not at %s: %s", p.ID, size, outside)
			}
			if extra.device == "" {
				continue
			}
			device := c.sh(t, p.Node, "ip -o link show "+extra.device+"; ip route show dev "+extra.device+"; ip -6 route show dev "+extra.device)
			link, routes, _ := strings.Cut(device, "\n")
			if !strings.Contains(link, "mtu "+size+" ") {
				return fmt.Sprintf("%s of %s is not at %s: %s", extra.device, p.Node, size, link)
			}
			for route := range strings.Lines(routes) {
				if strings.Contains(route, "mtu ") && !strings.Contains(route, "mtu "+size) {
					return fmt.Sprintf("a route of %s is not at %s: %s", p.Node, size, route)
				}
			}
		}
		return ""
	})
}

// fits requires that packets of the given size, and no larger ones, get from pod-1 to every other pod.
func (c *cluster) fits(t *testing.T, size int, v6 bool) {
	t.Helper()
	headers, flush := 20+8, "ip route flush cache" // of IP and ICMP
	if v6 {
		headers, flush = 40+8, "ip -6 route flush cache"
	}
	// While some nodes have changed and others have not, pods are told, and rightly so, of paths that are smaller than their
	// device; the kernel believes it for ten minutes.
	c.sh(t, "pod-1", flush)
	ping := func(to string, size int, how string) string {
		return fmt.Sprintf("ping -c1 -M do -s %d %s %s 2>&1", size-headers, how, firstOf(c.pod(t, to), v6))
	}
	const (
		answered = "-i0.2 -w60" // the first one may be lost while a neighbour is found
		once     = "-W10"       // what says no says so at once
	)
	for _, to := range []string{"pod-2", "pod-3"} {
		c.sh(t, "pod-1", ping(to, size, answered))
		larger := c.sh(t, "pod-1", "! "+ping(to, size+1, once))
		assert.Regexp(t, "(?i)message too long", larger, "the pod's own device says so")
	}
	// A pod that thinks its device takes more is told how much by its node.
	c.sh(t, "pod-1", "ip link set eth0 mtu "+itoa(size+4))
	told := c.sh(t, "pod-1", "! "+ping("pod-2", size+1, once))
	c.sh(t, "pod-1", "ip link set eth0 mtu "+itoa(size)+"; "+flush)
	assert.Regexp(t, fmt.Sprintf("mtu ?= ?%d\\b", size), told)
}

// stream is a connection that carries as much as it can all the time.
type stream struct{ received atomic.Int64 }

func (c *cluster) stream(t *testing.T, from, to string, v6 bool) *stream {
	t.Helper()
	client, server := c.connection(t, from, to, netip.AddrPortFrom(firstOf(c.pod(t, to), v6), 7100))
	s, ended := &stream{}, make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		chunk := make([]byte, 1<<16)
		tick := time.NewTicker(bound(5 * time.Millisecond)) // 13 MB/s: enough to be full-size packets, and to leave the processors to others
		defer tick.Stop()
		for {
			if _, err := client.Write(chunk); err != nil {
				return
			}
			<-tick.C
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		chunk := make([]byte, 1<<16)
		for {
			n, err := server.Read(chunk)
			s.received.Add(int64(n))
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					t.Logf("the stream ended: %v", err)
				}
				return
			}
		}
	}()
	t.Cleanup(func() {
		_, _ = client.Close(), server.Close()
		<-ended
		<-ended
	})
	s.goesOn(t, "at the beginning")
	return s
}

// goesOn requires that a megabyte more arrives soon.
func (s *stream) goesOn(t *testing.T, when string) {
	t.Helper()
	before := s.received.Load()
	took := eventually(t, patience, func() string {
		if now := s.received.Load(); now < before+1<<20 {
			return fmt.Sprintf("only %d bytes came (%s)", now-before, when)
		}
		return ""
	})
	t.Logf("%s: the next megabyte came within %s", when, took.Round(time.Millisecond))
}

// TestMTUSettings: FelixConfiguration changes the MTU live; a node's own object wins over the cluster's, and the node's
// environment over both; zero goes back to automatic.
func TestMTUSettings(t *testing.T) {
	c := up(t, "suite-mtu-settings", lab.ModeVXLAN, func(topo *lab.Topology) {
		for i := range topo.Nodes {
			if topo.Nodes[i].Name == "worker-3" {
				topo.Nodes[i].Env = map[string]string{"FELIX_VXLANMTU": "1300", "FELIX_VXLANPORT": "many"}
			}
		}
	})
	are := func(one, two, three int) {
		t.Helper()
		for pod, mtu := range map[string]int{"pod-1": one, "pod-2": two, "pod-3": three} {
			eventually(t, patience, func() string {
				p := c.pod(t, pod)
				seen := c.sh(t, pod, "ip -o link show eth0") + c.sh(t, p.Node, "ip -o link show "+p.HostInterface+"; ip -o link show vxlan.calico; ip route show dev vxlan.calico | grep onlink | tail -1")
				if n := strings.Count(seen, "mtu "+itoa(mtu)); n != 4 {
					return fmt.Sprintf("%s and its node are not at %d everywhere:\n%s", pod, mtu, seen)
				}
				return ""
			})
		}
	}
	are(1450, 1450, 1300)
	require.Contains(t, c.log(t, victim{"worker-3", "felix"}), `environment variable FELIX_VXLANPORT is ignored: vxlanPort: \"many\"`)
	configure := func(name string, mtu int) {
		t.Helper()
		c.apply(t, fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: %s}, spec: {vxlanMTU: %d}}", name, mtu))
	}
	configure("default", 1400)
	are(1400, 1400, 1300)
	configure("node.worker-2", 1420)
	configure("node.worker-3", 1420)
	are(1400, 1420, 1300)
	configure("default", 9000)
	are(1450, 1420, 1300)
	eventually(t, patience, func() string {
		if !strings.Contains(c.log(t, victim{"worker-1", "felix"}), "vxlanMTU is 9000, but the network between the nodes carries packets of 1500 bytes: 1450 is used") {
			return "nobody warned of an MTU that does not fit"
		}
		return ""
	})
	configure("default", 0)
	are(1450, 1420, 1300)
	p, err := c.PodAdd(within(t, patience), lab.Pod{Name: "late", Node: "worker-2"})
	require.NoError(t, err)
	require.Contains(t, c.sh(t, p.ID, "ip -o link show eth0"), "mtu 1420", "a new pod")

	// Checksum offload of the tunnel is as the probe found it right, and as the user says.
	offload := func(want string) {
		t.Helper()
		eventually(t, patience, func() string {
			if now := c.sh(t, "worker-1", "ethtool -k vxlan.calico | sed -n 's/^tx-checksumming: //p'"); strings.TrimSpace(now) != want {
				return "checksum offload is " + now
			}
			return ""
		})
	}
	offload("on")
	override := func(value string) {
		t.Helper()
		c.apply(t, fmt.Sprintf("{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {featureDetectOverride: %q}}", value))
	}
	override("ChecksumOffloadBroken=true")
	offload("off")
	c.reachable(t)
	override("ChecksumOffloadBroken=false")
	offload("on")
}

// TestCheckMTU: a link on the way that takes less than the nodes think, and says nothing, is found and named.
func TestCheckMTU(t *testing.T) {
	c := up(t, "suite-checkmtu", lab.ModeVXLAN, nil)
	check := func(node string, args ...string) (string, error) {
		return c.Run(within(t, patience), node, append([]string{"calicoctl", "node", "checkmtu"}, args...)...)
	}
	for _, n := range c.topology.Nodes {
		out, err := check(n.Name)
		require.NoError(t, err, out)
		require.Equal(t, len(c.topology.Nodes)-1, strings.Count(out, "| ok "), out)
	}

	c.sh(t, "router", `dev=$(ip -o -4 addr show to 10.30.1.1 | awk '{print $2}'); ip link set $dev mtu 1412
		nft 'add table ip quiet; add chain ip quiet out { type filter hook output priority 0; }; add rule ip quiet out icmp type destination-unreachable drop'`)
	began := time.Now()
	said := &strings.Builder{}
	shown := &strings.Builder{}
	code, err := c.Exec(within(t, patience), "worker-1", lab.Command{Args: []string{"calicoctl", "node", "checkmtu"}, Stdout: shown, Stderr: said})
	require.NoError(t, err)
	require.Equal(t, 1, code)
	took := time.Since(began)
	t.Logf("in %s:\n%s%s", took.Round(time.Millisecond), shown, said)
	assert.Contains(t, said.String(), "node worker-3 (10.30.1.66): packets of 1500 bytes do not arrive, the largest that do have 1412; raise the MTU of the links on the way to 1500, or set vxlanMTU to 1362 in FelixConfiguration")
	assert.NotContains(t, said.String(), "worker-2")
	out, err := check("worker-1", "worker-2", "-o", "json")
	require.NoError(t, err)
	assert.Contains(t, out, `"ok": true`)
	assert.NotContains(t, out, "worker-3")

	// What it says to do helps.
	c.apply(t, "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {vxlanMTU: 1362}}")
	eventually(t, patience, func() string {
		if out, err := check("worker-1"); err != nil {
			return out + err.Error()
		}
		return ""
	})
	c.kill(t, victim{"worker-3", "felix"})
	_, err = check("worker-1", "worker-9")
	require.ErrorContains(t, err, "there is no way to node worker-9")
}

// TestCheckSystem: what pools need and the kernel has is told, by felix as it runs.
func TestCheckSystem(t *testing.T) {
	c := up(t, "suite-checksystem", lab.ModeVXLAN, nil)
	out := c.run(t, "worker-1", "calicoctl", "node", "checksystem")
	t.Log("\n" + out)
	assert.Regexp(t, `\| nftables +\| OK `, out)
	assert.Regexp(t, `\| vxlan +\| OK +\| pool default-ipv4-ippool `, out)
	assert.Regexp(t, `\| checksum-offload +\| OK `, out)
	assert.Contains(t, out, "System meets minimum system requirements to run Calico!")
}
