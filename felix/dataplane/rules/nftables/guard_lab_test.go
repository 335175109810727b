//go:build lab

package nftables_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
)

// Where sources are looked up.
const (
	device     = "device"
	prerouting = "raw-PREROUTING"
)

// Where the kernel refuses chains on devices, raw-PREROUTING does the same; the tests of all drivers are about devices.
func TestSpoofedSourcesWithoutGuards(t *testing.T) {
	without := kind
	without.New = func(ns *labtest.Namespace) (rulestest.Driver, error) {
		denyGuards(t)
		return kind.New(ns)
	}
	without.RunSpoofing(t)
}

// A source that is known to be the workload's own is not looked up in the routes; in raw-PREROUTING one of IPv4 is, which takes
// no longer there.
func TestOwnAddressesNeedNoRoute(t *testing.T) {
	for _, c := range []struct{ place, own, another, to, match string }{
		{device, addrA, "10.77.0.7", addrB, "ip saddr"},
		{device, sixA, "fd00:1::77", sixB, "ip6 saddr"},
		{prerouting, sixA, "fd00:1::77", sixB, "ip6 saddr"},
	} {
		t.Run(c.match+" at "+c.place, func(t *testing.T) {
			w := newWorld(t)
			if c.place == prerouting {
				denyGuards(t)
			}
			nodad := "" // of IPv6 alone: else the kernel makes it usable a while later
			if strings.Contains(c.another, ":") {
				nodad = " nodad"
			}
			w.a.Run(t, "ip addr add "+c.another+" dev lo"+nodad)
			for _, then := range []struct {
				own  []string
				want string
			}{{[]string{c.own}, "0"}, {[]string{c.own, c.another}, "1"}, {[]string{c.own}, "0"}} {
				d := bothOpen()
				x := under("open")
				x.Addresses = addrs(then.own...)
				d.Workloads.Put("cali1", x)
				w.apply(d)
				list := w.node.Run(t, "nft list ruleset")
				assert.Equal(t, c.place == device, strings.Contains(list, "from-cali1"))
				assert.Equal(t, c.place == prerouting, strings.Contains(list, "raw-PREROUTING"))
				count := w.probe(leaves, c.match+" "+c.another+" udp dport 53")
				w.Send(w.a, c.another, c.to, 53)
				w.a.Run(t, "ping -c 1 -W 30 "+addrB)
				assert.Equal(t, then.want, count(), then.own)
			}
		})
	}
}

// denyGuards has the kernel refuse the table of guards: somebody else has one of this name, and keeps it.
func denyGuards(t *testing.T) {
	t.Helper()
	other, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	require.NoError(t, err)
	t.Cleanup(func() { _ = other.Close() })
	add := nft.Table{Family: nft.NetDev, Name: "calico"}.Add()
	const ownerFlag = 2 // NFT_TABLE_F_OWNER: nobody else may change it
	add.Body = nlsock.AttrBE32(add.Body, unix.NFTA_TABLE_FLAGS, ownerFlag)
	refused, err := other.Transact(context.Background(), unix.NFNL_SUBSYS_NFTABLES, []nlsock.Message{add})
	require.NoError(t, errors.Join(append(refused, err)...))
}

// stranger makes a device with a workload's name that felix was not told of, or makes it anew, and a pod that uses the
// address of b.
func (w *world) stranger(device string) *labtest.Namespace {
	w.t.Helper()
	pod := labtest.New(w.t)
	w.wire(pod, device, "eth0", "ee:ee:ee:ee:ee:ee")
	w.node.Run(w.t, "sysctl -qw net.ipv4.conf."+device+".proxy_arp=1; ip link set "+device+" up")
	pod.Run(w.t, "ip link set eth0 up; ip addr add "+addrB+"/32 dev eth0; ip route add default dev eth0"+
		"; ip neigh replace "+outsideAddr+" lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")
	return pod
}

// Nobody writes into the flows of others, whatever is on: flows that exist pass policy, so that the source is all that
// keeps a stranger out.
func TestFlowsOfOthersAreGuarded(t *testing.T) {
	for _, place := range []string{device, prerouting} {
		t.Run("at "+place, func(t *testing.T) {
			w := newWorld(t)
			if place == prerouting {
				denyGuards(t)
			}
			w.driver.Whole()
			w.apply(bothOpen())
			w.watch()
			udpEcho(t, w.outside, ":53")
			require.True(t, udpAnswered(w.b, addrB+":5000", outsideAddr+":53", patience))
			spoof := func(from *labtest.Namespace, why string) {
				t.Helper()
				count := w.probe(leaves, "ip saddr "+addrB+" udp sport 5000")
				assert.False(t, udpAnswered(from, addrB+":5000", outsideAddr+":53", brief))
				assert.Equal(t, "0", count(), why)
			}
			w.a.Run(t, "ip addr add "+addrB+"/32 dev lo")
			spoof(w.a, "another pod")
			unknown := w.stranger("cali9")
			require.Eventually(t, w.driver.InSync, patience, time.Millisecond)
			spoof(unknown, "a device that nobody told of")
			w.node.Run(t, "ip link del cali1")
			again := w.stranger("cali1")
			require.Eventually(t, w.driver.InSync, patience, time.Millisecond)
			spoof(again, "a device made anew")
			w.node.Run(t, "ip link add other type veth peer name other.peer; ip link set other name cali8; ip link set cali8 up")
			if place == device {
				require.Eventually(t, func() bool {
					return strings.Contains(w.node.Run(t, "nft list ruleset"), "from-cali8")
				}, patience, time.Millisecond, "a device that got the name later")
				w.node.Run(t, "ip link del cali8")
				require.Eventually(t, func() bool {
					return !strings.Contains(w.node.Run(t, "nft list ruleset"), "from-cali8")
				}, patience, time.Millisecond, "no device, no chain")
			}
			require.True(t, udpAnswered(w.b, addrB+":5000", outsideAddr+":53", patience), "its owner still uses it")
		})
	}
}

// A workload's guard can be had before all else, so that its device is set up with it.
func TestGuardsComeFirst(t *testing.T) {
	w := newWorld(t)
	w.driver.Whole()
	w.driver.Update(bothOpen())
	w.driver.Guard(t.Context())
	list := w.node.Run(t, "nft list ruleset")
	require.Contains(t, list, "from-cali1")
	require.NotContains(t, list, "table ip calico")
	written := w.driver.Writes()
	w.driver.Guard(t.Context())
	require.Equal(t, written, w.driver.Writes(), "once")
	require.NoError(t, w.driver.Apply(t.Context()))
	require.True(t, w.driver.InSync())
}

// A workload may be known before its device is there. Then all is as it should be, and nobody is without a guard.
func TestGuardsWaitForDevices(t *testing.T) {
	w := newWorld(t)
	w.driver.Whole()
	d := bothOpen()
	d.Workloads.Put("cali7", under("open"))
	w.apply(d)
	require.True(t, w.driver.InSync())
	list := w.node.Run(t, "nft list ruleset")
	assert.True(t, strings.Contains(list, "from-cali7") || strings.Contains(list, "raw-PREROUTING"), list)
	w.watch()
	w.stranger("cali7")
	require.Eventually(t, func() bool {
		list := w.node.Run(t, "nft list ruleset")
		return strings.Contains(list, "from-cali7") && !strings.Contains(list, "raw-PREROUTING")
	}, patience, time.Millisecond)
}

// The kernel takes two tags off a packet that name no VLAN, the second one behind the guard.
func TestTagsHideNoSource(t *testing.T) {
	w := newWorld(t)
	w.apply(bothOpen())
	for _, tags := range [][]uint16{nil, {unix.ETH_P_8021Q}, {unix.ETH_P_8021Q, unix.ETH_P_8021Q}, {unix.ETH_P_8021Q, unix.ETH_P_8021AD}, {unix.ETH_P_8021AD, unix.ETH_P_8021Q}} {
		for source, passes := range map[string]bool{addrA: len(tags) < 2, "10.0.1.77": false} {
			count := w.probe(first, "ip saddr "+source+" udp dport 53")
			w.frame(w.a, source, addrB, tags)
			w.a.Run(t, "ping -c 1 -W 30 "+addrB)
			assert.Equal(t, map[bool]string{true: "1", false: "0"}[passes], count(), "tags %x, source %s", tags, source)
		}
	}
}

// frame sends a datagram to port 53 behind tags of VLAN 0.
func (w *world) frame(from *labtest.Namespace, source, to string, tags []uint16) {
	w.t.Helper()
	frame := []byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 2, 0, 0, 0, 0, 9}
	for _, tag := range tags {
		frame = append(binary.BigEndian.AppendUint16(frame, tag), 0, 0)
	}
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	ip := append([]byte{0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}, net.ParseIP(source).To4()...)
	ip = append(ip, net.ParseIP(to).To4()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	frame = append(append(frame, ip...), 0, 54, 0, 53, 0, 8, 0, 0)
	from.Do(w.t, func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index})
	})
}
