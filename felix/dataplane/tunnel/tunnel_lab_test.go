//go:build lab

package tunnel_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
)

var (
	ownMAC    = desired.MAC{0x66, 1, 2, 3, 4, 5}
	remoteMAC = desired.MAC{0x66, 9, 8, 7, 6, 5}
	device    = desired.VXLAN{
		Name: desired.VXLANDevice4, VNI: 4096, Port: 4789, Local: netip.MustParseAddr("10.0.0.1"), Parent: "eth0",
		MAC: ownMAC, MTU: 1450, Address: netip.MustParseAddr("192.168.1.0"),
	}
	neighbor = desired.Neighbor{Link: device.Name, Addr: netip.MustParseAddr("192.168.2.0"), MAC: remoteMAC}
	entry    = desired.FDB{Link: device.Name, MAC: remoteMAC, Remote: netip.MustParseAddr("10.0.0.2")}
)

// start opens a driver in a fresh namespace with a parent device, told to make the device and one remote tunnel end.
func start(t *testing.T) (*labtest.Namespace, *tunnel.Driver) {
	ns := labtest.Enter(t)
	ns.Run(t, "ip link add eth0 type veth peer name far; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; ip link set far up")
	return ns, open(t)
}

func open(t *testing.T) *tunnel.Driver {
	d, err := tunnel.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	tell(d, device)
	d.Whole()
	return d
}

func tell(d *tunnel.Driver, v desired.VXLAN) {
	var vxlans desired.Delta[string, desired.VXLAN]
	var neighbors desired.Delta[desired.NeighborKey, desired.Neighbor]
	var fdb desired.Delta[desired.FDBKey, desired.FDB]
	vxlans.Put(v.Name, v)
	neighbors.Put(neighbor.Key(), neighbor)
	fdb.Put(entry.Key(), entry)
	d.Update(vxlans, neighbors, fdb)
}

func requireWhole(t *testing.T, ns *labtest.Namespace) {
	t.Helper()
	link := ns.Run(t, "ip -d link show vxlan.calico")
	for _, want := range []string{"id 4096", "local 10.0.0.1", "dev eth0", "dstport 4789", "nolearning", "mtu 1450", "66:01:02:03:04:05", "UP"} {
		require.Contains(t, link, want)
	}
	require.Contains(t, ns.Run(t, "ip -4 addr show vxlan.calico"), "inet 192.168.1.0/32")
	require.Contains(t, ns.Run(t, "ip neigh show dev vxlan.calico"), "192.168.2.0 lladdr 66:09:08:07:06:05 PERMANENT")
	require.Contains(t, ns.Run(t, "bridge fdb show dev vxlan.calico"), "66:09:08:07:06:05 dst 10.0.0.2 self permanent")
}

func TestDeviceAndEntriesAreMadeAndAdopted(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	requireWhole(t, ns)

	again := open(t) // a restart
	require.NoError(t, again.Apply(context.Background()))
	require.Zero(t, again.Writes(), "a restart must adopt what is there")
	for _, e := range again.Entries() {
		require.Equal(t, e.Desired, e.Actual)
	}
}

func TestRestartRemovesWhatIsNotWanted(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	ns.Run(t, `bridge fdb add 66:00:00:00:00:01 dst 10.0.0.9 dev vxlan.calico self permanent
		ip neigh add 192.168.9.9 lladdr 66:00:00:00:00:01 dev vxlan.calico nud permanent
		ip addr add 192.168.77.7/32 dev vxlan.calico`)
	require.NoError(t, open(t).Apply(context.Background()))
	requireWhole(t, ns)
	require.NotContains(t, ns.Run(t, "bridge fdb show dev vxlan.calico; ip neigh show dev vxlan.calico; ip addr show dev vxlan.calico"), "66:00:00:00:00:01")
	require.NotContains(t, ns.Run(t, "ip addr show dev vxlan.calico"), "192.168.77.7")
}

func TestAMismatchMakesTheDeviceAnew(t *testing.T) {
	for name, make := range map[string]string{
		"vni":      "ip link add vxlan.calico type vxlan id 7 dstport 4789 local 10.0.0.1 dev eth0 nolearning",
		"port":     "ip link add vxlan.calico type vxlan id 4096 dstport 9999 local 10.0.0.1 dev eth0 nolearning",
		"learning": "ip link add vxlan.calico address 66:01:02:03:04:05 type vxlan id 4096 dstport 4789 local 10.0.0.1 dev eth0",
		"type":     "ip link add vxlan.calico type bridge",
		"mtu only": "ip link add vxlan.calico address 66:01:02:03:04:05 mtu 1300 type vxlan id 4096 dstport 4789 local 10.0.0.1 dev eth0 nolearning",
	} {
		t.Run(name, func(t *testing.T) {
			ns := labtest.Enter(t)
			ns.Run(t, "ip link add eth0 type veth peer name far; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; ip link set far up; "+make)
			require.NoError(t, open(t).Apply(context.Background()))
			requireWhole(t, ns)
		})
	}
}

// A node that gets another address, on another interface, has its device made anew there, with all that was on it.
func TestTheDeviceFollowsTheNodesAddress(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	ns.Run(t, "ip link add eth1 type veth peer name far1; ip addr add 10.0.9.7/24 dev eth1; ip link set eth1 up; ip link set far1 up; ip addr flush dev eth0")
	moved := device
	moved.Local, moved.Parent, moved.MTU = netip.MustParseAddr("10.0.9.7"), "eth1", 1400
	tell(d, moved)
	require.NoError(t, d.Apply(context.Background()))
	link := ns.Run(t, "ip -d link show vxlan.calico")
	for _, want := range []string{"id 4096", "local 10.0.9.7", "dev eth1", "mtu 1400", "66:01:02:03:04:05", "UP"} {
		require.Contains(t, link, want)
	}
	require.Contains(t, ns.Run(t, "ip neigh show dev vxlan.calico"), "192.168.2.0 lladdr 66:09:08:07:06:05 PERMANENT")
	require.Contains(t, ns.Run(t, "bridge fdb show dev vxlan.calico"), "66:09:08:07:06:05 dst 10.0.0.2 self permanent")
}

// Another's device with the same VNI and port keeps ours from being made: that is said with its name, and it stays.
func TestAnothersDeviceInTheWayIsNamed(t *testing.T) {
	ns, d := start(t)
	ns.Run(t, "ip link add theirs type vxlan id 4096 dstport 4789 local 10.0.0.1 dev eth0 nolearning; ip link set theirs up")
	require.ErrorContains(t, d.Apply(context.Background()), "the device theirs has VNI 4096 on port 4789 already")
	ns.Run(t, "ip link show theirs; ip link del theirs")
	require.NoError(t, d.Apply(context.Background()))
	requireWhole(t, ns)
}

func TestUnwantedDeviceIsRemovedOnlyWhenWhole(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	fresh, err := tunnel.New()
	require.NoError(t, err)
	defer fresh.Close()
	require.NoError(t, fresh.Apply(context.Background()))
	requireWhole(t, ns)
	fresh.Whole()
	require.NoError(t, fresh.Apply(context.Background()))
	_, err = ns.Try("ip link show vxlan.calico")
	require.Error(t, err)
}

func TestAMissingParentIsNamedAndWaitedFor(t *testing.T) {
	ns := labtest.Enter(t)
	d := open(t)
	err := d.Apply(context.Background())
	require.ErrorContains(t, err, "link vxlan.calico: parent device eth0")
	ns.Run(t, "ip link add eth0 type veth peer name far; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; ip link set far up")
	require.NoError(t, d.Apply(context.Background()))
	requireWhole(t, ns)
}

// Whatever is broken by hand wakes the driver, and its Apply mends it.
func TestDriftIsRepaired(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	woken := make(chan dataplane.Drift, 64)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ns.Set(t)
		ended <- d.Watch(ctx, func(drifts ...dataplane.Drift) {
			for _, x := range drifts {
				woken <- x
			}
		})
	}()
	defer func() { cancel(); require.NoError(t, <-ended) }()

	for _, broken := range []string{
		"ip link del vxlan.calico",
		"ip neigh del 192.168.2.0 dev vxlan.calico",
		"ip neigh replace 192.168.2.0 lladdr 66:aa:aa:aa:aa:aa dev vxlan.calico nud permanent",
		"bridge fdb del 66:09:08:07:06:05 dev vxlan.calico self",
		"bridge fdb replace 66:09:08:07:06:05 dst 10.0.0.3 dev vxlan.calico self permanent",
		"ip addr del 192.168.1.0/32 dev vxlan.calico",
		"ip addr add 192.168.55.5/32 dev vxlan.calico",
		"ip link set vxlan.calico mtu 1200",
		"ip link set vxlan.calico down",
		"ip neigh flush dev vxlan.calico nud all",
		"bridge fdb show dev vxlan.calico | while read mac rest; do bridge fdb del $mac dev vxlan.calico; done",
		"ip link del vxlan.calico; ip link add vxlan.calico type vxlan id 7 dstport 9999 local 10.0.0.1 dev eth0",
		"ip link del vxlan.calico; ip link add vxlan.calico type bridge",
		"ip link del eth0; ip link add eth0 type veth peer name far; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; ip link set far up",
	} {
		// The subscription may not be open yet for the first one: break it until it is heard.
		require.Eventually(t, func() bool {
			_, _ = ns.Try(broken)
			select {
			case <-woken:
				return true
			case <-time.After(200 * time.Millisecond):
				require.NoError(t, d.Apply(context.Background()))
				return false
			}
		}, 10*time.Second, time.Millisecond, broken)
		require.Eventually(t, func() bool {
			require.NoError(t, d.Apply(context.Background()))
			out, _ := ns.Try("ip -d link show vxlan.calico; ip -4 addr show vxlan.calico; ip neigh show dev vxlan.calico; bridge fdb show dev vxlan.calico")
			return wholeText(out)
		}, 5*time.Second, 10*time.Millisecond, broken)
		requireWhole(t, ns)
	}
}

func wholeText(out string) bool {
	for _, want := range []string{
		"mtu 1450", ",UP", "inet 192.168.1.0/32", "192.168.2.0 lladdr 66:09:08:07:06:05 PERMANENT",
		"66:09:08:07:06:05 dst 10.0.0.2 self permanent",
	} {
		if !strings.Contains(out, want) {
			return false
		}
	}
	return !strings.Contains(out, "192.168.55.5")
}
