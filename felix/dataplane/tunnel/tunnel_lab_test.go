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
	var neighbors desired.Delta[desired.NeighborKey, desired.MAC]
	var fdb desired.Delta[desired.FDBKey, netip.Addr]
	vxlans.Put(v.Name, v)
	neighbors.Put(desired.NeighborKey{Link: device.Name, Addr: netip.MustParseAddr("192.168.2.0")}, remoteMAC)
	fdb.Put(desired.FDBKey{Link: device.Name, MAC: remoteMAC}, netip.MustParseAddr("10.0.0.2"))
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

// A device of another type with the name of ours is left alone, with what is on it, and named. When its owner gives the name
// back, whether or not the device goes, ours is made.
func TestAForeignDeviceIsLeftAndNamed(t *testing.T) {
	for name, c := range map[string]struct{ add, kind, free string }{
		"bridge":         {"ip link add vxlan.calico type bridge; ip link set vxlan.calico up", "bridge", "ip link del vxlan.calico"},
		"veth, renamed":  {"ip link add vxlan.calico type veth peer name other", "veth", "ip link set vxlan.calico name mine"},
		"in ours' place": {"ip link del vxlan.calico; ip link add vxlan.calico type bridge", "bridge", "ip link del vxlan.calico"},
	} {
		t.Run(name, func(t *testing.T) {
			ns, d := start(t)
			if name == "in ours' place" {
				require.NoError(t, d.Apply(context.Background()))
			}
			ns.Run(t, c.add)
			ns.Run(t, `ip addr add 192.168.77.7/32 dev vxlan.calico
				ip neigh add 192.168.9.9 lladdr 66:00:00:00:00:01 dev vxlan.calico nud permanent`)
			d.Resync()
			show := "ip -o link show vxlan.calico | cut -d: -f1,2; ip -o -4 addr show vxlan.calico; ip neigh show dev vxlan.calico nud permanent"
			before, writes := ns.Run(t, show), d.Writes()
			for range 3 {
				err := d.Apply(context.Background())
				require.ErrorContains(t, err, "link vxlan.calico: somebody else's device vxlan.calico has the name: it is of type "+c.kind)
				require.ErrorContains(t, err, "set vxlanMode to Never")
			}
			require.Equal(t, writes, d.Writes())
			require.Equal(t, before, ns.Run(t, show))
			for _, e := range d.Entries() {
				require.Empty(t, e.Actual, "nothing of that is ours")
			}

			wakes := make(chan dataplane.Drift, 64)
			watch(t, ns, d, wakes)
			hears(t, ns, wakes, "ip link set eth0 alias parent") // of a device that one waits for
			ns.Run(t, c.free)
			requireHeard(t, wakes, "of somebody else")
			require.NoError(t, d.Apply(context.Background()))
			requireWhole(t, ns)
		})
	}
}

// Ours under another name takes the packets that are for ours: that is said when it is renamed, and it is not made twice.
func TestOursRenamedIsNoticed(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	wakes := make(chan dataplane.Drift, 64)
	watch(t, ns, d, wakes)
	hears(t, ns, wakes, "ip addr replace 192.168.55.5/32 dev vxlan.calico")
	ns.Run(t, "ip link set vxlan.calico down; ip link set vxlan.calico name mine")
	requireHeard(t, wakes, "renamed to mine")
	require.ErrorContains(t, d.Apply(context.Background()), "the device mine has VNI 4096 on port 4789 already")
	ns.Run(t, "ip link del mine")
	require.NoError(t, d.Apply(context.Background()))
	requireWhole(t, ns)
}

// A device is made anew, or put right, three times at once if others keep changing it, then ever later; what felix itself is told
// to change is changed at once.
func TestFightsEnd(t *testing.T) {
	for name, c := range map[string]struct{ damage, would string }{
		"VNI":     {"ip link del vxlan.calico; ip link add vxlan.calico type vxlan id 7 dstport 9999 local 10.0.0.1 dev eth0 nolearning", "make it anew with VNI 4096, port 4789"},
		"MAC":     {"ip link set vxlan.calico address 02:00:00:00:00:01", "make it anew"},
		"MTU":     {"ip link set vxlan.calico mtu 1300", "set MTU 1450"},
		"down":    {"ip link set vxlan.calico down", "set up"},
		"address": {"ip addr add 192.168.77.7/32 dev vxlan.calico", "remove address 192.168.77.7/32"},
	} {
		t.Run(name, func(t *testing.T) {
			ns, d := start(t)
			require.NoError(t, d.Apply(context.Background()))
			show := `ip -d -o link show vxlan.calico | grep -o 'mtu [0-9]*\|[<,]UP[,>]\|vxlan id [0-9]*\|ether [0-9a-f:]*'; ip -o -4 addr show vxlan.calico`
			var damaged string
			var err error
			for tries := range 9 { // more than three on a machine so slow that felix is over its first pauses
				ns.Run(t, c.damage)
				damaged = ns.Run(t, show)
				d.Resync()
				if err = d.Apply(context.Background()); tries >= 3 && err != nil {
					break
				}
				require.NoError(t, err)
				requireWhole(t, ns)
			}
			require.ErrorContains(t, err, "link vxlan.calico: somebody else keeps undoing what felix does")
			require.ErrorContains(t, err, "it would "+c.would)
			require.Equal(t, damaged, ns.Run(t, show))

			otherwise := device
			otherwise.MTU = 1400
			tell(d, otherwise)
			require.NoError(t, d.Apply(context.Background()))
			require.Contains(t, ns.Run(t, "ip link show vxlan.calico"), "mtu 1400")
			tell(d, device)
			require.NoError(t, d.Apply(context.Background()))
			requireWhole(t, ns)
			ns.Run(t, "ip link del vxlan.calico")
			d.Resync()
			require.NoError(t, d.Apply(context.Background()), "what is gone is made, however often")
			requireWhole(t, ns)
		})
	}
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

// patience is for a machine on which much else runs.
const patience = 30 * time.Second

// watch has a driver follow its namespace until the test ends.
func watch(t *testing.T, ns *labtest.Namespace, d *tunnel.Driver, woken chan<- dataplane.Drift) {
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
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
}

// hears repeats something that the driver must notice, until the subscription is open.
func hears(t *testing.T, ns *labtest.Namespace, woken <-chan dataplane.Drift, command string) {
	t.Helper()
	require.Eventually(t, func() bool {
		ns.Run(t, command)
		select {
		case <-woken:
			return true
		case <-time.After(200 * time.Millisecond):
			return false
		}
	}, patience, time.Millisecond)
}

func requireHeard(t *testing.T, woken <-chan dataplane.Drift, what string) {
	t.Helper()
	require.Eventually(t, func() bool {
		select {
		case x := <-woken:
			return strings.Contains(x.What, what)
		default:
			return false
		}
	}, patience, time.Millisecond)
}

// Whatever is broken by hand wakes the driver, and its Apply mends it.
func TestDriftIsRepaired(t *testing.T) {
	ns, d := start(t)
	require.NoError(t, d.Apply(context.Background()))
	woken := make(chan dataplane.Drift, 64)
	watch(t, ns, d, woken)
	hears(t, ns, woken, "ip addr replace 192.168.55.5/32 dev vxlan.calico")
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
		"ip link del eth0; ip link add eth0 type veth peer name far; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; ip link set far up",
	} {
		for len(woken) > 0 {
			<-woken
		}
		_, _ = ns.Try(broken) // once: what is broken again and again is not repaired for ever
		select {
		case <-woken:
		case <-time.After(patience):
			require.Fail(t, "nobody woke", broken)
		}
		require.Eventually(t, func() bool {
			require.NoError(t, d.Apply(context.Background()))
			out, _ := ns.Try("ip -d link show vxlan.calico; ip -4 addr show vxlan.calico; ip neigh show dev vxlan.calico; bridge fdb show dev vxlan.calico")
			return wholeText(out)
		}, patience, 10*time.Millisecond, broken)
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
