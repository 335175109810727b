//go:build lab

package suite

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// repairTime is how long what was removed by hand may stay away.
const repairTime = 5 * time.Second

// TestDrift: whatever is removed or changed by hand is back within a second.
func TestDrift(t *testing.T) {
	everywhere := map[string]string{
		"pod route":           `ip route del $POD`,
		"pod route elsewhere": `ip route replace $POD dev lo metric 1024`,
		"block route":         `ip route del $BLOCK`,
		"blackhole":           `ip route del blackhole $OWN`,
		"all routes":          `ip route flush root 192.168.0.0/16`,
		"rule":                `nft delete rule ip calico filter-FORWARD handle $(nft -a list chain ip calico filter-FORWARD | sed -n 's/.*from a workload.*handle //p')`,
		"foreign rule":        `nft insert rule ip calico filter-FORWARD drop`,
		"chain":               `nft flush chain ip calico filter-FORWARD`,
		"guard":               `nft flush chain netdev calico from-$HOSTSIDE`,
		"set element":         `nft delete element ip calico cali40network-ip-pools { 192.168.0.0/16 }`,
		"dispatch":            `nft flush map ip calico cali-to-wl-dispatch`,
		"table":               `nft delete table ip calico`,
		"ruleset":             `nft flush ruleset`,
		"host side down":      `ip link set $HOSTSIDE down`,
		"flush of protocol":   `ip route flush proto 80`,
		"underlay down, up":   `ip link set ens5 down; ip link set ens5 up; ip route add default via 10.30.0.1`,
		"default route":       `ip route del default; ip route add default via 10.30.0.1`,
	}
	tunl0 := map[string]string{
		"tunnel device":          `ip link del tunl0`,
		"tunnel device down":     `ip link set tunl0 down`,
		"tunnel device's MTU":    `ip link set tunl0 mtu 1300`,
		"tunnel address":         `ip addr del $(ip -br -4 addr show tunl0 | awk '{print $3}') dev tunl0`,
		"foreign tunnel address": `ip addr add 192.168.255.1/32 dev tunl0`,
	}
	tunnelled := map[string]string{
		"forwarding entry":       `bridge fdb del $(bridge fdb show dev vxlan.calico | awk '$3 == "10.30.0.56" || $4 == "10.30.0.56" || $5 == "10.30.0.56" {print $1; exit}') dev vxlan.calico dst 10.30.0.56`,
		"all forwarding":         `bridge fdb show dev vxlan.calico | while read mac rest; do bridge fdb del $mac dev vxlan.calico || true; done`,
		"neighbour":              `ip neigh del $(ip neigh show dev vxlan.calico nud permanent | awk '{print $1; exit}') dev vxlan.calico`,
		"all neighbours":         `ip neigh show dev vxlan.calico nud permanent | while read address rest; do ip neigh del $address dev vxlan.calico || true; done`,
		"flush of neighbours":    `ip neigh flush dev vxlan.calico nud all || true`,
		"tunnel device":          `ip link del vxlan.calico`,
		"device of another VNI":  `ip link add mine type vxlan id 7 dstport 9999 dev ens5; ip link del vxlan.calico; ip link set mine name vxlan.calico || ip link del mine`,
		"tunnel device down":     `ip link set vxlan.calico down`,
		"tunnel device's MTU":    `ip link set vxlan.calico mtu 1300`,
		"tunnel device's MAC":    `ip link set vxlan.calico address 02:00:00:00:00:01`,
		"tunnel address":         `ip addr del $(ip -br -4 addr show vxlan.calico | awk '{print $3}') dev vxlan.calico`,
		"foreign tunnel address": `ip addr add 192.168.255.1/32 dev vxlan.calico`,
	}
	ways := map[lab.Mode]map[string]string{lab.ModeDirect: nil, lab.ModeIPIP: tunl0, lab.ModeVXLAN: tunnelled}
	for mode, further := range ways {
		t.Run(string(mode), func(t *testing.T) {
			c := up(t, "suite-drift", mode, nil)
			pod, other := c.pod(t, "pod-1"), c.pod(t, "pod-2")
			talks := c.converse(t, [2]string{"pod-1", "pod-2"})
			before := c.settled(t)
			env := "POD=" + pod.Addresses[0].String() + " HOSTSIDE=" + pod.HostInterface + " OWN=" + block(t, pod) + " BLOCK=" + block(t, other) + "; "
			damage := func(name, command string) {
				t.Run(name, func(t *testing.T) {
					began := time.Now()
					c.sh(t, "worker-1", env+command)
					c.awaitKernel(t, before, patience)
					took := time.Since(began)
					t.Logf("repaired after %s at most", took.Round(time.Millisecond))
					assert.Less(t, took, bound(repairTime))
				})
			}
			for name, command := range everywhere {
				damage(name, command)
			}
			for name, command := range further {
				damage(name, command)
			}
			talks.goOn(t, "after all that")
			c.reachable(t)
		})
	}
}

// block is the block of 64 that a pod's address is in.
func block(t *testing.T, p lab.PodStatus) string {
	t.Helper()
	b, err := p.Addresses[0].Prefix(26)
	require.NoError(t, err)
	return b.String()
}
