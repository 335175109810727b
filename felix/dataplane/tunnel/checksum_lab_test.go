//go:build lab

package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// The probe sees a wrong checksum where there is one: a wire that leaves checksums undone.
func TestTheProbeTellsRightFromWrong(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the probe makes a network namespace and needs root: run it as root, or under unshare -Urnm")
	}
	var wrong *ChecksumError
	require.ErrorAs(t, probeChecksums(true), &wrong)
	require.NotEmpty(t, wrong.What)
	begin := time.Now()
	require.NoError(t, ProbeChecksums(), "this kernel gets them right")
	t.Logf("the probe took %s", time.Since(begin).Round(time.Millisecond))
}

func TestTheProbeLeavesNothingBehind(t *testing.T) {
	node := labtest.Enter(t)
	before := node.Run(t, "ip -o link; ip neigh; ip route")
	require.NoError(t, ProbeChecksums())
	require.Equal(t, before, node.Run(t, "ip -o link; ip neigh; ip route"))
}

// wanted is a VXLAN device over eth0.
func wanted(o desired.Offload) desired.VXLAN {
	return desired.VXLAN{
		Name: desired.VXLANDevice4, VNI: desired.DefaultVXLANVNI, Port: desired.DefaultVXLANPort, Local: netip.MustParseAddr("10.30.0.206"),
		Parent: "eth0", MAC: desired.MAC{0x66, 1, 2, 3, 4, 5}, MTU: 1450, Address: netip.MustParseAddr("10.77.1.1"), Offload: o,
	}
}

// What the probe finds decides; what the user says wins over it; what others switch is switched back.
func TestOffloadIsAsFoundUnlessSomeoneChose(t *testing.T) {
	node := labtest.Enter(t)
	node.Run(t, "ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add 10.30.0.206/24 dev eth0")
	d, err := New()
	require.NoError(t, err)
	defer d.Close()
	var found error // what the probe finds
	d.offload.probe = func() error { return found }
	program := func(o desired.Offload) {
		t.Helper()
		var change desired.Delta[string, desired.VXLAN]
		change.Put(desired.VXLANDevice4, wanted(o))
		d.Update(change, desired.Delta[desired.NeighborKey, desired.MAC]{}, desired.Delta[desired.FDBKey, netip.Addr]{})
		d.Resync()
		require.NoError(t, d.Apply(context.Background()))
	}
	is := func(want string) {
		t.Helper()
		require.Equal(t, want, strings.TrimSpace(node.Run(t, "ethtool -k vxlan.calico | sed -n 's/^tx-checksumming: //p'")))
	}
	program(desired.OffloadAuto)
	is("on")
	index := node.Run(t, "ip -o link show vxlan.calico | cut -d: -f1")
	program(desired.OffloadOff)
	is("off")
	program(desired.OffloadOn)
	is("on")
	found = &ChecksumError{What: "outer UDP"}
	program(desired.OffloadAuto)
	is("off")
	program(desired.OffloadOn)
	is("on")
	found = errors.New("no namespaces here")
	program(desired.OffloadAuto)
	is("on")
	node.Run(t, "ethtool -K vxlan.calico tx off")
	program(desired.OffloadAuto)
	is("on")
	require.Equal(t, index, node.Run(t, "ip -o link show vxlan.calico | cut -d: -f1"), "the device was never made anew")
	writes := d.Writes()
	d.Resync()
	require.NoError(t, d.Apply(context.Background()))
	require.Equal(t, writes, d.Writes())
}

// Packets that really leave a device as the driver makes it have the checksums that the probe promised.
func TestTheDecisionIsWhatACaptureSees(t *testing.T) {
	node := labtest.Enter(t)
	node.Run(t, `ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up; ip addr add 10.30.0.206/24 dev eth0
		ethtool -K eth0 tx off >/dev/null
		ip neigh add 10.30.0.56 lladdr $(ip -br link show far | awk '{print $3}') dev eth0`)
	for _, choice := range []desired.Offload{desired.OffloadAuto, desired.OffloadOn, desired.OffloadOff} {
		d, err := New()
		require.NoError(t, err)
		var devices desired.Delta[string, desired.VXLAN]
		var neighbors desired.Delta[desired.NeighborKey, desired.MAC]
		var fdb desired.Delta[desired.FDBKey, netip.Addr]
		mac := desired.MAC{0x66, 9, 9, 9, 9, 9}
		devices.Put(desired.VXLANDevice4, wanted(choice))
		neighbors.Put(desired.NeighborKey{Link: desired.VXLANDevice4, Addr: netip.MustParseAddr("10.77.2.1")}, mac)
		fdb.Put(desired.FDBKey{Link: desired.VXLANDevice4, MAC: mac}, netip.MustParseAddr("10.30.0.56"))
		d.Update(devices, neighbors, fdb)
		require.NoError(t, d.Apply(context.Background()))
		node.Run(t, "ip route replace 10.77.2.0/26 via 10.77.2.1 dev vxlan.calico onlink")

		far, err := d.handle.LinkByName("far")
		require.NoError(t, err)
		capture, err := capturing(far.Attrs().Index)
		require.NoError(t, err)
		require.NoError(t, sendSYN(net.IPv4(10, 77, 2, 9)))
		require.NoError(t, judge(capture), "offload %d", choice)
		require.NoError(t, unix.Close(capture))
		require.NoError(t, d.Close())
	}
	runtime.KeepAlive(node)
}
