package verb

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	felixclient "github.com/muslin-net/muslin/felix/client"
)

func TestCheckMTUNamesWhatDoesNotFit(t *testing.T) {
	addr := netip.MustParseAddr
	paths := pathReports([]felixclient.PathCheck{
		{Node: "worker-3", Address: addr("10.30.1.66"), By: "vxlan", Wanted: 1500, Fits: 1412, RoundTrip: 1234 * time.Microsecond},
		{Node: "worker-2", Address: addr("10.30.0.56"), By: "direct", Wanted: 1450, Fits: 1450, RoundTrip: 40 * time.Microsecond},
		{Node: "worker-3", Address: addr("fd00:31::66"), By: "vxlan", Wanted: 1500, Fits: 1412, RoundTrip: 2 * time.Millisecond},
		{Node: "worker-4", Address: addr("10.30.1.67"), By: "vxlan", Wanted: 1500, Error: "no answer"},
		{Node: "worker-5", Address: addr("10.30.1.68"), By: "ipip", Wanted: 1500, Fits: 1400},
		{Node: "worker-6", Address: addr("10.30.1.69"), By: "direct", Wanted: 1500, Fits: 1400},
	})
	var got strings.Builder
	printPaths(&got, paths)
	require.Equal(t, `+----------+-------------+--------+--------+------+------------+-------------+
|   NODE   |   ADDRESS   |   BY   | WANTED | FITS | ROUND TRIP |    INFO     |
+----------+-------------+--------+--------+------+------------+-------------+
| worker-2 | 10.30.0.56  | direct | 1450   | 1450 | 0.040 ms   | ok          |
| worker-3 | 10.30.1.66  | vxlan  | 1500   | 1412 | 1.234 ms   | too small   |
| worker-3 | fd00:31::66 | vxlan  | 1500   | 1412 | 2.000 ms   | too small   |
| worker-4 | 10.30.1.67  | vxlan  | 1500   | -    | -          | unreachable |
| worker-5 | 10.30.1.68  | ipip   | 1500   | 1400 | 0.000 ms   | too small   |
| worker-6 | 10.30.1.69  | direct | 1500   | 1400 | 0.000 ms   | too small   |
+----------+-------------+--------+--------+------+------------+-------------+
`, got.String())
	require.EqualError(t, tooSmall(paths), `node worker-3 (10.30.1.66): packets of 1500 bytes do not arrive, the largest that do have 1412; raise the MTU of the links on the way to 1500, or set vxlanMTU to 1362 in FelixConfiguration
node worker-3 (fd00:31::66): packets of 1500 bytes do not arrive, the largest that do have 1412; raise the MTU of the links on the way to 1500, or set vxlanMTUV6 to 1342 in FelixConfiguration
node worker-4 (10.30.1.67): no answer
node worker-5 (10.30.1.68): packets of 1500 bytes do not arrive, the largest that do have 1400; raise the MTU of the links on the way to 1500, or set ipipMTU to 1380 in FelixConfiguration
node worker-6 (10.30.1.69): packets of 1500 bytes do not arrive, the largest that do have 1400; raise the MTU of the links on the way to 1500, or lower that of the nodes' interfaces to 1400`)
	require.NoError(t, tooSmall(paths[:1]))

	got.Reset()
	require.NoError(t, show(&got, "yaml", paths[1:2], nil))
	require.Equal(t, `- address: 10.30.1.66
  by: vxlan
  fits: 1412
  node: worker-3
  ok: false
  roundTripMilliseconds: 1.234
  wanted: 1500
`, got.String())
	got.Reset()
	require.NoError(t, show(&got, "json", paths[3:4], nil))
	require.JSONEq(t, `[{"node":"worker-4","address":"10.30.1.67","by":"vxlan","wanted":1500,"fits":0,"ok":false,"error":"no answer"}]`, got.String())
	require.ErrorContains(t, show(&got, "wide", paths, nil), "use ps, yaml or json")
	got.Reset()
	printPaths(&got, nil)
	require.Equal(t, "There are no other nodes that pods' packets go to.\n", got.String())
}

func TestCheckSystemNamesWhatIsMissing(t *testing.T) {
	found := []felixclient.Feature{
		{Name: "nftables", Present: true, NeededBy: "policy", Detail: "rules"},
		{Name: "ipip", NeededBy: "pool old", Detail: "load the module ipip"},
		{Name: "ipset", Detail: "load the modules"},
	}
	r := systemOf(found, "6.1.0")
	var got strings.Builder
	printSystem(&got, r)
	require.Equal(t, `Checking kernel version...
6.1.0

Checking kernel features...
+----------+---------+-----------+----------------------+
| FEATURE  |  STATE  | NEEDED BY |         INFO         |
+----------+---------+-----------+----------------------+
| nftables | OK      | policy    | rules                |
| ipip     | MISSING | pool old  | load the module ipip |
| ipset    | no      |           | load the modules     |
+----------+---------+-----------+----------------------+
`, got.String())
	require.EqualError(t, r.missing(), "System doesn't meet one or more minimum systems requirements to run Calico:\nipip, needed by pool old: load the module ipip")
	got.Reset()
	r = systemOf(found[:1], "6.1.0")
	printSystem(&got, r)
	require.NoError(t, r.missing())
	require.True(t, strings.HasSuffix(got.String(), "\nSystem meets minimum system requirements to run Calico!\n"))
}

func TestNodeChecksWithoutFelix(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nobody.sock")
	for _, check := range []string{"checkmtu", "checksystem"} {
		var out, errs strings.Builder
		begin := time.Now()
		require.Equal(t, 1, Run(t.Context(), "v1", []string{"node", check, "--felix-socket", socket}, strings.NewReader(""), &out, &errs))
		require.Contains(t, errs.String(), "is felix running on this node?")
		require.Contains(t, errs.String(), socket)
		require.Empty(t, out.String())
		require.Less(t, time.Since(begin), 30*time.Second)
	}
}
