//go:build lab

package main_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/integration/vm"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// world is a switch and the machines on it, each a network namespace; the switch is one, too.
type world struct {
	t      *testing.T
	binary string
	swtch  string
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", strings.Join(args, " "), out)
	return string(out)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces; run it as root")
	}
	w := &world{t: t, binary: filepath.Join(t.TempDir(), "bird"), swtch: fmt.Sprintf("mb%d-switch", os.Getpid())}
	if vm.Inside() { // where a build takes minutes: there is what make has built
		var err error
		w.binary, err = filepath.Abs("../bin/bird")
		require.NoError(t, err)
	} else {
		run(t, "go", "build", "-o", w.binary, ".")
	}
	w.namespace(w.swtch)
	run(t, "ip", "-n", w.swtch, "link", "add", "name", "br0", "type", "bridge")
	run(t, "ip", "-n", w.swtch, "link", "set", "br0", "up")
	return w
}

func (w *world) namespace(name string) {
	run(w.t, "ip", "netns", "add", name)
	w.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	run(w.t, "ip", "-n", name, "link", "set", "lo", "up")
}

// machine adds a namespace with an address on the switch.
func (w *world) machine(name string, address netip.Prefix) string {
	ns := fmt.Sprintf("mb%d-%s", os.Getpid(), name)
	w.namespace(ns)
	run(w.t, "ip", "-n", w.swtch, "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", ns)
	run(w.t, "ip", "-n", w.swtch, "link", "set", "dev", name, "master", "br0", "up")
	run(w.t, "ip", "-n", ns, "address", "add", address.String(), "dev", "eth0", "nodad")
	run(w.t, "ip", "-n", ns, "link", "set", "dev", "eth0", "up")
	return ns
}

// node is a machine with our bird, and a felix of this test's.
type node struct {
	t       *testing.T
	w       *world
	ns, dir string
	address netip.Addr
	process *exec.Cmd
	bird    *client.Client
	routes  *client.Routes
	stop    context.CancelFunc

	mu   sync.Mutex
	best map[string]client.Best
	lost []string // prefixes that were taken back
	hops []netip.Addr
}

func (w *world) node(name, address string) *node {
	prefix := netip.MustParsePrefix(address)
	n := &node{t: w.t, w: w, ns: w.machine(name, prefix), dir: w.t.TempDir(), address: prefix.Addr(), best: map[string]client.Best{}}
	n.start()
	var err error
	n.bird, err = client.New(n.socket())
	require.NoError(w.t, err)
	w.t.Cleanup(func() { n.bird.Close() })
	n.felix()
	return n
}

func (n *node) socket() string { return filepath.Join(n.dir, "bird.sock") }

func (n *node) start() {
	n.process = exec.Command("ip", "netns", "exec", n.ns, n.w.binary, "--socket", n.socket(),
		"--gobgp-socket", filepath.Join(n.dir, "gobgp.sock"), "--lib-dir", n.dir)
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(n.t, err)
	n.process.Stderr = log
	require.NoError(n.t, n.process.Start())
	process := n.process
	n.t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		log.Close()
		if n.t.Failed() {
			body, _ := os.ReadFile(log.Name())
			n.t.Logf("log of %s:\n%s", n.ns, body)
		}
	})
}

func (n *node) kill() {
	require.NoError(n.t, n.process.Process.Signal(syscall.SIGKILL))
	_ = n.process.Wait()
}

// felix starts a felix that keeps what bird tells it.
func (n *node) felix() {
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	n.routes = n.bird.Routes(slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.routes.Run(ctx, func(u client.Update) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.hops = u.NextHops
			for _, b := range u.Best {
				if len(b.Paths) == 0 {
					delete(n.best, b.Prefix.String())
					n.lost = append(n.lost, b.Prefix.String())
					continue
				}
				n.best[b.Prefix.String()] = b
			}
		})
	}()
	n.t.Cleanup(func() { cancel(); <-done })
}

func (n *node) announce(prefixes ...string) {
	for _, p := range prefixes {
		n.routes.Announce(client.LocalRoute{Prefix: netip.MustParsePrefix(p)})
	}
	n.routes.SnapshotEnd()
}

func (n *node) has(prefix string, nextHop netip.Addr) func() bool {
	return func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		paths := n.best[prefix].Paths
		return slices.ContainsFunc(paths, func(p client.Path) bool { return p.NextHop == nextHop })
	}
}

func (n *node) hasNot(prefix string) func() bool {
	return func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.best[prefix].Paths) == 0
	}
}

func (n *node) apply(c *birdv1.Config) client.Applied {
	n.t.Helper()
	var got client.Applied
	soon(n.t, "bird takes the configuration", func() bool {
		var err error
		got, err = n.bird.Apply(context.Background(), c)
		return err == nil
	})
	return got
}

func (n *node) peer(address netip.Addr) client.Peer {
	st, err := n.bird.Peers(context.Background(), address.String())
	if err != nil || len(st.Peers) != 1 {
		return client.Peer{}
	}
	return st.Peers[0]
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, time.Minute, 50*time.Millisecond, what)
}

// config is a mesh with the given nodes, and more peers.
func config(generation uint64, own *node, mesh []*node, more ...*birdv1.Peer) *birdv1.Config {
	c := &birdv1.Config{
		Generation: generation, RouterId: own.address.AsSlice(), AsNumber: 64512, Peers: more, RestartDeferral: durationpb.New(20 * time.Second),
		Export: &birdv1.ExportPolicy{Pools: []*birdv1.ExportPool{{Prefix: &birdv1.Prefix{Address: []byte{192, 168, 0, 0}, Length: 16}}}},
	}
	for _, o := range mesh {
		if o != own {
			c.Peers = append(c.Peers, &birdv1.Peer{
				Name: "Mesh_" + strings.ReplaceAll(o.address.String(), ".", "_"), Type: birdv1.PeerType_PEER_TYPE_MESH, Source: "Node(x)",
				Address: o.address.AsSlice(), AsNumber: 64512, SourceAddress: own.address.AsSlice(), Passive: o.address.String() > own.address.String(),
			})
		}
	}
	return c
}

// TestMesh has three nodes exchange blocks, then breaks things: one bird is killed and comes back, one felix leaves, one peer's
// parameters change. What is not concerned must not notice.
func TestMesh(t *testing.T) {
	w := newWorld(t)
	nodes := []*node{w.node("a", "10.99.0.1/24"), w.node("b", "10.99.0.2/24"), w.node("c", "10.99.0.3/24")}
	for i, n := range nodes {
		n.announce(fmt.Sprintf("192.168.%d.0/26", i+1))
		n.apply(config(1, n, nodes))
	}
	meshed := func() bool {
		for i, from := range nodes {
			for j, to := range nodes {
				if i != j && !to.has(fmt.Sprintf("192.168.%d.0/26", i+1), from.address)() {
					return false
				}
			}
		}
		return true
	}
	soon(t, "every node has every block", meshed)
	a, b, c := nodes[0], nodes[1], nodes[2]
	soon(t, "sessions are up", func() bool { return b.peer(a.address).State == client.Established })

	// A password on one session restarts that one only.
	before := c.peer(b.address).Since
	changed := func(generation uint64, own, other *node) *birdv1.Config {
		m := config(generation, own, nodes)
		for _, p := range m.Peers {
			if netip.AddrFrom4([4]byte(p.Address)) == other.address {
				p.Password = "secret"
			}
		}
		return m
	}
	require.Len(t, b.apply(changed(2, b, a)).Restarted, 1)
	require.Len(t, a.apply(changed(2, a, b)).Restarted, 1)
	soon(t, "the session with a password is up", func() bool {
		p := b.peer(a.address)
		return p.State == client.Established && p.Since.After(before)
	})
	soon(t, "every node has every block again", meshed)
	require.Equal(t, before, c.peer(b.address).Since, "the session between the others never went down")

	// kill -9 of one bird: nobody takes its routes back, nor does its own felix lose any.
	for _, n := range nodes {
		n.mu.Lock()
		n.lost = nil
		n.mu.Unlock()
	}
	a.kill()
	soon(t, "b sees a go", func() bool { return b.peer(a.address).State != client.Established })
	require.True(t, b.has("192.168.1.0/26", a.address)(), "b keeps a's block while a restarts")
	soon(t, "the kept path is known as stale", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.peer(a.address).Restarting
	})
	a.start()
	soon(t, "the session is back", func() bool {
		return b.peer(a.address).State == client.Established && c.peer(a.address).State == client.Established
	})
	soon(t, "a's felix is in step again", func() bool {
		st, err := a.bird.Peers(context.Background(), "")
		return err == nil && st.Generation == 2 && len(st.Peers) == 2 && !b.peer(a.address).Restarting && meshed()
	})
	for _, n := range nodes {
		n.mu.Lock()
		require.Empty(t, n.lost, "nothing was taken back at %s", n.address)
		n.mu.Unlock()
	}

	// Felix goes: its routes stay announced. A new felix that has less takes the rest back.
	a.stop()
	b.routes.NextHop(c.address, false, 0)
	soon(t, "b does not use a dead next hop", b.hasNot("192.168.3.0/26"))
	b.mu.Lock()
	require.Contains(t, b.hops, c.address, "felix goes on looking at it")
	b.mu.Unlock()
	b.routes.NextHop(c.address, true, 0)
	soon(t, "b uses it again", b.has("192.168.3.0/26", c.address))
	require.True(t, b.has("192.168.1.0/26", a.address)(), "a's routes outlive its felix")
	a.felix()
	a.announce("192.168.11.0/26")
	soon(t, "the new felix's block is announced", b.has("192.168.11.0/26", a.address))
	soon(t, "the old one's is not", b.hasNot("192.168.1.0/26"))

	// Drain: marked first, then gone.
	drained := make(chan error, 1)
	go func() { drained <- c.bird.Drain(context.Background(), 10*time.Second) }() // for as long this test may rest and still see it
	soon(t, "the route is marked", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		paths := b.best["192.168.3.0/26"].Paths
		return len(paths) == 1 && slices.Contains(paths[0].Communities, "65535:0") && paths[0].Preference <= 1
	})
	require.NoError(t, <-drained)
	soon(t, "the route is gone", b.hasNot("192.168.3.0/26"))
	require.NoError(t, c.bird.Undrain(context.Background()))
	soon(t, "the route is back", b.has("192.168.3.0/26", c.address))
}

// bird2 is Debian's BIRD on a machine, with one eBGP session to a node of ours.
type bird2 struct{ socket string }

func (w *world) bird2(name string, own, node netip.Addr, as int, statics string) *bird2 {
	w.t.Helper()
	binary, err := exec.LookPath("bird")
	if err != nil {
		w.t.Fatal("this test needs BIRD 2; install the package bird2")
	}
	ns, dir := w.machine(name, netip.PrefixFrom(own, 24)), w.t.TempDir()
	conf := fmt.Sprintf(`
router id %[1]s;
protocol device {}
protocol static { ipv4; %[4]s }
protocol bgp muslin {
  local %[1]s as %[3]d;
  neighbor %[2]s as 64512;
  password "secret";
  graceful restart on;
  ipv4 { import all; export all; add paths on; };
}
`, own, node, as, statics)
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, "bird.conf"), []byte(conf), 0o600))
	b := &bird2{socket: filepath.Join(dir, "bird.ctl")}
	process := exec.Command("ip", "netns", "exec", ns, binary, "-f", "-c", filepath.Join(dir, "bird.conf"), "-s", b.socket)
	require.NoError(w.t, process.Start())
	w.t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	return b
}

func (b *bird2) ask(words ...string) string {
	out, _ := exec.Command("birdc", append([]string{"-s", b.socket}, words...)...).CombinedOutput()
	return string(out)
}

func (b *bird2) routes() string { return b.ask("show", "route", "all", "protocol", "muslin") }

// watch looks for a prefix without pause until stop is called, which tells whether it ever was missing.
func (b *bird2) watch(prefix string) (stop func() (missed bool)) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan bool, 1)
	go func() {
		missed := false
		for ctx.Err() == nil {
			out := b.routes()
			missed = missed || strings.Contains(out, "BIRD") && !strings.Contains(out, prefix)
		}
		result <- missed
	}()
	return func() bool { cancel(); return <-result }
}

// TestBIRD peers over eBGP with two BIRDs, which must keep our routes while we restart, and we theirs.
func TestBIRD(t *testing.T) {
	w := newWorld(t)
	n := w.node("a", "10.98.0.1/24")
	addresses := []netip.Addr{netip.MustParseAddr("10.98.0.9"), netip.MustParseAddr("10.98.0.8")}
	birds := []*bird2{
		w.bird2("tor1", addresses[0], n.address, 65009, "route 172.20.0.0/16 blackhole; route 172.21.0.0/16 blackhole;"),
		w.bird2("tor2", addresses[1], n.address, 65008, "route 172.22.0.0/16 blackhole; route 172.23.0.0/16 blackhole;"),
	}
	n.announce("192.168.1.0/26", "192.168.1.5/32")
	var peers []*birdv1.Peer
	for i, a := range addresses {
		peers = append(peers, &birdv1.Peer{
			Name: "Global_" + strings.ReplaceAll(a.String(), ".", "_"), Type: birdv1.PeerType_PEER_TYPE_GLOBAL, Source: "BGPPeer(tor)",
			Address: a.AsSlice(), AsNumber: uint32(65009 - i), SourceAddress: n.address.AsSlice(), Password: "secret", Filters: []string{"tor"},
		})
	}
	m := config(1, n, nil, peers...)
	m.Export.OwnBlocks = []*birdv1.Prefix{{Address: []byte{192, 168, 1, 0}, Length: 26}}
	m.Filters = []*birdv1.Filter{{
		Name: "tor",
		Import4: []*birdv1.FilterRule{{
			Action: birdv1.FilterAction_FILTER_ACTION_REJECT, Operator: birdv1.MatchOperator_MATCH_OPERATOR_EQUAL,
			Prefix: &birdv1.Prefix{Address: []byte{172, 21, 0, 0}, Length: 16},
		}},
		Export4: []*birdv1.FilterRule{{
			Action: birdv1.FilterAction_FILTER_ACTION_ACCEPT, Operator: birdv1.MatchOperator_MATCH_OPERATOR_IN,
			Prefix: &birdv1.Prefix{Address: []byte{192, 168, 0, 0}, Length: 16}, MaxLength: 26,
			Operations: []*birdv1.FilterOperation{
				{Operation: &birdv1.FilterOperation_AddCommunity{AddCommunity: "64512:77"}},
				{Operation: &birdv1.FilterOperation_PrependAsPath{PrependAsPath: &birdv1.AsPath{AsNumbers: []uint32{64512, 64512}}}},
			},
		}},
	}}
	n.apply(m)
	for _, b := range birds {
		soon(t, "BIRD has our block", func() bool { return strings.Contains(b.routes(), "192.168.1.0/26") })
	}
	shown := birds[0].routes()
	require.Contains(t, shown, "BGP.next_hop: 10.98.0.1")
	require.Contains(t, shown, "BGP.as_path: 64512 64512 64512")
	require.Contains(t, shown, "(64512,77)")
	require.NotContains(t, shown, "4294967295", "our tags stay at home")
	require.NotContains(t, shown, "192.168.1.5/32", "the block is announced instead")
	soon(t, "we have the BIRDs' routes", func() bool {
		return n.has("172.20.0.0/16", addresses[0])() && n.has("172.22.0.0/16", addresses[1])()
	})
	require.True(t, n.hasNot("172.21.0.0/16")(), "the filter rejects it")

	n.mu.Lock()
	n.lost = nil
	n.mu.Unlock()
	stops := []func() bool{birds[0].watch("192.168.1.0/26"), birds[1].watch("192.168.1.0/26")}
	n.kill()
	n.start()
	for i, a := range addresses {
		soon(t, "the session is back", func() bool {
			p := n.peer(a)
			return p.State == client.Established && p.Received == 2
		})
		soon(t, "BIRD's copy is fresh", func() bool {
			out := birds[i].ask("show", "protocols", "all", "muslin")
			return strings.Contains(out, "Established") && !strings.Contains(out, "graceful restart active")
		})
	}
	soon(t, "felix is in step", func() bool {
		return n.has("172.20.0.0/16", addresses[0])() && n.has("172.22.0.0/16", addresses[1])()
	})
	for i, stop := range stops {
		require.False(t, stop(), "BIRD %s dropped our block while we restarted", addresses[i])
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	require.Empty(t, n.lost, "our felix kept the BIRDs' routes")
}

// TestIPv6 has two nodes exchange a block over IPv6 with a password and TTL security, and one restart.
func TestIPv6(t *testing.T) {
	w := newWorld(t)
	nodes := []*node{w.node("a", "fd00:99::1/64"), w.node("b", "fd00:99::2/64")}
	configure := func(own, other *node, passive bool) {
		c := config(1, own, nil, &birdv1.Peer{
			Name: "Node_x", Type: birdv1.PeerType_PEER_TYPE_NODE, Source: "BGPPeer(x)", Address: other.address.AsSlice(), AsNumber: 64512,
			SourceAddress: own.address.AsSlice(), Passive: passive, Password: "secret", TtlSecurity: 1,
		})
		c.RouterId = []byte{1, 1, 1, own.address.AsSlice()[15]}
		c.Export.Pools = []*birdv1.ExportPool{{Prefix: &birdv1.Prefix{Address: netip.MustParseAddr("fd00:1::").AsSlice(), Length: 48}}}
		own.apply(c)
	}
	a, b := nodes[0], nodes[1]
	a.announce("fd00:1::/122", "192.168.1.0/26")
	b.announce("fd00:1::40/122")
	configure(a, b, true)
	configure(b, a, false)
	soon(t, "both have the other's block", func() bool {
		return a.has("fd00:1::40/122", b.address)() && b.has("fd00:1::/122", a.address)()
	})
	require.True(t, b.hasNot("192.168.1.0/26")(), "one family over each session")
	b.mu.Lock()
	require.Equal(t, uint32(1024), b.best["fd00:1::/122"].Paths[0].Metric)
	b.lost = nil
	b.mu.Unlock()
	a.kill()
	a.start()
	soon(t, "the session is back", func() bool {
		p := b.peer(a.address)
		return p.State == client.Established && !p.Restarting && p.Received == 1
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.lost)
}
