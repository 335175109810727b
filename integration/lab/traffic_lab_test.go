//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// withPods brings the demo's nodes up by hand, with a pod on each worker. Nothing routes between them until a test does.
func withPods(t *testing.T, change func(*Topology)) (*Lab, Topology) {
	t.Helper()
	topo, err := DemoTopology()
	require.NoError(t, err)
	topo = byHand(topo)
	if change != nil {
		change(&topo)
	}
	l := up(t, Options{Name: "pods", Topology: topo})
	plugins := shortDir(t)
	require.NoError(t, buildStockPlugins(testContext(t), plugins))
	require.NoError(t, useStockPlugins(l, topo, plugins))
	for i := 1; i <= 3; i++ {
		st, err := l.PodAdd(testContext(t), Pod{Name: fmt.Sprintf("pod-%d", i), Node: fmt.Sprintf("worker-%d", i)})
		require.NoError(t, err)
		require.Len(t, st.Addresses, 1)
		assert.True(t, handBlock(topo.Pools[0].CIDR, i).Contains(st.Addresses[0]))
	}
	return l, topo
}

func TestPods(t *testing.T) {
	l, _ := withPods(t, nil)
	ctx := testContext(t)
	st, err := l.Status(ctx)
	require.NoError(t, err)
	require.Len(t, st.Pods, 3)
	pod := st.Pods[0]
	assert.Equal(t, "worker-1", pod.Node)
	assert.NotEmpty(t, pod.HostInterface)

	out, err := l.Run(ctx, "pod-1", "ip", "-o", "-4", "addr", "show", "eth0")
	require.NoError(t, err)
	assert.Contains(t, out, pod.Addresses[0].String())
	out, err = l.Run(ctx, "worker-1", "ip", "route", "get", pod.Addresses[0].String())
	require.NoError(t, err)
	assert.Contains(t, out, pod.HostInterface)
	out, err = l.Run(ctx, "worker-1", "ip", "netns")
	require.NoError(t, err)
	assert.Contains(t, out, "default-pod-1", "as a container runtime leaves it on the node")

	_, err = l.PodAdd(ctx, Pod{Name: "pod-1", Node: "worker-2"})
	require.ErrorContains(t, err, "pod pod-1 exists already")
	_, err = l.PodAdd(ctx, Pod{Name: "pod-9", Node: "worker-9"})
	require.ErrorContains(t, err, `there is no node "worker-9"`)
	require.ErrorContains(t, l.PodDel(ctx, "pod-9"), `there is no pod "pod-9"`)

	t.Run("deleting a pod ends its programs", func(t *testing.T) {
		ended := make(chan int, 1)
		go func() {
			code, _ := l.Exec(ctx, "pod-1", Command{Args: []string{"sleep", "1000"}})
			ended <- code
		}()
		require.Eventually(t, func() bool {
			out, err := l.Run(ctx, "worker-1", "ps", "ax")
			return err == nil && strings.Contains(out, "sleep 1000")
		}, time.Minute, 20*time.Millisecond)
		require.NoError(t, l.PodDel(ctx, "pod-1"))
		assert.Equal(t, 128+9, <-ended)
		out, err := l.Run(ctx, "worker-1", "sh", "-c", "ip netns; ls /run/netns; ls /var/lib/cni/results; ip -br link")
		require.NoError(t, err)
		assert.NotContains(t, out, "pod-1")
		assert.NotContains(t, out, pod.HostInterface)
		_, err = l.Run(ctx, "pod-1", "true")
		require.ErrorContains(t, err, "no node or pod")
		again, err := l.PodAdd(ctx, Pod{Name: "pod-1", Node: "worker-1"})
		require.NoError(t, err)
		assert.Equal(t, pod.ID, again.ID)
	})

	t.Run("a pod that fails half-way leaves nothing", func(t *testing.T) {
		plugin := filepath.Join(nodeDir(l.dir, "worker-2"), "opt-cni/bin/host-local")
		require.NoError(t, os.Rename(plugin, plugin+".away"))
		_, err := l.PodAdd(ctx, Pod{Name: "half", Node: "worker-2"})
		require.ErrorContains(t, err, "add pod half on worker-2")
		require.ErrorContains(t, err, "host-local")
		require.NoError(t, os.Rename(plugin+".away", plugin)) // without it there was no DEL either
		require.Eventually(t, func() bool {
			out, err := l.Run(ctx, "worker-2", "sh", "-c", "ip netns; ls /run/netns /var/lib/cni/results")
			return err == nil && !strings.Contains(out, "half")
		}, time.Minute, 50*time.Millisecond)
	})
}

func TestMatrixSeesThePath(t *testing.T) {
	l, topo := withPods(t, nil)
	ctx := testContext(t)
	wrong := func(actual, mode Mode) []string {
		expected, err := l.Expect(ctx, actual)
		require.NoError(t, err)
		want, err := l.Expect(ctx, mode)
		require.NoError(t, err)
		m, err := l.Matrix(ctx, expected)
		require.NoError(t, err)
		require.Len(t, m.Cells, (4+3)*3)
		return m.Wrong(want)
	}
	// The time must suffice for one look at least, or it is what the error speaks of.
	const lacks = "master has no direct route to 192.168.1.0/26 of pod-1"
	for wait := 300 * time.Millisecond; ; wait *= 2 {
		brief, cancel := context.WithTimeout(ctx, wait)
		err := l.AwaitRoutes(brief, topo, ModeDirect)
		cancel()
		require.Error(t, err)
		if strings.Contains(err.Error(), lacks) {
			break
		}
		require.NoError(t, ctx.Err(), "expected %q, got %v", lacks, err)
	}

	require.NoError(t, handRoutes(ctx, l, topo, ModeDirect))
	require.NoError(t, l.AwaitRoutes(ctx, topo, ModeDirect))
	assert.Empty(t, wrong(ModeDirect, ModeDirect))
	assert.Contains(t, strings.Join(wrong(ModeDirect, ModeVXLAN), "\n"), "expected vxlan, got direct")

	require.NoError(t, handRoutes(ctx, l, topo, ModeVXLAN))
	require.NoError(t, l.AwaitRoutes(ctx, topo, ModeVXLAN))
	assert.Empty(t, wrong(ModeVXLAN, ModeVXLAN))

	r, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-3", Kind: ProbeICMP, Timeout: AnswerPatience})
	require.NoError(t, err)
	assert.True(t, r.OK, r.Error)
	assert.Equal(t, PathVXLAN, r.Path)
	assert.Equal(t, 2, r.Packets, "request and reply")
	assert.Contains(t, r.Sample, "vxlan vni 4096 |")
}

func TestProbe(t *testing.T) {
	l, topo := withPods(t, nil)
	ctx := testContext(t)
	require.NoError(t, handRoutes(ctx, l, topo, ModeDirect))

	r, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-2", Timeout: AnswerPatience})
	require.NoError(t, err)
	assert.True(t, r.OK, r.Error)
	assert.Equal(t, PathDirect, r.Path)
	assert.Greater(t, r.Latency, time.Duration(0))
	assert.GreaterOrEqual(t, r.Packets, 6)

	r, err = l.Probe(ctx, ProbeRequest{From: "pod-1", To: "worker-1", Timeout: AnswerPatience})
	require.NoError(t, err)
	assert.Equal(t, PathLocal, r.Path)

	lost, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-3"})
	require.NoError(t, err)
	assert.False(t, lost.OK)
	assert.Equal(t, PathNone, lost.Path)

	refused, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-2", Port: 81, Timeout: AnswerPatience})
	require.NoError(t, err)
	assert.ErrorContains(t, errors.New(refused.Error), "connection refused")
	assert.Contains(t, refused.Error, "its packets reached worker-2")

	ln, err := l.Listen(ctx, "pod-2", netip.MustParseAddrPort("0.0.0.0:81"))
	require.NoError(t, err)
	defer ln.Close()
	_, err = l.Listen(ctx, "pod-2", netip.MustParseAddrPort("0.0.0.0:81"))
	require.ErrorContains(t, err, "port 81 is in use")
	opened, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-2", Port: 81, Timeout: AnswerPatience})
	require.NoError(t, err)
	assert.True(t, opened.OK, opened.Error)

	_, err = l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-9"})
	require.ErrorContains(t, err, `there is no node or pod "pod-9"`)
	_, err = l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-2", IPv6: true})
	require.ErrorContains(t, err, "has no address of that family")
}

func TestCapture(t *testing.T) {
	l := up(t, Options{Name: "capture", Topology: bare(t)})
	ctx := testContext(t)
	c, err := l.Capture(ctx, "worker-1", "ens5")
	require.NoError(t, err)
	defer c.Close()
	r, err := l.Probe(ctx, ProbeRequest{From: "master", To: "worker-1", Timeout: AnswerPatience})
	require.NoError(t, err)
	require.True(t, r.OK, r.Error)

	ps, err := c.Drain()
	require.NoError(t, err)
	var in, outgoing int
	var pcap bytes.Buffer
	w, err := NewPcapWriter(&pcap)
	require.NoError(t, err)
	for _, p := range ps {
		require.NoError(t, w.Write(p))
		if p.Inner.Proto != "tcp" {
			continue
		}
		assert.WithinDuration(t, time.Now(), p.Time, 5*time.Minute)
		if p.Outgoing {
			outgoing++
			assert.Equal(t, "10.30.0.206", p.Outer.Src.String())
		} else {
			in++
			assert.Equal(t, "10.30.0.10", p.Outer.Src.String())
		}
	}
	assert.GreaterOrEqual(t, in, 3)
	assert.GreaterOrEqual(t, outgoing, 2)
	rd, err := pcapgo.NewReader(&pcap)
	require.NoError(t, err)
	read := 0
	for {
		if _, _, err := rd.ReadPacketData(); err != nil {
			break
		}
		read++
	}
	assert.Equal(t, len(ps), read)

	_, err = l.Run(ctx, "master", "ping", "-c1", "-i0.2", "-w30", "10.30.0.206")
	require.NoError(t, err)
	for {
		p, err := c.Next(ctx)
		require.NoError(t, err)
		if p.Inner.Proto == "icmp" && p.Outgoing {
			assert.Equal(t, "10.30.0.206 > 10.30.0.10 icmp EchoReply", p.Outer.String())
			break
		}
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	for err == nil {
		_, err = c.Next(short)
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)

	_, err = l.Capture(ctx, "worker-1", "eth9")
	require.ErrorContains(t, err, "capture on eth9 of worker-1: there is no such interface")
	port, err := l.Capture(ctx, fabricName, "worker-1")
	require.NoError(t, err, "the node's port on the fabric")
	require.NoError(t, port.Close())
}

// TestTransfers: what the benchmark measures with measures.
func TestTransfers(t *testing.T) {
	l, topo := withPods(t, nil)
	ctx := testContext(t)
	require.NoError(t, handRoutes(ctx, l, topo, ModeVXLAN))
	require.NoError(t, trackConnections(ctx, l, topo))
	rounds, err := roundTrips(ctx, l)
	require.NoError(t, err)
	require.Len(t, rounds, 1)
	assert.NotEmpty(t, rounds[0])
	for name, measure := range map[string]func(context.Context, *Lab) (float64, error){
		"one flow": throughput(1), "eight flows": throughput(8), "small packets": smallPackets,
	} {
		v := 0.0
		for v == 0 { // on a busy machine a window can pass before the sender gets its turn
			var err error
			v, err = measure(ctx, l)
			require.NoError(t, err, name)
		}
		assert.Positive(t, v, name)
	}
	end, err := converse(ctx, l)
	require.NoError(t, err)
	const gap = "nft 'add table ip gap; add chain ip gap gap { type filter hook forward priority 0; policy drop; }'; sleep 0.3; nft delete table ip gap"
	_, err = l.Run(ctx, "worker-1", "sh", "-ec", gap)
	require.NoError(t, err)
	longest, err := end()
	require.NoError(t, err)
	assert.Greater(t, longest, 200*time.Millisecond, "no less than until TCP sends again")
	var times cniTimes
	require.NoError(t, wirer{lab: l, node: "worker-2"}.round(ctx, &times, "many", 16, 8))
	assert.Len(t, times.add, 16)
	assert.Len(t, times.del, 16)
	assert.Positive(t, median(times.rate))
}

// TestSourceDestCheck: a fabric that behaves like a cloud passes node to node traffic and nothing else.
func TestSourceDestCheck(t *testing.T) {
	l, topo := withPods(t, func(topo *Topology) { topo.Fabric.SourceDestCheck = true })
	ctx := testContext(t)
	goes := func(want Path, from, to string, why ...any) {
		t.Helper()
		request := ProbeRequest{From: from, To: to}
		if want != PathNone {
			request.Timeout = AnswerPatience
		}
		r, err := l.Probe(ctx, request)
		require.NoError(t, err)
		assert.Equal(t, want, r.Path, why...)
	}
	require.NoError(t, handRoutes(ctx, l, topo, ModeDirect))
	goes(PathDirect, "worker-1", "worker-2")
	goes(PathDirect, "worker-1", "worker-3", "across the router")
	goes(PathNone, "pod-1", "pod-2", "a pod's source address is not the node's")
	goes(PathNone, "worker-1", "pod-2", "nor is a pod's destination address")
	require.NoError(t, handRoutes(ctx, l, topo, ModeVXLAN))
	goes(PathVXLAN, "pod-1", "pod-2")
	goes(PathVXLAN, "pod-1", "pod-3")
}

// TestSwitches: the check is turned on and off for some nodes or all while the lab is up, holds for outer headers only, and
// counts what it refuses; the router counts what it has no route for.
func TestSwitches(t *testing.T) {
	off := false
	l, topo := withPods(t, func(topo *Topology) {
		topo.Fabric.SourceDestCheck = true
		topo.Nodes[2].SourceDestCheck = &off
	})
	ctx := testContext(t)
	require.NoError(t, handRoutes(ctx, l, topo, ModeDirect))
	fabric := func() map[string]FabricPort {
		t.Helper()
		st, err := l.Fabric(ctx)
		require.NoError(t, err)
		ports := map[string]FabricPort{"router": {RefusedFrom: st.NoRoute}}
		for _, p := range st.Ports {
			ports[p.Node] = p
		}
		return ports
	}
	reaches := func(from, to string, why ...any) {
		t.Helper()
		r, err := l.Probe(ctx, ProbeRequest{From: from, To: to, Timeout: AnswerPatience})
		require.NoError(t, err)
		assert.Empty(t, r.Error, why...)
	}
	// What is lost is counted when the fabric's turn has come.
	isLost := func(from, to string, counted func() bool, why string) {
		t.Helper()
		r, err := l.Probe(ctx, ProbeRequest{From: from, To: to, Timeout: 300 * time.Millisecond})
		require.NoError(t, err)
		assert.False(t, r.OK)
		require.Eventually(t, counted, time.Minute, 10*time.Millisecond, why)
	}
	before := fabric()
	assert.True(t, before["worker-1"].SourceDestCheck)
	assert.False(t, before["worker-2"].SourceDestCheck, "its own word counts")

	isLost("pod-1", "pod-2", func() bool { return fabric()["worker-1"].RefusedFrom > before["worker-1"].RefusedFrom },
		"its source is refused where it comes from")

	require.NoError(t, l.SetSourceDestCheck(ctx, false, "worker-1"))
	require.NoError(t, l.SetSourceDestCheck(ctx, true, "worker-2"))
	isLost("pod-1", "pod-2", func() bool { return fabric()["worker-2"].RefusedTo > 0 }, "its destination where it goes to")
	refused := fabric()["worker-2"].RefusedTo

	require.NoError(t, l.SetSourceDestCheck(ctx, false))
	reaches("pod-1", "pod-2")
	assert.Equal(t, refused, fabric()["worker-2"].RefusedTo, "the count stays")
	without := fabric()["router"].RefusedFrom
	isLost("pod-1", "pod-3", func() bool { return fabric()["router"].RefusedFrom > without }, "the router knows no pods")

	require.NoError(t, handRoutes(ctx, l, topo, ModeVXLAN))
	require.NoError(t, l.SetSourceDestCheck(ctx, true))
	now := fabric()
	reaches("pod-1", "pod-3", "the outer header is the nodes'")
	assert.Equal(t, now, fabric(), "and nothing is refused")

	assert.EqualError(t, l.SetSourceDestCheck(ctx, true, "worker-1", "worker-9"),
		`there is no node "worker-9" in lab pods; nodes are master, worker-1, worker-2, worker-3`)
	assert.EqualError(t, l.SetBackend(ctx, "gobgp"), `backend "gobgp" is unknown; use bird or vxlan`)
}
