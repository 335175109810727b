package server_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// What typha says of a pod beats what the call says, for that very pod only.
func TestWhatTyphaSaysThatAPodAsksForCounts(t *testing.T) {
	w := newWorld()
	w.asked = map[string]*view.AddressRequest{"uid-1": {Fixed: []netip.Addr{netip.MustParseAddr("10.1.2.3")}, MAC: "02:00:00:00:00:07"}}
	s := w.server()
	req := pod("web-0", "c1")
	req.Args["K8S_POD_UID"] = "uid-1"
	resp := added(t, s, req)
	require.Equal(t, [][]byte{{10, 1, 2, 3}}, resp.GetAddresses())
	require.Equal(t, "02:00:00:00:00:07", resp.GetMac())

	other := pod("web-1", "c2")
	other.Args["K8S_POD_UID"] = "uid-2"
	require.Len(t, added(t, s, other).GetAddresses(), 2)
}

// What the network does not allow, or what makes no sense, is refused, and nothing is left.
func TestWhatThePodCannotHaveIsRefused(t *testing.T) {
	address := []netip.Addr{netip.MustParseAddr("10.1.2.3")}
	for says, asked := range map[string]*view.AddressRequest{
		"annotation hwAddr is wrong":       {Wrong: "annotation hwAddr is wrong"},
		"feature_control.ip_addrs_no_ipam": {Unmanaged: address},
		"feature_control.floating_ips":     {Floating: address},
	} {
		w := newWorld()
		w.asked = map[string]*view.AddressRequest{"uid-1": asked}
		req := pod("web-0", "c1")
		req.Args["K8S_POD_UID"] = "uid-1"
		_, err := w.server().Add(t.Context(), req)
		require.ErrorContains(t, err, says)
		require.Empty(t, w.leftovers())
	}
	w := newWorld()
	w.asked = map[string]*view.AddressRequest{"uid-1": {Unmanaged: address}}
	req := pod("web-0", "c1")
	req.Args["K8S_POD_UID"], req.Config.IpAddrsNoIpam = "uid-1", true
	require.Equal(t, [][]byte{{10, 1, 2, 3}}, added(t, w.server(), req).GetAddresses())

	w = newWorld()
	w.asked = map[string]*view.AddressRequest{"uid-1": {Floating: address}}
	req = pod("web-0", "c1")
	req.Args["K8S_POD_UID"], req.Config.FloatingIps = "uid-1", true
	require.Equal(t, address, w.records[added(t, w.server(), req).GetHostInterface()].Floating)

	w = newWorld()
	w.asked = map[string]*view.AddressRequest{"uid-1": {Families: []int{4}}}
	req = pod("web-0", "c1")
	req.Args["K8S_POD_UID"] = "uid-1"
	require.Len(t, added(t, w.server(), req).GetAddresses(), 1)
}

// Both fixed addresses or neither.
func TestFixedAddressesOfBothFamilies(t *testing.T) {
	four, six := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::7")
	w := newWorld()
	req := pod("web-0", "c1")
	req.Config.Fixed = [][]byte{four.AsSlice(), six.AsSlice()}
	require.Equal(t, [][]byte{four.AsSlice(), six.AsSlice()}, added(t, w.server(), req).GetAddresses())

	w = newWorld()
	w.failAt = 3 // the second Assign
	_, err := w.server().Add(t.Context(), req)
	require.ErrorContains(t, err, errBroken.Error())
	require.True(t, w.releases["net.c1"])
	require.Empty(t, w.leftovers())
}

func TestWhatTheCallAsksForIsKeptWithTheEndpoint(t *testing.T) {
	w := newWorld()
	req := pod("web-0", "c1")
	req.Config.NumQueues, req.Config.Routes, req.Config.AllowedSourcePrefixes = 4, []string{"10.0.0.0/8"}, []string{"10.9.0.0/16"}
	req.Config.Ingress, req.Config.Egress = &felixv1.Limit{Bandwidth: 1000, Burst: 2}, &felixv1.Limit{PacketRate: 3}
	e := w.records[added(t, w.server(), req).GetHostInterface()]
	require.Equal(t, 4, e.Queues)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, e.Routes)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, e.AllowedSources)
	require.Equal(t, &view.QoS{IngressBandwidth: 1000, IngressBurst: 2, EgressPacketRate: 3}, e.QoS)
}
