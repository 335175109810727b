//go:build lab

package conntrack_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
)

const cut = 0x80000

// patience is for what must come: a busy machine rests for seconds.
const patience = 30 * time.Second

// world is a router between a client (10.1.0.2, fd01::2) and a server (10.2.0.2, fd02::2), which drops what is marked and then
// accepts what is established. New connections to the server's 10.2.0.2 pass unless the set "forbidden" has their source; to
// 10.9.0.1:80 they are led to 10.2.0.2:80.
type world struct {
	client, server, router *labtest.Namespace
	table                  *conntrack.Table
}

func newWorld(t *testing.T) *world {
	w := &world{client: labtest.New(t), server: labtest.New(t)}
	w.router = labtest.Enter(t)
	w.router.Run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for i, ns := range []*labtest.Namespace{w.client, w.server} {
		ns.Run(t, fmt.Sprintf("ip link add eth0 type veth peer name in%d && ip link set in%d netns %s", i+1, i+1, w.router.Path))
		ns.Run(t, fmt.Sprintf(`sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link set eth0 up; ip addr add 10.%[1]d.0.2/24 dev eth0; ip -6 addr add fd0%[1]d::2/64 dev eth0 nodad
			ip route add default via 10.%[1]d.0.1; ip -6 route add default via fd0%[1]d::1`, i+1))
		w.router.Run(t, fmt.Sprintf("sysctl -qw net.ipv6.conf.in%[1]d.accept_dad=0; ip addr add 10.%[1]d.0.1/24 dev in%[1]d; ip -6 addr add fd0%[1]d::1/64 dev in%[1]d nodad; ip link set in%[1]d up", i+1))
	}
	w.router.Run(t, `nft -f - <<'END'
		table inet t {
			set forbidden { type ipv4_addr; }
			chain forward {
				type filter hook forward priority 0
				ct mark and 0x80000 != 0 counter drop
				ct state established,related accept
				ip saddr @forbidden counter drop
			}
			chain lead {
				type nat hook prerouting priority -100
				ip daddr 10.9.0.1 tcp dport 80 dnat ip to 10.2.0.2
			}
		}
END`)
	var err error
	w.table, err = conntrack.Open()
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.table.Close() })
	return w
}

// flows are the connections selected, but for the router's own.
func (w *world) flows(t *testing.T, s conntrack.Select) []conntrack.Flow {
	t.Helper()
	all, err := w.table.Flows(context.Background(), s, func(f *conntrack.Flow) bool { return f.Original.Protocol == 6 || f.Original.Protocol == 17 })
	require.NoError(t, err)
	return all
}

func (w *world) mark(t *testing.T, flows []conntrack.Flow) {
	t.Helper()
	require.NoError(t, w.table.Mark(context.Background(), flows, cut, cut))
}

// connect makes a TCP connection from the client, and returns both ends.
func (w *world) connect(t *testing.T, listen, to string) (client, server net.Conn) {
	t.Helper()
	var l net.Listener
	w.server.Do(t, func() (err error) { l, err = net.Listen("tcp", listen); return err })
	defer l.Close()
	w.client.Do(t, func() (err error) { client, err = net.DialTimeout("tcp", to, patience); return err })
	server, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	require.True(t, carries(client, server), "the connection works")
	require.True(t, carries(server, client), "the connection works")
	return client, server
}

// carries tells whether what one end says arrives at the other.
func carries(from, to net.Conn) bool { return within(from, to, patience) }

func within(from, to net.Conn, wait time.Duration) bool {
	if _, err := from.Write([]byte("hello")); err != nil {
		return false
	}
	_ = to.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 5)
	_, err := to.Read(b)
	return err == nil
}

func TestSelection(t *testing.T) {
	w := newWorld(t)
	w.connect(t, ":81", "10.2.0.2:81")
	w.connect(t, ":80", "10.9.0.1:80")
	w.connect(t, ":82", "[fd02::2]:82")
	a := netip.MustParseAddr
	assert.Len(t, w.flows(t, conntrack.Select{}), 3)
	assert.Len(t, w.flows(t, conntrack.Select{Source: a("10.1.0.2")}), 2)
	assert.Len(t, w.flows(t, conntrack.Select{Source: a("fd01::2")}), 1)
	assert.Len(t, w.flows(t, conntrack.Select{Destination: a("10.2.0.2")}), 2, "also what was led there")
	assert.Empty(t, w.flows(t, conntrack.Select{Destination: a("10.9.0.1")}))
	assert.Empty(t, w.flows(t, conntrack.Select{Marked: cut}))
	led := w.flows(t, conntrack.Select{Destination: a("10.2.0.2")})
	for _, f := range led {
		if f.Original.DestinationPort == 80 {
			assert.Equal(t, "10.9.0.1", f.Original.Destination.String())
			assert.Equal(t, uint16(80), f.Reply.SourcePort)
			assert.Contains(t, f.String(), "> 10.9.0.1:80 (10.2.0.2:80)")
		}
	}
	require.NoError(t, w.table.Mark(context.Background(), led, 5, 7))
	w.mark(t, led)
	marked := w.flows(t, conntrack.Select{Marked: cut})
	assert.Len(t, marked, 2)
	for _, f := range marked {
		assert.Equal(t, uint32(cut|5), f.Mark, "other bits of the mark stay")
	}
	require.NoError(t, w.table.Delete(context.Background(), marked))
	assert.Len(t, w.flows(t, conntrack.Select{}), 1)
	require.NoError(t, w.table.Delete(context.Background(), marked), "what is gone is no error")
	w.mark(t, marked)
	assert.Empty(t, w.flows(t, conntrack.Select{Marked: cut}), "marking makes no entries")
}

// A marked connection is dead in both directions, also a translated one; others are not; unmarked it goes on.
func TestMarkedConnectionsStop(t *testing.T) {
	w := newWorld(t)
	for name, to := range map[string]string{"direct": "10.2.0.2:80", "through DNAT": "10.9.0.1:80", "IPv6": "[fd02::2]:80"} {
		t.Run(name, func(t *testing.T) {
			client, server := w.connect(t, ":80", to)
			other, otherServer := w.connect(t, ":81", "10.2.0.2:81")
			w.mark(t, only(w.flows(t, conntrack.Select{}), client))
			assert.False(t, within(client, server, time.Second))
			assert.False(t, within(server, client, time.Second))
			assert.True(t, carries(other, otherServer))
			assert.True(t, carries(otherServer, other))
			require.NoError(t, w.table.Mark(context.Background(), only(w.flows(t, conntrack.Select{Marked: cut}), client), 0, cut))
			assert.True(t, carries(client, server), "what was sent meanwhile is sent again")
		})
	}
}

// only are the flows of one connection.
func only(flows []conntrack.Flow, c net.Conn) (out []conntrack.Flow) {
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	for _, f := range flows {
		if f.Original.SourcePort == port || f.Original.DestinationPort == port {
			out = append(out, f)
		}
	}
	return out
}

// A packet that is dropped for the mark refreshes the entry, whichever end sends it, TCP and UDP: the entry outlives its
// time while somebody sends, and goes when nobody does any more. (TCP's pauses between retransmissions double; the kernel's
// own timeouts are longer than the longest of them, 120 s.)
func TestDroppedPacketsKeepTheEntry(t *testing.T) {
	w := newWorld(t)
	const lives, watched = 12, 14 * time.Second // of the pauses the one of 6.4 s is the longest until then; a busy machine adds to it
	w.router.Run(t, fmt.Sprintf(`
		for of in tcp_timeout_established tcp_timeout_max_retrans tcp_timeout_unacknowledged udp_timeout udp_timeout_stream; do
			sysctl -qw net.netfilter.nf_conntrack_$of=%d
		done`, lives))
	speakers := map[string]func(){}
	var cutFlows []uint16 // client ports
	for _, end := range []string{"client", "server"} {
		client, server := w.connect(t, ":80", "10.2.0.2:80")
		speaker := map[string]net.Conn{"client": client, "server": server}[end]
		speakers["tcp "+end] = func() { _, _ = speaker.Write([]byte("x")) }
		cutFlows = append(cutFlows, client.LocalAddr().(*net.TCPAddr).AddrPort().Port())

		var here net.Conn
		var there *net.UDPConn
		w.server.Do(t, func() (err error) {
			there, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP("10.2.0.2")})
			return err
		})
		w.client.Do(t, func() (err error) { here, err = net.Dial("udp", there.LocalAddr().String()); return err })
		defer there.Close()
		defer here.Close()
		from := here.LocalAddr().(*net.UDPAddr)
		ask, answer := func() { _, _ = here.Write([]byte("q")) }, func() { _, _ = there.WriteToUDP([]byte("a"), from) }
		ask()
		b := make([]byte, 10)
		_, _, err := there.ReadFromUDP(b)
		require.NoError(t, err)
		answer()
		_, err = here.Read(b)
		require.NoError(t, err)
		speakers["udp "+end] = map[string]func(){"client": ask, "server": answer}[end]
		cutFlows = append(cutFlows, from.AddrPort().Port())
	}
	all := w.flows(t, conntrack.Select{})
	require.Len(t, all, 4)
	w.mark(t, all)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(watched); time.Now().Before(until); <-tick.C {
		for _, say := range speakers {
			say()
		}
		require.Len(t, w.flows(t, conntrack.Select{Marked: cut}), 4, "entries stay as long as packets are sent")
	}
	for _, f := range w.flows(t, conntrack.Select{}) {
		assert.Contains(t, cutFlows, f.Original.SourcePort, "nothing was picked up in the other direction: %s", &f)
	}
}

// After it has expired, a packet from the middle begins a new connection in its own direction (nf_conntrack_tcp_loose), which
// policy judges so: from the client it stays forbidden, from the server it passes, as the server may connect to the client.
// This is why entries are marked, and not deleted.
func TestAnExpiredConnectionBeginsAnew(t *testing.T) {
	w := newWorld(t)
	client, server := w.connect(t, ":80", "10.2.0.2:80")
	w.router.Run(t, "nft add element inet t forbidden '{ 10.1.0.2 }'")
	require.True(t, carries(client, server), "a rule about new connections leaves it alone")
	require.NoError(t, w.table.Delete(context.Background(), only(w.flows(t, conntrack.Select{}), client)))
	assert.True(t, carries(server, client), "picked up in the other direction; what the client sends first is judged as new, and dropped")
	assert.True(t, carries(client, server), "and with that alive again")
	picked := only(w.flows(t, conntrack.Select{}), client)
	require.Len(t, picked, 1)
	assert.Equal(t, "10.2.0.2", picked[0].Original.Source.String())

	w.mark(t, picked)
	assert.False(t, within(server, client, time.Second))
	assert.False(t, within(client, server, time.Second), "a mark cuts both")
}
