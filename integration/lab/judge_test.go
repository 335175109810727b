package lab

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func demoPods() []PodStatus {
	return []PodStatus{
		{ID: "pod-1", Node: "worker-1", Addresses: []netip.Addr{netip.MustParseAddr("192.168.10.1")}},
		{ID: "pod-2", Node: "worker-2", Addresses: []netip.Addr{netip.MustParseAddr("192.168.20.65")}},
		{ID: "pod-3", Node: "worker-3", Addresses: []netip.Addr{netip.MustParseAddr("192.168.30.130")}},
	}
}

func TestExpect(t *testing.T) {
	topo, err := DemoTopology()
	require.NoError(t, err)
	cases := []struct {
		from, to                           string
		direct, ipip, ipipX, vxlan, vxlanX Path
	}{
		{"worker-1", "pod-1", PathLocal, PathLocal, PathLocal, PathLocal, PathLocal},
		{"pod-1", "pod-1", PathLocal, PathLocal, PathLocal, PathLocal, PathLocal},
		{"pod-1", "pod-2", PathDirect, PathIPIP, PathDirect, PathVXLAN, PathDirect},
		{"master", "pod-2", PathDirect, PathIPIP, PathDirect, PathVXLAN, PathDirect},
		{"pod-1", "pod-3", PathNone, PathIPIP, PathIPIP, PathVXLAN, PathVXLAN},
		{"worker-3", "pod-1", PathNone, PathIPIP, PathIPIP, PathVXLAN, PathVXLAN},
		{"master", "pod-3", PathNone, PathIPIP, PathIPIP, PathVXLAN, PathVXLAN},
	}
	for _, c := range cases {
		for mode, want := range map[Mode]Path{
			ModeDirect: c.direct, ModeIPIP: c.ipip, ModeIPIPCrossSubnet: c.ipipX, ModeVXLAN: c.vxlan, ModeVXLANCrossSubnet: c.vxlanX,
		} {
			assert.Equal(t, want, Expect(topo, demoPods(), mode)(c.from, c.to), "%s to %s, %s", c.from, c.to, mode)
		}
	}
}

func TestMatrixSaysWhichCellIsWrong(t *testing.T) {
	m := Matrix{
		Sources: []string{"pod-1"}, Targets: []string{"pod-1", "pod-2", "pod-3"},
		Cells: []ProbeResult{
			{From: "pod-1", To: "pod-1", OK: true, Path: PathLocal, Latency: 50 * time.Microsecond},
			{From: "pod-1", To: "pod-2", OK: true, Path: PathVXLAN, Latency: time.Millisecond, Target: "192.168.20.65:1", Packets: 7, Sample: "s"},
			{From: "pod-1", To: "pod-3", Path: PathNone, Error: "timeout"},
		},
	}
	topo, err := DemoTopology()
	require.NoError(t, err)
	want := Expect(topo, demoPods(), ModeDirect)
	assert.Equal(t, []string{"pod-1 to pod-2 (192.168.20.65:1): expected direct, got vxlan"}, m.Wrong(want))

	var out bytes.Buffer
	require.NoError(t, m.Print(&out, want))
	assert.Equal(t, "from \\ to  pod-1       pod-2        pod-3\npod-1      local 50µs  vxlan 1ms !  -\n", out.String())

	out.Reset()
	require.NoError(t, Matrix{}.Print(&out, want))
	assert.Equal(t, "there are no pods\n", out.String())
}

func TestProbeResult(t *testing.T) {
	f := &flight{
		request:    ProbeRequest{From: "pod-1", To: "pod-3", Kind: ProbeTCP},
		to:         netip.MustParseAddrPort("192.168.2.1:80"),
		sourceNode: "worker-1", targetNode: "worker-3", localPort: 4000, word: []byte("hello"),
	}
	seen := func(sample, node string, out bool) nodeFrame {
		p := decodePacket(samples(t)[sample], defaultVXLANPort)
		p.Outgoing = out
		return nodeFrame{node: node, Packet: p}
	}
	cases := []struct {
		name    string
		err     error
		frames  []nodeFrame
		path    Path
		packets int
		text    string
	}{
		{name: "local", path: PathLocal},
		{name: "direct", frames: []nodeFrame{seen("direct", "worker-1", true), seen("direct", "worker-3", false)}, path: PathDirect, packets: 1},
		{name: "vxlan", frames: []nodeFrame{seen("vxlan", "worker-3", false), seen("vxlan", "worker-1", false)}, path: PathVXLAN, packets: 2},
		{name: "mixed", frames: []nodeFrame{seen("vxlan", "worker-3", false), seen("ipip", "worker-1", false)}, path: PathMixed, packets: 2},
		{name: "others' frames", frames: []nodeFrame{seen("arp", "worker-3", false)}, path: PathLocal},
		{name: "never left", err: errors.New("timeout"), path: PathNone, text: "did not leave worker-1"},
		{name: "lost", err: errors.New("timeout"), frames: []nodeFrame{seen("direct", "worker-1", true)}, path: PathNone, text: "left worker-1 and did not reach worker-3"},
		{name: "refused", err: errors.New("refused"), frames: []nodeFrame{seen("direct", "worker-3", false)}, path: PathNone, packets: 1, text: "reached worker-3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f.err = c.err
			r := f.result(c.frames)
			assert.Equal(t, c.path, r.Path)
			assert.Equal(t, c.packets, r.Packets)
			assert.Equal(t, c.err == nil, r.OK)
			assert.Contains(t, r.Error, c.text)
		})
	}
}

func TestMissingRoute(t *testing.T) {
	pool := Pool{CIDR: netip.MustParsePrefix("192.168.0.0/16"), BlockSize: 26}
	pod := demoPods()[1]
	direct := Route{Dst: "192.168.20.64/26", Gateway: "10.30.0.56", Dev: "ens5"}
	tunnelled := Route{Dst: "192.168.20.64/26", Gateway: "192.168.20.64", Dev: "vxlan.calico"}
	wrapped := Route{Dst: "192.168.20.64/26", Gateway: "10.30.0.56", Dev: "tunl0"}
	blackhole := Route{Type: "blackhole", Dst: "192.168.20.64/26"}
	cases := []struct {
		name   string
		routes []Route
		want   Path
		ok     bool
	}{
		{"direct there", []Route{blackhole, direct}, PathDirect, true},
		{"still direct", []Route{direct}, PathVXLAN, false},
		{"vxlan there", []Route{tunnelled}, PathVXLAN, true},
		{"ipip there", []Route{wrapped}, PathIPIP, true},
		{"still ipip", []Route{wrapped}, PathDirect, false},
		{"vxlan, not ipip", []Route{tunnelled}, PathIPIP, false},
		{"ipip, not vxlan", []Route{wrapped}, PathVXLAN, false},
		{"still vxlan", []Route{tunnelled}, PathDirect, false},
		{"blackhole only", []Route{blackhole}, PathDirect, false},
		{"none", nil, PathVXLAN, false},
		{"local needs none", nil, PathLocal, true},
		{"across the router", []Route{direct}, PathNone, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := missingRoute("worker-1", c.routes, pool, pod, c.want)
			if c.ok {
				assert.Empty(t, got)
			} else {
				assert.Equal(t, "worker-1 has no "+string(c.want)+" route to 192.168.20.64/26 of pod-2", got)
			}
		})
	}
}

func TestStartTime(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
	for name, c := range map[string]struct {
		stat string
		want uint64
		bad  bool
	}{
		"plain":              {stat: "7 (lab)" + tail, want: 4242},
		"brackets and space": {stat: "7 (a) b (c)" + tail, want: 4242},
		"cut":                {stat: "7 (lab) S 1", bad: true},
		"empty":              {bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseStartTime([]byte(c.stat))
			assert.Equal(t, c.bad, err != nil)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestInternetChecksum(t *testing.T) {
	// RFC 1071 section 3: the sum of these words is ddf2.
	assert.Equal(t, ^uint16(0xddf2), internetChecksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}))
	assert.Equal(t, uint16(0x00ff), internetChecksum([]byte{0xff}), "an odd byte counts as the high one")
}

func TestStatusTable(t *testing.T) {
	now := time.Unix(1000, 0)
	st := Status{
		Name: "demo", StateDir: "/run/muslin-lab/demo", Datastore: DatastoreEmbedded,
		Nodes: []NodeStatus{
			{Name: "master", Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.10")}},
			{Name: "bare", Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.11")}},
		},
		Processes: []ProcessStatus{
			{Node: "master", Name: "typha", State: StateRunning, PID: 12, Starts: 1, Since: now.Add(-5 * time.Second)},
			{Node: "master", Name: "felix", State: StateKilled, Starts: 2, Since: now.Add(-time.Minute), LastExit: "signal: killed"},
		},
		Pods: demoPods()[:1],
	}
	var out bytes.Buffer
	require.NoError(t, st.Print(&out, now))
	assert.Equal(t, `Lab demo (embedded, root), files in /run/muslin-lab/demo

NODE    ADDRESS     PROCESS  PID  STATE    SINCE  STARTS  LAST EXIT
master  10.30.0.10  typha    12   running  5s     1       -
master  10.30.0.10  felix    -    killed   1m0s   2       signal: killed
bare    10.30.0.11  -        -    -        -      -       -

POD    ADDRESS       NODE      INTERFACE
pod-1  192.168.10.1  worker-1  -
`, out.String())
}
