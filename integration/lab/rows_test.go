package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rowSeen is what one sees of the CrossSubnet row with IP-in-IP when all is well.
func rowSeen(t *testing.T) (Row, RowSeen) {
	t.Helper()
	all := samples(t)
	seen := func(sample string) ProbeResult {
		p := decodePacket(all[sample], defaultVXLANPort)
		return ProbeResult{OK: true, Path: pathOf(p.Encap), Seen: []Sighting{{Node: "worker-1", Packet: p}}}
	}
	from := actor{Pod: "pod-1", Node: "worker-1", Addr: netip.MustParseAddr("192.168.1.1"), NodeAddr: netip.MustParseAddr("10.30.0.206")}
	to := actor{Pod: "pod-2", Node: "worker-3", Addr: netip.MustParseAddr("192.168.2.1"), NodeAddr: netip.MustParseAddr("10.30.1.66")}
	return Rows()[3], RowSeen{
		Same: CellSeen{From: from, To: to, Probe: seen("direct")}, Other: CellSeen{From: from, To: to, Probe: seen("ipip")},
		SameRoute: "via 10.30.0.56 dev ens5 onlink", OtherRoute: "via 10.30.1.66 dev tunl0 onlink",
		names: map[string]string{"same": "10.30.0.56", "other": "10.30.1.66", "uplink": "ens5"},
	}
}

// TestRowWrong: the judge is itself judged: each way a cell can be wrong is named.
func TestRowWrong(t *testing.T) {
	row, right := rowSeen(t)
	require.Equal(t, ModeIPIPCrossSubnet, row.Mode)
	assert.Empty(t, row.Wrong(right))
	all := samples(t)
	for name, c := range map[string]struct {
		spoil func(*RowSeen)
		row   func(*Row)
		want  string
	}{
		"lost":              {spoil: func(s *RowSeen) { s.Other.Probe = ProbeResult{Error: "timeout"} }, want: `pod-1 to pod-2: expected "yes, proto 4", got "no: timeout"`},
		"bare, not wrapped": {spoil: func(s *RowSeen) { s.Other.Probe = s.Same.Probe }, want: `expected "yes, proto 4", got "yes, bare"`},
		"wrapped, not bare": {spoil: func(s *RowSeen) { s.Same.Probe = s.Other.Probe }, want: `expected "yes, bare", got "yes, proto 4"`},
		"other outer addresses": {
			spoil: func(s *RowSeen) { s.Other.To.NodeAddr = netip.MustParseAddr("10.30.1.67") },
			want:  "expected outer addresses 10.30.0.206 and 10.30.1.67, saw on worker-1:",
		},
		"other inner addresses": {
			spoil: func(s *RowSeen) { s.Other.To.Addr = netip.MustParseAddr("192.168.2.2") }, want: "expected the pods' addresses inside",
		},
		"never on the wire": {spoil: func(s *RowSeen) { s.Other.Probe.Seen = nil }, want: "no packet of it was captured"},
		"another route":     {spoil: func(s *RowSeen) { s.OtherRoute = "via 10.30.0.1 dev ens5" }, want: `route to the other subnet: expected "via 10.30.1.66 dev tunl0 onlink", got "via 10.30.0.1 dev ens5"`},
		"not onlink":        {spoil: func(s *RowSeen) { s.OtherRoute = "via 10.30.1.66 dev tunl0" }, want: "onlink"},
		"no route":          {spoil: func(s *RowSeen) { s.SameRoute = "" }, want: `route to the same subnet: expected "via 10.30.0.56 dev ens5", got "none"`},
		"sessions without BGP": {
			spoil: func(s *RowSeen) { s.Sessions = 2 }, row: func(r *Row) { r.Backend = BackendVXLAN }, want: "BGP: expected no session, got 2 ends",
		},
		"another VNI": {
			spoil: func(s *RowSeen) {
				p := decodePacket(all["vxlan"], defaultVXLANPort)
				p.VNI = 1
				s.Other.Probe = ProbeResult{OK: true, Path: PathVXLAN, Seen: []Sighting{{Node: "worker-1", Packet: p}}}
			},
			row: func(r *Row) { r.Other = InVXLAN }, want: "expected VNI 4096",
		},
		"came through": {
			spoil: func(s *RowSeen) {
				s.Same.Probe.OK, s.Same.Refused, s.Same.Probe.Seen[0].Node = false, 1, "worker-3"
			},
			row: func(r *Row) { r.Same = Refused }, want: "expected nothing to come to worker-3",
		},
	} {
		t.Run(name, func(t *testing.T) {
			row, seen := rowSeen(t)
			c.spoil(&seen)
			if c.row != nil {
				c.row(&row)
			}
			got := row.Wrong(seen)
			require.NotEmpty(t, got)
			assert.Contains(t, strings.Join(got, "\n"), c.want)
			assert.Contains(t, got[0], "ipip CrossSubnet, source/destination check off: ", "the row is named")
		})
	}
}

func TestFates(t *testing.T) {
	for want, c := range map[Fate]CellSeen{
		Bare:                      {Probe: ProbeResult{OK: true, Path: PathDirect}},
		InIPIP:                    {Probe: ProbeResult{OK: true, Path: PathIPIP}},
		InVXLAN:                   {Probe: ProbeResult{OK: true, Path: PathVXLAN}},
		Refused:                   {Refused: 2},
		Unroutable:                {NoRoute: 1},
		"no: connection reset":    {Probe: ProbeResult{Error: "connection reset"}},
		"yes, " + Fate(PathMixed): {Probe: ProbeResult{OK: true, Path: PathMixed}},
	} {
		assert.Equal(t, want, c.Fate())
	}
}

// TestRowsAreTheTable: modes and checks of the table, in its order; each has its reason.
func TestRowsAreTheTable(t *testing.T) {
	var titles []string
	for _, r := range Rows() {
		titles = append(titles, r.Title())
		assert.NotEmpty(t, r.Why)
	}
	assert.Equal(t, []string{
		"ipip Always, source/destination check on", "direct, source/destination check on", "direct, source/destination check off",
		"ipip CrossSubnet, source/destination check off", "vxlan Always, source/destination check on",
		"vxlan CrossSubnet, source/destination check off",
	}, titles)
}

func TestModes(t *testing.T) {
	for _, m := range Modes() {
		assert.Equal(t, m, handPool(false).WithMode(m).Mode())
		assert.NoError(t, m.check())
	}
	assert.ErrorContains(t, Mode("gre").check(), "use one of direct, ipip, ipip-cross-subnet, vxlan, vxlan-cross-subnet")
	assert.Empty(t, Pool{IPIPMode: "Always", VXLANMode: "Always"}.Mode())
}

func TestPacketsWithoutRoute(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("netstat", "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InTruncatedPkts\nIpExt: 7 1\n")
	n, err := packetsWithoutRoute(dir)
	require.NoError(t, err)
	assert.EqualValues(t, 7, n, "a kernel without IPv6")
	write("snmp6", "Ip6InReceives                   \t24\nIp6InNoRoutes                   \t5\n")
	n, err = packetsWithoutRoute(dir)
	require.NoError(t, err)
	assert.EqualValues(t, 12, n)
	write("netstat", "TcpExt: A B\n")
	_, err = packetsWithoutRoute(dir)
	require.ErrorContains(t, err, "IpExt.InNoRoutes")
}

// TestStory: the same is told on a terminal and as a page of Markdown.
func TestStory(t *testing.T) {
	var out strings.Builder
	s := &story{out: &out, doc: &strings.Builder{}}
	s.title("First")
	s.text("A sentence.")
	s.ran(Ran{Where: "master", Command: "ls", Output: "a  \nb"})
	s.ran(Ran{Command: "lab fabric"})
	s.table([]string{"mode", "fate"}, [][]string{{"direct", "→"}})
	s.lines([]string{"last"})
	assert.Equal(t, "\n== First\n  A sentence.\n    master# ls\n    a\n    b\n    $ lab fabric\n  mode    fate\n  direct  →\n    last\n", out.String())
	assert.Equal(t, "## First\n\nA sentence.\n\n```console\nmaster# ls\na\nb\n$ lab fabric\n```\n\n| mode | fate |\n|---|---|\n| direct | → |\n\n"+
		"```console\nlast\n```\n", s.page())
	assert.Equal(t, []string{"aaa bb", "cccccccc", "d"}, wrap(" aaa  bb cccccccc d", 6))
}
