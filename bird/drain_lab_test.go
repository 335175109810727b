//go:build lab

package main_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/client"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// service is an address that two nodes announce.
const service = "203.0.113.10"

// serving is a node that has the service address, announces it to a router of another AS, and keeps it in its own kernel.
func (w *world) serving(name, address string, router netip.Addr) *node {
	n := w.node(name, address)
	run(w.t, "ip", "-n", n.ns, "address", "add", service+"/32", "dev", "lo")
	n.announce()
	c := config(1, n, nil, &birdv1.Peer{
		Name: "Global_router", Type: birdv1.PeerType_PEER_TYPE_GLOBAL, Source: "BGPPeer(router)", Address: router.AsSlice(), AsNumber: 65009,
		SourceAddress: n.address.AsSlice(),
	})
	c.Originate = []*birdv1.Origination{{Prefix: &birdv1.Prefix{Address: netip.MustParseAddr(service).AsSlice(), Length: 32}}}
	n.apply(c)
	return n
}

// router is Debian's BIRD with the given nodes as peers. It spreads traffic over equal paths, and takes what is about to go as
// a last resort (RFC 8326 section 4.3).
func (w *world) router(name, address string, nodes ...string) (ns string, ask func(words ...string) string) {
	w.t.Helper()
	binary, err := exec.LookPath("bird")
	if err != nil {
		w.t.Fatal("this test needs BIRD 2; install the package bird2")
	}
	prefix := netip.MustParsePrefix(address)
	ns, dir := w.machine(name, prefix), w.t.TempDir()
	conf := fmt.Sprintf(`
router id %s;
protocol device {}
protocol kernel { ipv4 { export where source = RTS_BGP; }; merge paths on; }
filter honour {
  if (65535, 0) ~ bgp_community then bgp_local_pref = 0;
  accept;
}
`, prefix.Addr())
	for i, n := range nodes {
		conf += fmt.Sprintf(`
protocol bgp node%d {
  local %s as 65009;
  neighbor %s as 64512;
  graceful restart on;
  ipv4 { import filter honour; export none; };
}
`, i, prefix.Addr(), n)
	}
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, "bird.conf"), []byte(conf), 0o600))
	socket := filepath.Join(dir, "bird.ctl")
	process := exec.Command("ip", "netns", "exec", ns, binary, "-f", "-c", filepath.Join(dir, "bird.conf"), "-s", socket)
	require.NoError(w.t, process.Start())
	w.t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	run(w.t, "ip", "netns", "exec", ns, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0",
		"net.ipv4.fib_multipath_hash_policy=0")
	return ns, func(words ...string) string { return (&bird2{socket: socket}).ask(words...) }
}

var pinged = regexp.MustCompile(`icmp_seq=(\d+) ttl=`)

// pinging keeps what ping says.
type pinging struct {
	mu   sync.Mutex
	said bytes.Buffer
}

func (a *pinging) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said.Write(b)
}

// seen returns how many numbers were answered, the highest of them, and all that ping said.
func (a *pinging) seen() (count, highest int, said string) {
	a.mu.Lock()
	said = a.said.String()
	a.mu.Unlock()
	all := map[int]bool{}
	for _, m := range pinged.FindAllStringSubmatch(said, -1) {
		n, _ := strconv.Atoi(m[1])
		all[n], highest = true, max(highest, n)
	}
	return len(all), highest, said
}

// pings sends pings from a machine to the service until what it returns is called, which requires that they are answered still and
// none of those before was lost. The source address decides which of several equal ways they take.
func pings(t *testing.T, ns, source string) (lostNone func()) {
	t.Helper()
	var out pinging
	ping := exec.Command("ip", "netns", "exec", ns, "ping", "-n", "-i", "0.01", "-I", source, service)
	ping.Stdout, ping.Stderr = &out, &out
	require.NoError(t, ping.Start())
	t.Cleanup(func() { _ = ping.Process.Kill() })
	return func() {
		t.Helper()
		_, before, _ := out.seen()
		soon(t, "they are answered from "+source, func() bool {
			_, highest, _ := out.seen()
			return highest > before+20
		})
		require.NoError(t, ping.Process.Signal(syscall.SIGINT))
		_ = ping.Wait()
		count, highest, said := out.seen() // the very last ones may be on their way
		t.Logf("from %s: %d answered", source, count)
		assert.Equal(t, highest, count, "some were lost from %s: %s", source, said)
	}
}

// TestDrain: two nodes serve one address to the world behind a router. One of them is drained, stops, and goes: not a packet
// is lost. It comes back and serves again, and nothing is lost either.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	address := netip.MustParseAddr("10.97.0.9")
	a, b := w.serving("a", "10.97.0.1/24", address), w.serving("b", "10.97.0.2/24", address)
	router, ask := w.router("router", "10.97.0.9/24", "10.97.0.1", "10.97.0.2")
	outside := w.machine("outside", netip.MustParsePrefix("10.97.0.50/24"))
	run(t, "ip", "-n", outside, "route", "add", service, "via", "10.97.0.9")
	var sources []string
	for i := range 8 { // some take one way, some the other
		s := fmt.Sprintf("10.97.0.%d", 51+i)
		sources = append(sources, s)
		run(t, "ip", "-n", outside, "address", "add", s+"/24", "dev", "eth0")
	}
	hop := regexp.MustCompile(`via (\S+)`)
	via := func(want ...string) func() bool {
		return func() bool {
			var hops []string
			for _, m := range hop.FindAllStringSubmatch(run(t, "ip", "-n", router, "route", "show", service), -1) {
				hops = append(hops, m[1])
			}
			slices.Sort(hops)
			return slices.Equal(hops, want)
		}
	}
	soon(t, "the router spreads traffic over both", via("10.97.0.1", "10.97.0.2"))
	taken := func(n *node) int { return packets(t, n.ns) }
	var streams []func()
	for _, s := range sources {
		streams = append(streams, pings(t, outside, s))
	}
	soon(t, "both serve", func() bool { return taken(a) > 100 && taken(b) > 100 })

	drained := make(chan error, 1)
	go func() { drained <- a.bird.Drain(context.Background(), 10*time.Second) }() // for as long this test may rest and still see it
	soon(t, "the router takes the other way while the first is still announced", via("10.97.0.2"))
	require.Contains(t, ask("show", "route", "all", "for", service), "(65535,0)", "it was told, and the route is there")
	select {
	case err := <-drained:
		t.Fatal("the wait was over before the router had another way", err)
	default:
	}
	require.NoError(t, <-drained)
	soon(t, "nothing is announced", func() bool { return !strings.Contains(ask("show", "route", "all", "for", service), "10.97.0.1") })
	before := taken(a)
	require.NoError(t, a.process.Process.Signal(syscall.SIGTERM))
	require.NoError(t, a.process.Wait())
	run(t, "ip", "-n", a.ns, "address", "del", service+"/32", "dev", "lo")
	served := taken(b)
	soon(t, "traffic goes on", func() bool { return taken(b) > served+1000 })
	require.Equal(t, before, taken(a), "nobody asks the drained node any more")

	run(t, "ip", "-n", a.ns, "address", "add", service+"/32", "dev", "lo")
	a.start()
	soon(t, "it serves again", via("10.97.0.1", "10.97.0.2"))
	soon(t, "it is asked again", func() bool { return taken(a) > before+100 })
	for _, lostNone := range streams {
		lostNone()
	}
}

// packets is how many pings a machine has answered.
func packets(t *testing.T, ns string) int {
	t.Helper()
	var n int
	out := run(t, "ip", "netns", "exec", ns, "nstat", "-asz", "IcmpInEchos")
	for line := range strings.SplitSeq(out, "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "IcmpInEchos" {
			_, err := fmt.Sscan(f[1], &n)
			require.NoError(t, err)
		}
	}
	return n
}

// TestPlannedRestart: bird is stopped by SIGTERM under traffic and started again. It says nothing when it goes, so that peers
// keep its routes: a router of another make does, and a node of ours.
func TestPlannedRestart(t *testing.T) {
	w := newWorld(t)
	address := netip.MustParseAddr("10.96.0.9")
	a := w.serving("a", "10.96.0.1/24", address)
	router, ask := w.router("router", "10.96.0.9/24", "10.96.0.1")
	b := w.node("b", "10.96.0.2/24")
	b.announce("192.168.2.0/26")
	b.apply(config(1, b, []*node{a, b}))
	c := config(2, a, []*node{a, b}, &birdv1.Peer{
		Name: "Global_router", Type: birdv1.PeerType_PEER_TYPE_GLOBAL, Source: "BGPPeer(router)", Address: address.AsSlice(), AsNumber: 65009,
		SourceAddress: a.address.AsSlice(),
	})
	c.Originate = []*birdv1.Origination{{Prefix: &birdv1.Prefix{Address: netip.MustParseAddr(service).AsSlice(), Length: 32}}}
	c.Export.Pools = append(c.Export.Pools, &birdv1.ExportPool{Prefix: &birdv1.Prefix{Address: []byte{203, 0, 113, 0}, Length: 24}})
	a.apply(c)
	outside := w.machine("outside", netip.MustParsePrefix("10.96.0.50/24"))
	run(t, "ip", "-n", outside, "route", "add", service, "via", "10.96.0.9")
	soon(t, "the router has the way", func() bool {
		return strings.Contains(run(t, "ip", "-n", router, "route", "show", service), "10.96.0.1")
	})
	soon(t, "so has the other node", b.has(service+"/32", a.address))
	b.mu.Lock()
	b.lost = nil
	b.mu.Unlock()
	lostNone := pings(t, outside, "10.96.0.50")

	for range 2 {
		since := b.peer(a.address).Since
		require.NoError(t, a.process.Process.Signal(syscall.SIGTERM))
		require.NoError(t, a.process.Wait())
		soon(t, "the other node sees it go", func() bool { return b.peer(a.address).State != client.Established })
		require.True(t, b.has(service+"/32", a.address)())
		a.start()
		soon(t, "it is back", func() bool {
			p := b.peer(a.address)
			return p.State == client.Established && p.Since.After(since) && !p.Restarting
		})
		soon(t, "the router has heard all of it", func() bool {
			out := ask("show", "protocols", "all", "node0")
			return strings.Contains(out, "Established") && !strings.Contains(out, "graceful restart active")
		})
	}
	lostNone()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.lost, "the other node kept the way")
}
