package audit_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/audit"
	"github.com/muslin-net/muslin/ipam/block"
)

var start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

// facts is a cluster in which all is well: node a with a tunnel and a warm address, and a pod on it that has addresses of
// both families.
func facts() *audit.Facts {
	f := &audit.Facts{}
	for name, cidr := range map[string]string{"p4": "10.0.0.0/24", "p6": "fd00::/64"} {
		p := &api.IPPool{}
		p.Name, p.Spec.CIDR = name, cidr
		f.Pools = append(f.Pools, p)
	}
	n := &api.Node{}
	n.Name = "a"
	n.Spec.BGP = &api.NodeBGPSpec{IPv4IPIPTunnelAddr: "10.0.0.1"}
	f.Nodes = append(f.Nodes, n)
	addBlock(f, "10.0.0.0/29", "host:a")
	addBlock(f, "fd00::/125", "host:a")
	give(f, "10.0.0.1", "ipip-tunnel-addr-a", "node=a", "type=ipipTunnelAddress")
	give(f, "10.0.0.2", "net.1", "node=a", "pod=web", "namespace=shop")
	give(f, "fd00::2", "net.1", "node=a", "pod=web", "namespace=shop")
	give(f, "10.0.0.3", "warm-a-1", "node=a", "type=warmPool")
	addEndpoint(f, "web", "10.0.0.2/32", "fd00::2/128")
	return f
}

func addBlock(f *audit.Facts, cidr, affinity string) {
	p := netip.MustParsePrefix(cidr)
	b := block.New(p, affinity, start)
	f.Blocks = append(f.Blocks, b.IPAMBlock)
	kind, node, _ := strings.Cut(affinity, ":")
	f.Affinities = append(f.Affinities, api.NewBlockAffinity(api.AffinityType(kind), node, p, api.AffinityConfirmed))
}

// give gives an address out, and counts it for its handle.
func give(f *audit.Facts, addr, handle string, attributes ...string) {
	owner := block.Owner{Handle: handle, Attributes: map[string]string{}}
	for _, text := range attributes {
		k, v, _ := strings.Cut(text, "=")
		owner.Attributes[k] = v
	}
	a := netip.MustParseAddr(addr)
	for _, obj := range f.Blocks {
		b, err := block.Of(obj)
		if err != nil || !b.CIDR().Contains(a) {
			continue
		}
		if err := b.TakeAddr(a, owner); err != nil {
			panic(err)
		}
		if handle != "" {
			count(f, handle, b.CIDR().String())
		}
	}
}

func count(f *audit.Facts, handle, cidr string) {
	for _, h := range f.Handles {
		if h.Name == handle {
			h.Spec.Block[cidr]++
			return
		}
	}
	h := api.NewIPAMHandle(handle)
	h.Spec.Block[cidr]++
	f.Handles = append(f.Handles, h)
}

func addEndpoint(f *audit.Facts, name string, networks ...string) {
	ep := &api.WorkloadEndpoint{}
	ep.Name, ep.Namespace, ep.Spec.Node, ep.Spec.IPNetworks = name, "shop", "a", networks
	f.Endpoints = append(f.Endpoints, ep)
}

func giveService(f *audit.Facts, addr, name string) {
	give(f, addr, "lb-"+name, "namespace=shop", "service="+name)
}

func addService(f *audit.Facts, name string, addrs ...string) {
	s := audit.Service{Namespace: "shop", Name: name}
	for _, a := range addrs {
		s.Addrs = append(s.Addrs, netip.MustParseAddr(a))
	}
	f.Services, f.KnowsServices = append(f.Services, s), true
}

// blockAt is the block with an address.
func blockAt(f *audit.Facts, addr string) *api.IPAMBlock {
	for _, b := range f.Blocks {
		if netip.MustParsePrefix(b.Spec.CIDR).Contains(netip.MustParseAddr(addr)) {
			return b
		}
	}
	return nil
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(f *audit.Facts)
		want  []string // kind, subject and text of each problem
	}{
		"all is well": {func(*audit.Facts) {}, nil},
		"a pod is gone": {func(f *audit.Facts) { f.Endpoints = nil }, []string{
			"leaked 10.0.0.2 leaked; attrs Main:net.1 Extra:namespace=shop,node=a,pod=web",
			"leaked fd00::2 leaked; attrs Main:net.1 Extra:namespace=shop,node=a,pod=web",
		}},
		"a node is gone": {func(f *audit.Facts) { f.Nodes = nil }, []string{
			"leaked 10.0.0.1 leaked; attrs Main:ipip-tunnel-addr-a Extra:node=a,type=ipipTunnelAddress",
			"leaked 10.0.0.3 leaked; attrs Main:warm-a-1 Extra:node=a,type=warmPool",
		}},
		"nobody was asked for Services": {func(f *audit.Facts) { giveService(f, "10.0.0.4", "gone") }, nil},
		"a Service with its address": {func(f *audit.Facts) {
			giveService(f, "10.0.0.4", "web")
			addService(f, "web", "10.0.0.4")
		}, nil},
		"a Service that does not show its address yet": {func(f *audit.Facts) {
			giveService(f, "10.0.0.4", "web")
			addService(f, "web")
		}, nil},
		"a Service is gone": {func(f *audit.Facts) {
			giveService(f, "10.0.0.4", "gone")
			addService(f, "another")
		}, []string{"leaked 10.0.0.4 leaked; attrs Main:lb-gone Extra:namespace=shop,service=gone"}},
		"Services with addresses of a pool and of others": {func(f *audit.Facts) {
			addService(f, "web", "10.0.0.5", "192.0.2.1")
		}, []string{"notAllocated 10.0.0.5 in use by Service(shop/web) and in active IPAM pool but has no IPAM allocation."}},
		"two Services with one address": {func(f *audit.Facts) {
			giveService(f, "10.0.0.4", "web")
			addService(f, "web", "10.0.0.4")
			addService(f, "twin", "10.0.0.4")
		}, []string{"shared 10.0.0.4 has multiple owners: Service(shop/web), Service(shop/twin)"}},
		"in use, not given out": {func(f *audit.Facts) { addEndpoint(f, "stray", "10.0.0.5/32", "192.0.2.1/32") }, []string{
			"notAllocated 10.0.0.5 in use by Workload(shop/stray) and in active IPAM pool but has no IPAM allocation.",
			"notInPool 192.0.2.1 in use by Workload(shop/stray) is not in any active IP pool.",
		}},
		"in a pool that is disabled": {func(f *audit.Facts) {
			for _, p := range f.Pools {
				p.Spec.Disabled = true
			}
			addEndpoint(f, "stray", "10.0.0.5/32")
		}, []string{"notInPool 10.0.0.5 in use by Workload(shop/stray) is not in any active IP pool."}},
		"two pods with one address": {func(f *audit.Facts) { addEndpoint(f, "twin", "10.0.0.2/32") }, []string{
			"shared 10.0.0.2 has multiple owners: Workload(shop/twin), Workload(shop/web)",
		}},
		"a pod with a tunnel's": {func(f *audit.Facts) { addEndpoint(f, "twin", "10.0.0.1/32") }, []string{
			"shared 10.0.0.1 has multiple owners: Node(a) IP-in-IP tunnel, Workload(shop/twin)",
		}},
		"given out twice": {func(f *audit.Facts) {
			addBlock(f, "10.0.0.2/31", "host:a")
			small, err := block.Of(f.Blocks[2])
			if err != nil {
				panic(err)
			}
			if err := small.TakeAddr(netip.MustParseAddr("10.0.0.2"), block.Owner{Handle: "net.1", Attributes: map[string]string{"node": "a"}}); err != nil {
				panic(err)
			}
			count(f, "net.1", "10.0.0.2/31")
		}, []string{"twice 10.0.0.2 given out of two blocks, 10.0.0.0/29 and 10.0.0.2/31"}},
		"handles": {func(f *audit.Facts) {
			f.Handles = append(f.Handles, api.NewIPAMHandle("net.old"))
			for _, h := range f.Handles {
				delete(h.Spec.Block, "fd00::/125")
			}
			give(f, "10.0.0.6", "net.new", "node=a")
			f.Handles = f.Handles[:len(f.Handles)-1]
			addEndpoint(f, "new", "10.0.0.6/32")
		}, []string{
			"handleTooLow net.1 counts 0 addresses of block fd00::/125, which has 1 of it.",
			"orphanHandle net.old doesn't have any active IPs.",
			"missingHandle net.new is in use in a block but doesn't exist.",
		}},
		"a block that contradicts itself": {func(f *audit.Facts) {
			b := blockAt(f, "fd00::2")
			b.Spec.Unallocated = append(b.Spec.Unallocated, 2)
		}, []string{
			"invalidBlock fd00::/125 block fd00::/125 is damaged: ordinal 2 is both allocated and in spec.unallocated; release its addresses, then delete it",
			"notAllocated fd00::2 in use by Workload(shop/web) and in active IPAM pool but has no IPAM allocation.",
			"brokenAffinity fd00::/125 is claimed by host:a, but there is no such block.",
		}},
		"affinities": {func(f *audit.Facts) {
			addBlock(f, "10.0.0.8/29", "host:b")
			addBlock(f, "10.0.0.16/29", "host:b")
			f.Affinities[2] = api.NewBlockAffinity(api.AffinityHost, "a", netip.MustParsePrefix("10.0.0.8/29"), api.AffinityConfirmed)
			f.Affinities[3].Spec.State = api.AffinityPending
			f.Blocks = f.Blocks[:3] // a claim that is under way has no block yet
		}, []string{
			"brokenAffinity 10.0.0.8/29 is claimed by host:a, but the block belongs to host:b.",
			"brokenAffinity 10.0.0.8/29 belongs to host:b, which has no affinity to it.",
		}},
		"not looked for": {func(f *audit.Facts) {
			give(f, "10.0.0.4", "windows-reserved-ipam-handle")
			f.Handles = f.Handles[:len(f.Handles)-1]
			give(f, "10.0.0.5", "lb-x", "service=web", "namespace=shop")
			give(f, "10.0.0.6", "net.vmi.shop.vm", "vmi-name=vm", "namespace=shop", "node=a")
		}, nil},
		"cooling down": {func(f *audit.Facts) {
			b, err := block.Of(blockAt(f, "10.0.0.2"))
			if err != nil {
				panic(err)
			}
			give(f, "10.0.0.7", "net.7", "node=a")
			f.Handles = f.Handles[:len(f.Handles)-1]
			if _, err := b.Release([]block.Release{{Addr: netip.MustParseAddr("10.0.0.7")}}, start, time.Hour); err != nil {
				panic(err)
			}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := facts()
			tc.spoil(f)
			var got []string
			for _, p := range audit.Check(*f).Problems {
				got = append(got, string(p.Kind)+" "+p.Subject+" "+p.Text)
			}
			require.Equal(t, tc.want, got)
		})
	}
}

func TestReport(t *testing.T) {
	f := facts()
	f.Endpoints = nil
	f.Handles = append(f.Handles, api.NewIPAMHandle("net.old"))
	f.Handles[len(f.Handles)-1].ResourceVersion = "17"
	info := &api.ClusterInformation{}
	info.ResourceVersion, info.Spec.ClusterGUID, info.Spec.DatastoreReady = "5", "guid", new(false)
	r := audit.NewReport("v1", info, *f, audit.Check(*f))
	require.True(t, r.DatastoreLocked)
	require.Equal(t, "5", r.ClusterInfoRevision)
	require.Equal(t, []audit.ReportHandle{{ID: "net.old", Revision: "17"}}, r.LeakedHandles)
	pod := r.Allocations["10.0.0.2"][0]
	require.False(t, pod.InUse)
	require.Equal(t, "web", pod.Pod)
	require.True(t, r.Allocations["10.0.0.3"][0].InUse)
	require.Equal(t, []string{"Node(a) warm pool"}, r.Allocations["10.0.0.3"][0].Owners)

	lost := func(reports ...audit.Report) (out []string, handles []audit.ReportHandle) {
		addrs, handles, err := audit.Lost(reports...)
		require.NoError(t, err)
		for _, a := range addrs {
			out = append(out, a.Addr.String()+" "+a.Handle)
			require.NotNil(t, a.Sequence)
		}
		return out, handles
	}
	addrs, handles := lost(r, r)
	require.Equal(t, []string{"10.0.0.2 net.1", "fd00::2 net.1"}, addrs)
	require.Equal(t, r.LeakedHandles, handles)

	// In the second report one address was given out anew, the other is in use, and the handle has changed.
	second := facts()
	second.Endpoints = nil
	addEndpoint(second, "web", "fd00::2/128")
	b, err := block.Of(blockAt(second, "10.0.0.2"))
	require.NoError(t, err)
	_, err = b.Release([]block.Release{{Addr: netip.MustParseAddr("10.0.0.2")}}, start, 0)
	require.NoError(t, err)
	b.Written()
	require.NoError(t, b.TakeAddr(netip.MustParseAddr("10.0.0.2"), block.Owner{Handle: "net.1", Attributes: map[string]string{"node": "a"}}))
	second.Handles = append(second.Handles, api.NewIPAMHandle("net.old"))
	second.Handles[len(second.Handles)-1].ResourceVersion = "18"
	addrs, handles = lost(r, audit.NewReport("v1", info, *second, audit.Check(*second)))
	require.Empty(t, addrs)
	require.Empty(t, handles)

	_, _, err = audit.Lost()
	require.ErrorContains(t, err, "no report is given")
	bad := audit.Report{Allocations: map[string][]audit.ReportAllocation{"x": {{IP: "x", SequenceNumber: new(uint64(1))}}}}
	_, _, err = audit.Lost(bad)
	require.ErrorContains(t, err, `the report names "x", which is no address`)
}
