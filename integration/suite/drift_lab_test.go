//go:build lab

package suite

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// repairTime is how long what was removed by hand may stay away on a machine that has other things to do. How long it takes is
// measured by bin/lab bench repair.
const repairTime = 20 * time.Second

// damage is something that a user, or a program of the host, does to a node.
type damage struct {
	command string
	lost    []string // what felix's log must name, as "KIND KEY"; none: nothing of felix's is taken away
}

// underlay takes the node's interface down and up, and gives it back what of the kernel's own went with it.
const underlay = `way=$(ip route show default) way6=$(ip -6 route show default) own6=$(ip -br -6 addr show dev ens5 scope global | awk '{print $3}')
	ip link set ens5 down; ip link set ens5 up
	[ -z "$own6" ] || ip -6 addr add $own6 dev ens5 nodad
	ip route add $way; [ -z "$way6" ] || ip -6 route add $way6`

// TestDrift: whatever is removed or changed by hand is put back within repairTime, without a connection lost, and the log names
// what was lost.
func TestDrift(t *testing.T) {
	everywhere := map[string]damage{
		"pod route":           {`ip route del $POD`, []string{"route $POD"}},
		"pod route elsewhere": {`ip route replace $POD dev lo metric 1024`, []string{"route $POD"}},
		"block route":         {`ip route del $BLOCK`, []string{"route $BLOCK"}},
		"blackhole":           {`ip route del blackhole $OWN`, []string{"route $OWN"}},
		"all routes":          {`ip route flush root 192.168.0.0/16`, []string{"route $POD", "route $BLOCK", "route $OWN"}},
		"rule":                {`nft delete rule ip calico filter-FORWARD handle $(nft -a list chain ip calico filter-FORWARD | sed -n 's/.*from a workload.*handle //p')`, []string{"rule ip calico filter-FORWARD"}},
		"foreign rule":        {`nft insert rule ip calico filter-FORWARD drop`, []string{"rule ip calico filter-FORWARD"}},
		"chain":               {`nft flush chain ip calico filter-FORWARD`, []string{"rule ip calico filter-FORWARD"}},
		"guard":               {`nft flush chain netdev calico from-$HOSTSIDE`, []string{"rule netdev calico from-$HOSTSIDE"}},
		"set element":         {`nft delete element ip calico cali40network-ip-pools { 192.168.0.0/16 }`, []string{"set ip calico cali40network-ip-pools"}},
		"dispatch":            {`nft flush map ip calico cali-to-wl-dispatch`, []string{"set ip calico cali-to-wl-dispatch"}},
		"table":               {`nft delete table ip calico`, []string{"rule ip calico"}},
		"ruleset":             {`nft flush ruleset`, []string{"rule ip calico", "rule netdev calico"}},
		"host side down":      {`ip link set $HOSTSIDE down`, []string{"link $HOSTSIDE", "route $POD"}},
		"flush of protocol":   {`ip route flush proto 80`, []string{"route $OWN"}},
		"default route":       {`ip route del default; ip route add default via 10.30.0.1`, nil},
	}
	// Bird sees the link go too, and says so: felix may be told to take the routes back before it misses them.
	direct := map[string]damage{
		"underlay down, up": {underlay, nil},
	}
	tunl0 := map[string]damage{
		"underlay down, up":      {underlay, nil},
		"tunnel device":          {`ip link del tunl0`, []string{"link tunl0", "route $BLOCK"}},
		"tunnel device down":     {`ip link set tunl0 down`, []string{"link tunl0", "route $BLOCK"}},
		"tunnel device's MTU":    {`ip link set tunl0 mtu 1300`, []string{"link tunl0"}},
		"tunnel address":         {`ip addr del $(ip -br -4 addr show tunl0 | awk '{print $3}') dev tunl0`, []string{"link tunl0"}},
		"foreign tunnel address": {`ip addr add 192.168.255.1/32 dev tunl0`, []string{"link tunl0"}},
	}
	tunnelled := map[string]damage{
		"underlay down, up":      {underlay, nil},
		"forwarding entry":       {`bridge fdb del $MAC dev vxlan.calico dst 10.30.0.56`, []string{"fdb $MAC"}},
		"all forwarding":         {`bridge fdb show dev vxlan.calico | while read mac rest; do bridge fdb del $mac dev vxlan.calico || true; done`, []string{"fdb $MAC"}},
		"neighbour":              {`ip neigh del $NEIGHBOUR dev vxlan.calico`, []string{"neigh $NEIGHBOUR"}},
		"all neighbours":         {`ip neigh show dev vxlan.calico nud permanent | while read address rest; do ip neigh del $address dev vxlan.calico || true; done`, []string{"neigh $NEIGHBOUR"}},
		"flush of neighbours":    {`ip neigh flush dev vxlan.calico nud all || true`, []string{"neigh $NEIGHBOUR"}},
		"tunnel device":          {`ip link del vxlan.calico`, []string{"link vxlan.calico", "route $BLOCK"}},
		"device of another VNI":  {`ip link add mine type vxlan id 7 dstport 9999 dev ens5; ip link del vxlan.calico; ip link set mine name vxlan.calico || ip link del mine`, []string{"link vxlan.calico"}},
		"tunnel device down":     {`ip link set vxlan.calico down`, []string{"link vxlan.calico", "route $BLOCK"}},
		"tunnel device's MTU":    {`ip link set vxlan.calico mtu 1300`, []string{"link vxlan.calico"}},
		"tunnel device's MAC":    {`ip link set vxlan.calico address 02:00:00:00:00:01`, []string{"link vxlan.calico"}},
		"tunnel address":         {`ip addr del $(ip -br -4 addr show vxlan.calico | awk '{print $3}') dev vxlan.calico`, []string{"link vxlan.calico"}},
		"foreign tunnel address": {`ip addr add 192.168.255.1/32 dev vxlan.calico`, []string{"link vxlan.calico"}},
	}
	// The kernel takes IPv6 addresses from a device that goes down.
	six := map[string]damage{
		"underlay down, up":   {underlay, nil},
		"pod route":           {`ip -6 route del $POD`, []string{"route $POD"}},
		"flush of protocol":   {`ip -6 route flush proto 80`, []string{"route $OWN"}},
		"tunnel device":       {`ip link del vxlan-v6.calico`, []string{"link vxlan-v6.calico", "route $BLOCK"}},
		"tunnel device down":  {`ip link set vxlan-v6.calico down`, []string{"link vxlan-v6.calico", "route $BLOCK"}},
		"flush of neighbours": {`ip -6 neigh flush dev vxlan-v6.calico nud all || true`, []string{"neigh $NEIGHBOUR"}},
	}
	for _, way := range []struct {
		name  string
		mode  lab.Mode
		v6    bool
		cases []map[string]damage
	}{
		{"direct", lab.ModeDirect, false, []map[string]damage{everywhere, direct}},
		{"ipip", lab.ModeIPIP, false, []map[string]damage{everywhere, tunl0}},
		{"vxlan", lab.ModeVXLAN, false, []map[string]damage{everywhere, tunnelled}},
		{"vxlan over IPv6", lab.ModeVXLAN, true, []map[string]damage{six}},
	} {
		t.Run(way.name, func(t *testing.T) {
			c := up(t, "suite-drift", way.mode, func(topo *lab.Topology) {
				if way.v6 {
					dual, err := lab.DualStackTopology()
					require.NoError(t, err)
					*topo = dual // both pools in VXLAN
				}
			})
			if way.mode == lab.ModeIPIP && strings.Contains(c.sh(t, "worker-1", "ip -d link show tunl0"), "remote any local any") {
				delete(tunl0, "tunnel device") // the one that the module makes for itself: the kernel keeps it
			}
			talks := c.converseOver(t, way.v6, [2]string{"pod-1", "pod-2"})
			before := c.settled(t)
			env := c.names(t, way.v6)
			for _, cases := range way.cases {
				for name, d := range cases {
					t.Run(name, func(t *testing.T) { c.repairs(t, d, env, before) })
				}
			}
			talks.goOn(t, "after all that")
			c.reachable(t)
		})
	}
}

// repairs does the damage on worker-1, and requires that the kernels hold again what they held, and that the log names what was
// lost.
func (c *cluster) repairs(t *testing.T, d damage, env map[string]string, before kernel) {
	t.Helper()
	felix := victim{"worker-1", "felix"}
	logged := len(c.log(t, felix))
	var command strings.Builder
	for name, value := range env {
		command.WriteString(name + "=" + value + "; ")
	}
	began := time.Now()
	c.sh(t, felix.node, command.String()+d.command)
	c.awaitKernel(t, before, patience)
	took := time.Since(began)
	t.Logf("repaired after %s at most", took.Round(time.Millisecond))
	assert.Less(t, took, bound(repairTime))
	for _, lost := range d.lost {
		kind, key, _ := strings.Cut(os.Expand(lost, func(name string) string { return env[name] }), " ")
		named := regexp.MustCompile(`the kernel was changed by someone else.* lost=.*\b` + kind + `s? .*` + regexp.QuoteMeta(key))
		eventually(t, patience, func() string {
			if said := c.log(t, felix)[logged:]; !named.MatchString(said) {
				return "the log does not say that " + kind + " " + key + " was lost:\n" + said
			}
			return ""
		})
	}
}

// names are those of what worker-1 holds for pod-1, its own, and for pod-2, which is on worker-2.
func (c *cluster) names(t *testing.T, v6 bool) map[string]string {
	t.Helper()
	pod, other := c.pod(t, "pod-1"), c.pod(t, "pod-2")
	env := map[string]string{
		"POD": firstOf(pod, v6).String(), "HOSTSIDE": pod.HostInterface, "OWN": block(t, firstOf(pod, v6)), "BLOCK": block(t, firstOf(other, v6)),
	}
	if c.mode == lab.ModeVXLAN {
		device, remote := "vxlan.calico", "10.30.0.56"
		if v6 {
			device, remote = "vxlan-v6.calico", "fd00:30::56"
		}
		env["MAC"] = c.sh(t, "worker-1", `bridge fdb show dev `+device+` | awk '/dst `+remote+` / {printf "%s", $1; exit}'`)
		env["NEIGHBOUR"] = c.sh(t, "worker-1", `ip neigh show dev `+device+` nud permanent | awk '/`+env["MAC"]+`/ {printf "%s", $1; exit}'`)
		for _, name := range []string{"MAC", "NEIGHBOUR"} {
			require.NotEmpty(t, env[name], name)
		}
	}
	return env
}

// block is the block that a pod's address is in: of 64 addresses.
func block(t *testing.T, a netip.Addr) string {
	t.Helper()
	b, err := a.Prefix(a.BitLen() - 6)
	require.NoError(t, err)
	return b.String()
}
