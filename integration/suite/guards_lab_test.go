//go:build lab

package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/integration/vm"
)

// tunnels are the two ways to put a packet into another one.
var tunnels = []lab.Encapsulation{lab.EncapIPIP, lab.EncapVXLAN}

// guarded requires, where packets of pods travel in a tunnel, that it takes nothing from others: what a machine that is no node
// puts into it is not unpacked, though the very same from a node is; and pods' own tunnel packets do not leave their node, though
// the node's do.
func (c *cluster) guarded(t *testing.T, used lab.Encapsulation) {
	one, two := c.pod(t, "pod-1"), c.pod(t, "pod-2")
	t.Run("against strangers", func(t *testing.T) {
		node, pod := c.capture(t, one.Node, "ens5"), c.capture(t, one.ID, "eth0")
		for _, in := range tunnels {
			c.sendUntil(t, wrapped{"router", in, two, one}, node.came)
		}
		c.sendUntil(t, wrapped{two.Node, used, two, one}, pod.came)
		for _, in := range tunnels {
			assert.Empty(t, pod.came(t, wrapped{"router", in, two, one}), "%s from the router was unpacked", in)
		}
	})
	t.Run("against pods", func(t *testing.T) {
		inside, leaves := c.capture(t, one.Node, one.HostInterface), c.capture(t, one.Node, "ens5")
		node, pod := c.capture(t, two.Node, "ens5"), c.capture(t, two.ID, "eth0")
		judge := func() {
			t.Helper()
			for _, in := range tunnels {
				made := wrapped{one.ID, in, one, two}
				require.Empty(t, leaves.left(t, made), "%s that a pod made left its node", in)
				require.Empty(t, node.came(t, made), "%s that a pod made came to the other node", in)
				require.Empty(t, pod.came(t, made), "%s that a pod made was unpacked", in)
			}
		}
		for _, in := range tunnels {
			c.sendUntil(t, wrapped{one.ID, in, one, two}, inside.came)
		}
		judge() // first: what leaves by mistake has the node's address, and takes the place of the node's own among the connections
		for _, in := range tunnels {
			c.sendUntil(t, wrapped{one.Node, in, one, two}, leaves.left)
			c.sendUntil(t, wrapped{one.Node, in, one, two}, node.came)
		}
		c.sendUntil(t, wrapped{one.Node, used, one, two}, pod.came)
		judge()
	})
}

// wrapped is a packet from a pod to a pod, put into a tunnel's by hand, which goes to the node of the second one.
type wrapped struct {
	by       string // where it is sent: node, pod or router
	in       lab.Encapsulation
	from, to lab.PodStatus
}

// word is in the packet, to know it by.
func (w wrapped) word() string { return fmt.Sprintf("<%s by %s to %s>", w.in, w.by, w.to.ID) }

// sendUntil sends a packet again and again until it is seen.
func (c *cluster) sendUntil(t *testing.T, w wrapped, seen func(*testing.T, wrapped) []string) {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: w.from.Addresses[0].AsSlice(), DstIP: w.to.Addresses[0].AsSlice()}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 4001}
	require.NoError(t, udp.SetNetworkLayerForChecksum(ip))
	packet := []gopacket.SerializableLayer{ip, udp, gopacket.Payload(w.word())}
	ctx, node := within(t, patience), c.nodeAddress(w.to.Node)
	var conn net.Conn
	var err error
	if w.in == lab.EncapIPIP {
		conn, err = c.DialIP(ctx, w.by, int(layers.IPProtocolIPv4), node)
	} else {
		packet = append([]gopacket.SerializableLayer{
			&layers.VXLAN{ValidIDFlag: true, VNI: 4096},
			&layers.Ethernet{SrcMAC: nobody, DstMAC: c.tunnelMAC(t, w.to.Node), EthernetType: layers.EthernetTypeIPv4},
		}, packet...)
		conn, err = c.DialUDP(ctx, w.by, netip.AddrPortFrom(netip.IPv4Unspecified(), 0), netip.AddrPortFrom(node, 4789))
	}
	require.NoError(t, err)
	defer conn.Close()
	buffer := gopacket.NewSerializeBuffer()
	require.NoError(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, packet...))
	eventually(t, patience, func() string {
		_, err := conn.Write(buffer.Bytes()) // an error may be the answer to the one before
		if len(seen(t, w)) == 0 {
			return fmt.Sprintf("the packet %s was not seen: %v", w.word(), err)
		}
		return ""
	})
}

// came are the packets seen so far that came in by the interface, whatever they are in.
func (c *capture) came(t *testing.T, w wrapped) []string { return c.carrying(t, w, false) }

// left are those that went out by it.
func (c *capture) left(t *testing.T, w wrapped) []string { return c.carrying(t, w, true) }

func (c *capture) carrying(t *testing.T, w wrapped, outgoing bool) []string {
	t.Helper()
	return c.packets(t, func(p lab.Packet) bool { return p.Outgoing == outgoing && bytes.Contains(p.Data, []byte(w.word())) })
}

// link is what iproute2 says of a device.
type link struct {
	Address  string
	LinkInfo struct {
		Kind string `json:"info_kind"`
	}
}

// device looks at a device of a node that has it.
func (c *cluster) device(t *testing.T, node, name string) link {
	t.Helper()
	var links []link
	out := c.run(t, node, "ip", "-json", "-details", "link", "show", name)
	require.NoError(t, json.Unmarshal([]byte(out), &links), out)
	require.Len(t, links, 1, out)
	return links[0]
}

// nobody has this address.
var nobody = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// tunnelMAC is the address of a node's end of the VXLAN tunnel, or nobody's where there is none.
func (c *cluster) tunnelMAC(t *testing.T, node string) net.HardwareAddr {
	t.Helper()
	if c.sh(t, node, "ip -o link show vxlan.calico 2>/dev/null || true") == "" {
		return nobody
	}
	mac, err := net.ParseMAC(c.device(t, node, "vxlan.calico").Address)
	require.NoError(t, err)
	return mac
}

// tunl0OfTheRightKind requires that IP-in-IP is done on each node by what the test wants: by the kernel's own device where it has
// that, and by BPF where it has not, or where the node is told to.
func (c *cluster) tunl0OfTheRightKind(t *testing.T) {
	t.Helper()
	module := kernelHasIPIP(t)
	require.True(t, module || !vm.Inside(), "the second kernel is there for the sake of its ipip")
	for _, n := range c.topology.Nodes {
		want := "veth"
		if module && n.Env[envDriver] != driverBPF {
			want = "ipip"
		}
		assert.Equal(t, want, c.device(t, n.Name, "tunl0").LinkInfo.Kind, "the kind of tunl0 on %s", n.Name)
	}
}

// kernelHasIPIP finds out, by making one in a namespace that goes at once, whether this kernel has the device of the module ipip.
func kernelHasIPIP(t *testing.T) bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "unshare", "--net", "ip", "link", "add", "trial", "type", "ipip", "local", "192.0.2.1", "remote", "192.0.2.2").CombinedOutput()
	if err != nil {
		require.Regexp(t, "Unknown device type|not supported", string(out), "what the kernel says that has none")
	}
	return err == nil
}
