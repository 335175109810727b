package nftables

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// What is kept of the devices' chains from one time to the next is what is made anew for the workloads as they are.
func TestGuardsFollowTheirWorkloads(t *testing.T) {
	d := unconnected()
	workload := func(last byte) desired.Workload {
		return desired.Workload{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, last})}}
	}
	agree := func(devices ...string) {
		t.Helper()
		want := map[string]string{refused: chain{rules: refusals()}.String()}
		for _, name := range devices {
			want[guardPrefix+name] = guard(name, d.model.Workloads[name]).String()
		}
		got := map[string]string{}
		for name, c := range d.guards.wanted(d.model, true) {
			got[name] = c.String()
		}
		require.Equal(t, want, got)
		require.ElementsMatch(t, devices, slices.Collect(maps.Keys(d.guards.made)), "nothing is kept of devices that are gone")
	}
	d.guards.links.On(unix.RTM_NEWLINK, device(7, "cali2", true))
	d.guards.links.On(unix.RTM_NEWLINK, device(8, "cali3", false)) // is being made
	c := desired.FirewallDelta{Settings: &desired.Settings{WorkloadPrefixes: []string{"cali"}}}
	c.Workloads.Put("cali1", workload(1))
	c.Workloads.Put("cali2", workload(2))
	d.Update(c)
	agree("cali1", "cali2")
	agree("cali1", "cali2")

	c = desired.FirewallDelta{}
	c.Workloads.Put("cali1", workload(9))
	c.Workloads.Remove("cali2")
	d.Update(c)
	agree("cali1", "cali2") // the device is still there
	c = desired.FirewallDelta{}
	c.Workloads.Put("cali2", workload(3))
	d.Update(c)
	agree("cali1", "cali2")
	c = desired.FirewallDelta{}
	c.Workloads.Remove("cali1")
	d.Update(c)
	agree("cali2")
}

// device is what the kernel says of one: struct ifinfomsg, and its name.
func device(index uint32, name string, up bool) []byte {
	flags := uint32(0)
	if up {
		flags = unix.IFF_UP
	}
	ne := binary.NativeEndian
	out := ne.AppendUint32(ne.AppendUint32(ne.AppendUint32(make([]byte, 4), index), flags), 0)
	return nlsock.AttrString(out, unix.IFLA_IFNAME, name)
}

// A pod's device comes down, is set up when its workload is programmed, and goes: none of it asks for anything that is not due anyway.
func TestDevicesThatComeAndGo(t *testing.T) {
	d := unconnected()
	g := d.guards
	g.stale = false // as if all was read
	says := func(kind uint16, index uint32, name string, up bool) bool {
		return d.onDevice(nlsock.Event{Kind: kind, Body: device(index, name, up)})
	}
	settings := desired.FirewallDelta{Settings: &desired.Settings{WorkloadPrefixes: []string{"cali"}}}
	d.Update(settings)
	require.False(t, says(unix.RTM_NEWLINK, 6, "eth0", true))
	require.False(t, says(unix.RTM_NEWLINK, 7, "cali1", false), "nothing comes in by it")
	require.False(t, g.dirty, "so nobody need wait for it")

	c := desired.FirewallDelta{}
	c.Workloads.Put("cali1", desired.Workload{})
	d.Update(c)
	require.False(t, says(unix.RTM_NEWLINK, 7, "cali1", true), "its guard is due")
	g.missing = true
	require.True(t, says(unix.RTM_NEWLINK, 8, "cali1", false), "the kernel refused its guard as long as it was not there")
	g.missing = false
	g.chains.SetActual(guardPrefix+"cali1", chain{})
	require.False(t, says(unix.RTM_NEWLINK, 8, "cali1", true))
	require.False(t, g.stale)

	require.True(t, says(unix.RTM_DELLINK, 8, "cali1", true))
	require.False(t, g.stale)
	require.True(t, says(unix.RTM_NEWLINK, 9, "cali1", false), "its chain may have gone with the one before")
	require.True(t, g.stale)

	require.False(t, says(unix.RTM_NEWLINK, 10, "cali2", false))
	require.True(t, says(unix.RTM_NEWLINK, 10, "cali2", true), "somebody set up what nobody knows")
	require.True(t, g.dirty)
	require.False(t, says(unix.RTM_DELLINK, 10, "cali2", true), "it went before it had a guard")
}
