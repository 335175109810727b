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
	device := binary.NativeEndian.AppendUint32(make([]byte, 4), 7) // struct ifinfomsg, with an index
	device = nlsock.AttrString(append(device, make([]byte, unix.SizeofIfInfomsg-len(device))...), unix.IFLA_IFNAME, "cali2")
	d.guards.links.On(unix.RTM_NEWLINK, device)
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
