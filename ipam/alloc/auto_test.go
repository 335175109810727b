package alloc

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

func pools(names ...string) func(*Request) { return func(r *Request) { r.Pools = names } }
func labels(k, v string) func(*Request) {
	return func(r *Request) { r.NamespaceLabels = map[string]string{k: v} }
}
func use(u api.IPPoolUse) func(*Request) { return func(r *Request) { r.Use = u } }
func maxBlocks(n int) func(*Request)     { return func(r *Request) { r.MaxBlocks = n } }

func TestAutoAssignClaimsABlock(t *testing.T) {
	w := newWorld(t, aNode("node-a"), aPool("p", "192.168.0.0/16", 26))
	assert.Equal(t, []string{"192.168.174.128", "192.168.174.129"}, w.assign("node-a", 2))
	assert.Equal(t, map[string]string{"host/node-a/192.168.174.128/26": "confirmed"}, w.affinities())
	assert.Equal(t, map[string]map[string]int{"h-node-a": {"192.168.174.128/26": 2}}, w.handles())
	b := w.blocks()["192.168.174.128/26"]
	require.NotNil(t, b)
	assert.Equal(t, "host:node-a", *b.Spec.Affinity)
	assert.Equal(t, uint64(w.Now().UnixNano())+1, b.Spec.SequenceNumber)
	assert.Equal(t, map[string]uint64{"0": uint64(w.Now().UnixNano()), "1": uint64(w.Now().UnixNano())}, b.Spec.SequenceNumberForAllocation)

	assert.Equal(t, []string{"192.168.174.130"}, w.assign("node-a", 1), "the same block again")
	assert.Len(t, w.assign("node-a", 70), 70)
	assert.Contains(t, w.affinities(), "host/node-a/192.168.174.192/26", "then the next position")

	got, err := w.try("node-a", 1, func(r *Request) { r.Handle = ""; r.Attributes = nil })
	require.NoError(t, err)
	assert.Equal(t, prefix("192.168.174.201/26"), got.Addrs[0], "addresses carry the prefix length of their block")
	assert.Len(t, w.handles(), 1)
}

func TestChoiceOfPools(t *testing.T) {
	rackA := func(s *api.IPPoolSpec) { s.NodeSelector = "rack == 'a'" }
	prod := func(s *api.IPPoolSpec) { s.NamespaceSelector = "env == 'prod'" }
	notProd := func(s *api.IPPoolSpec) { s.NamespaceSelector = "env != 'prod'" }
	manual := func(s *api.IPPoolSpec) { m := api.AssignManual; s.AssignmentMode = &m }
	disabled := func(s *api.IPPoolSpec) { s.Disabled = true }
	tunnels := func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseTunnel} }
	balancers := func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseLoadBalancer} }
	p := func(n string, change ...func(*api.IPPoolSpec)) *api.IPPool {
		return aPool("pool-"+n, "10."+n+".0.0/30", 30, change...)
	}
	deleting := p("1")
	deleting.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	deleting2 := p("2")
	deleting2.DeletionTimestamp = deleting.DeletionTimestamp
	unfit := p("1")
	unfit.Status = &api.IPPoolStatus{Conditions: []metav1.Condition{{Type: api.ConditionAllocatable, Status: "False", Reason: api.ReasonCIDROverlap}}}
	for _, tc := range []struct {
		name   string
		pools  []api.Object
		change func(*Request)
		want   string // the address
		err    string
	}{
		{name: "name order", pools: []api.Object{p("2"), p("1")}, want: "10.1.0.0"},
		{name: "disabled", pools: []api.Object{p("1", disabled), p("2")}, want: "10.2.0.0"},
		{name: "being deleted", pools: []api.Object{deleting, p("2")}, want: "10.2.0.0"},
		{name: "not allocatable", pools: []api.Object{unfit, p("2")}, want: "10.2.0.0"},
		{name: "damaged", pools: []api.Object{aPool("pool-1", "nonsense", 26), aPool("pool-11", "10.1.0.0/30", 20), p("1", func(s *api.IPPoolSpec) { s.NodeSelector = "=" }), p("2")}, want: "10.2.0.0"},
		{name: "node selector", pools: []api.Object{p("1", func(s *api.IPPoolSpec) { s.NodeSelector = "rack == 'b'" }), p("2", rackA)}, want: "10.2.0.0"},
		{name: "namespace selector", pools: []api.Object{p("1", prod), p("2")}, want: "10.2.0.0"},
		{name: "namespace selector matches", pools: []api.Object{p("1", prod), p("2")}, change: labels("env", "prod"), want: "10.1.0.0"},
		{name: "no namespace has no labels", pools: []api.Object{p("1", notProd), p("2")}, want: "10.1.0.0"},
		{name: "manual", pools: []api.Object{p("1", manual), p("2")}, want: "10.2.0.0"},
		{name: "allowed uses", pools: []api.Object{p("1", tunnels), p("2")}, want: "10.2.0.0"},
		{name: "for tunnels", pools: []api.Object{p("1", tunnels), p("2")}, change: use(api.UseTunnel), want: "10.1.0.0"},
		{name: "unset uses are not for load balancers", pools: []api.Object{p("1"), p("2", balancers)}, change: use(api.UseLoadBalancer), want: "10.2.0.0"},
		{name: "by name", pools: []api.Object{p("1"), p("2")}, change: pools("pool-2"), want: "10.2.0.0"},
		{name: "by CIDR", pools: []api.Object{p("1"), p("2")}, change: pools("10.2.0.0/30"), want: "10.2.0.0"},
		{name: "request order", pools: []api.Object{p("1"), p("2")}, change: pools("pool-2", "pool-1"), want: "10.2.0.0"},
		{name: "asked for, whatever its selectors say", pools: []api.Object{p("1"), p("2", manual, prod, func(s *api.IPPoolSpec) { s.NodeSelector = "!all()" })}, change: pools("pool-2"), want: "10.2.0.0"},

		{name: "none", err: "cannot find a qualified ippool: there is no enabled IPv4 pool; create or enable one with calicoctl"},
		{name: "all disabled", pools: []api.Object{p("1", disabled), deleting2}, err: "there is no enabled IPv4 pool; create or enable one with calicoctl; passed over: pool-1 (10.1.0.0/30): it is disabled; pool-2 (10.2.0.0/30): it is being deleted"},
		{name: "all unfit", pools: []api.Object{unfit}, err: "pool-1 (10.1.0.0/30): it is not allocatable (CIDROverlap: )"},
		{name: "other family", pools: []api.Object{aPool("six", "fd00::/122", 122)}, err: "there is no enabled IPv4 pool"},
		{
			name: "none selects", pools: []api.Object{p("1", manual), p("2", prod), p("3", func(s *api.IPPoolSpec) { s.NodeSelector = "rack == 'b'" })},
			err: `cannot find a qualified ippool: no configured Calico pools for node node-a; passed over: ` +
				`pool-1 (10.1.0.0/30): its assignmentMode is Manual: it serves only who names it; ` +
				`pool-2 (10.2.0.0/30): its namespaceSelector env == "prod" does not match the namespace; ` +
				`pool-3 (10.3.0.0/30): its nodeSelector rack == "b" does not match the node`,
		},
		{name: "none for the use", pools: []api.Object{p("1", tunnels)}, err: "cannot find a qualified ippool, no pools match the required use (Workload); passed over: pool-1 (10.1.0.0/30): its allowedUses are [Tunnel]"},
		{name: "asked for, but not for the use", pools: []api.Object{p("1", tunnels)}, change: pools("pool-1"), err: "no pools match the required use (Workload)"},
		{name: "asked for, but missing", pools: []api.Object{p("1")}, change: pools("10.9.0.0/16"), err: "the given pool (10.9.0.0/16) does not exist, or is not enabled; the IPv4 pools are pool-1"},
		{name: "asked for, but disabled", pools: []api.Object{p("1"), p("2", disabled)}, change: pools("pool-2"), err: "the given pool (pool-2) does not exist, or is not enabled: it is disabled"},
		{name: "asked for, of the other family", pools: []api.Object{p("1"), aPool("six", "fd00::/122", 122)}, change: pools("fd00::/122"), err: "pool fd00::/122 was given for IPv4 addresses, but is of the other family"},
		{name: "no use", pools: []api.Object{p("1")}, change: use(""), err: "must specify the intended use when assigning an IP"},
		{name: "no node", pools: []api.Object{p("1")}, change: func(r *Request) { r.Node = "" }, err: "must specify the node"},
		{name: "unknown node", pools: []api.Object{p("1")}, change: func(r *Request) { r.Node = "ghost" }, err: "node ghost is not registered, so no pool can be chosen for it; start calico-node there"},
		{name: "no family", pools: []api.Object{p("1")}, change: func(r *Request) { r.Family = 5 }, err: "no such IP family: 5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, append(tc.pools, aNode("node-a", "rack=a"))...)
			if tc.change == nil {
				tc.change = func(*Request) {}
			}
			got, err := w.try("node-a", 1, tc.change)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				assert.Empty(t, w.blocks())
				return
			}
			require.NoError(t, err)
			assert.Equal(t, []string{tc.want}, texts(got.Addrs))
		})
	}
}

func TestReservedAddressesAreSkipped(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/29", 31), aReservation("10.0.0.0/31", "10.0.0.2", "nonsense", "10.0.0.4/31", "fd00::/8"))
	got, err := w.try("n", 8)
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"10.0.0.3", "10.0.0.6", "10.0.0.7"}, texts(got.Addrs))
	assert.EqualError(t, got.Shortfall(), "Assigned 3 out of 8 requested IPv4 addresses; No IPs available in pools: [10.0.0.0/29]; Pools tried: p (10.0.0.0/29): 0 of 8 addresses free, 3 in use, 5 reserved")
	assert.NotContains(t, w.blocks(), "10.0.0.0/31", "no block where everything is reserved")
	assert.NotContains(t, w.blocks(), "10.0.0.4/31")

	// A block of the node's that is reserved later is left alone.
	w.f.put(aReservation("10.0.0.0/8"))
	w.ReleaseByHandle(t.Context(), "h-n")
	got, err = w.try("n", 1)
	require.NoError(t, err)
	assert.Empty(t, got.Addrs)
}

func TestAllOfAWideIPv6PoolReserved(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "fd00::/64", 122), aReservation("fd00::/64"))
	got, err := w.try("n", 1, func(r *Request) { r.Family = 6 })
	require.NoError(t, err)
	assert.EqualError(t, got.Shortfall(), "Assigned 0 out of 1 requested IPv6 addresses; No IPs available in pools: [fd00::/64]; "+
		"Pools tried: p (fd00::/64): 0 of 18446744073709551616 addresses free, 0 in use, 18446744073709551616 reserved")
}

func TestBlockLimit(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/26", 31))
	got, err := w.try("n", 50)
	require.ErrorIs(t, err, ErrBlockLimit)
	require.Len(t, got.Addrs, 40, "20 blocks of two addresses each, and nothing borrowed")
	assert.EqualError(t, got.Shortfall(), "Assigned 40 out of 50 requested IPv4 addresses; Need to allocate an IPAM block but could not - limit of 20 blocks reached for this node; "+
		"Pools tried: p (10.0.0.0/26): 24 of 64 addresses free, 40 in use")

	for _, tc := range []struct{ request, config, want int }{{0, 3, 3}, {2, 0, 2}, {2, 3, 2}, {3, 2, 2}, {0, 0, 20}} {
		assert.Equal(t, tc.want, limit(tc.request, tc.config))
	}
	w = newWorld(t, aNode("n"), aPool("p", "10.0.0.0/26", 31), aPool("q", "10.0.1.0/26", 31), aConfig(func(s *api.IPAMConfigurationSpec) {
		s.StrictAffinity, s.MaxBlocksPerHost = true, 2
	}))
	w.assign("n", 4)
	got, err = w.try("n", 1)
	require.ErrorIs(t, err, ErrBlockLimit)
	assert.Empty(t, got.Addrs)
	assert.Len(t, w.assign("n", 1, pools("q")), 1, "the limit counts blocks of the chosen pools only")
	got, err = w.try("n", 3, pools("q"), maxBlocks(1))
	require.ErrorIs(t, err, ErrBlockLimit)
	assert.Len(t, got.Addrs, 1)
}

func TestNoAutomaticBlocks(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/29", 30))
	w.assign("n", 1)
	w.f.put(aConfig(func(s *api.IPAMConfigurationSpec) { s.StrictAffinity, s.AutoAllocateBlocks = true, new(false) }))
	got, err := w.try("n", 5)
	require.ErrorContains(t, err, "failed to find or claim a block")
	assert.Len(t, got.Addrs, 3)
	_, err = w.try("o", 1)
	require.ErrorContains(t, err, "autoAllocateBlocks is false")
}

func TestBorrowing(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/29", 30))
	w.assign("n", 2)
	w.assign("o", 1)
	got := w.assign("n", 4)
	assert.Len(t, got, 4)
	assert.Len(t, w.affinities(), 2, "no affinity is made or changed")
	borrowed, err := w.Borrowed(t.Context())
	require.NoError(t, err)
	require.Len(t, borrowed, 2)
	assert.Equal(t, "n", borrowed[0].Node)
	assert.Equal(t, "o", borrowed[0].BlockOwner)
	assert.Equal(t, "h-n", borrowed[0].Handle)

	// From a block that nobody owns, too.
	require.NoError(t, w.ReleaseNode(t.Context(), "o", false))
	assert.Len(t, w.assign("n", 1), 1)
	last, err := w.try("n", 1)
	require.NoError(t, err)
	assert.EqualError(t, last.Shortfall(), "Assigned 0 out of 1 requested IPv4 addresses; No IPs available in pools: [10.0.0.0/29]; Pools tried: p (10.0.0.0/29): 0 of 8 addresses free, 8 in use")
}

func TestStrictAffinityForbidsBorrowing(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/29", 30), aConfig(strict))
	w.assign("n", 1)
	w.assign("o", 1)
	got, err := w.try("n", 4)
	require.NoError(t, err)
	assert.EqualError(t, got.Shortfall(), "Assigned 3 out of 4 requested IPv4 addresses; No more free affine blocks and strict affinity enabled; "+
		"Pools tried: p (10.0.0.0/29): 3 of 8 addresses free, 5 in use; 3 of the free ones are in blocks of other nodes")
}

func TestReclaimOfEmptyBlocks(t *testing.T) {
	w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/29", 30), aConfig(strict))
	w.assign("o", 8)
	_, err := w.ReleaseByHandle(t.Context(), "h-o")
	require.NoError(t, err)
	got, err := w.try("n", 1)
	require.NoError(t, err)
	assert.Empty(t, got.Addrs, "claimed less than a minute ago")
	w.Advance(61 * time.Second)
	assert.Len(t, w.assign("n", 1), 1)
	assert.Len(t, w.affinities(), 2)

	// One that cools down counts as occupied; one without an owner, left behind by a process that died, is used.
	w = newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/30", 30), aConfig(func(s *api.IPAMConfigurationSpec) {
		s.StrictAffinity, s.IPCooldownSeconds = true, 600
	}))
	w.assign("o", 1)
	_, err = w.ReleaseByHandle(t.Context(), "h-o")
	require.NoError(t, err)
	w.Advance(2 * time.Minute)
	got, err = w.try("n", 1)
	require.NoError(t, err)
	assert.Empty(t, got.Addrs)
	w.Advance(9 * time.Minute)
	assert.Len(t, w.assign("n", 1), 1)

	w = newWorld(t, aNode("n"), aPool("p", "10.0.0.0/30", 30), aConfig(strict))
	b := api.NewIPAMBlock(prefix("10.0.0.0/30"))
	w.f.put(b)
	assert.Len(t, w.assign("n", 1), 1)
}

func TestBlocksOfPoolsThatDoNotSelectTheNodeAreGivenUp(t *testing.T) {
	w := newWorld(t, aNode("n", "rack=a"), aPool("p", "10.0.0.0/30", 31), aPool("q", "10.0.1.0/30", 31), aPool("r", "10.0.2.0/30", 31))
	w.assign("n", 1, pools("p"))
	w.assign("n", 1, pools("q"), func(r *Request) { r.Handle = "q" })
	w.assign("n", 1, pools("r"))
	_, err := w.ReleaseByHandle(t.Context(), "h-n")
	require.NoError(t, err)
	require.Len(t, w.affinities(), 3)
	elsewhere := func(s *api.IPPoolSpec) { s.NodeSelector = "rack == 'b'" }
	w.f.put(aPool("p", "10.0.0.0/30", 31, elsewhere))
	w.f.put(aPool("q", "10.0.1.0/30", 31, elsewhere))
	w.assign("n", 1)
	affinities := w.affinities()
	for name := range affinities {
		assert.NotContains(t, name, "10.0.0.", "empty, and not for this node any more")
	}
	assert.Len(t, affinities, 2, "the one in use stays")

	_, err = w.ReleaseByHandle(t.Context(), "q")
	require.NoError(t, err)
	assert.Len(t, w.affinities(), 1, "until its last address is released")
}

func TestPendingAffinityIsFinished(t *testing.T) {
	for _, state := range []api.AffinityState{api.AffinityPending, api.AffinityPendingDeletion} {
		for _, withBlock := range []bool{false, true} {
			w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
			cidr := prefix("10.0.0.32/30")
			w.f.put(api.NewBlockAffinity(api.AffinityHost, "n", cidr, state))
			if withBlock {
				w.f.put(block.New(cidr, "host:n", w.Now()).IPAMBlock)
			}
			assert.Equal(t, []string{"10.0.0.32"}, w.assign("n", 1))
			assert.Equal(t, map[string]string{"host/n/10.0.0.32/30": "confirmed"}, w.affinities())
		}
	}
	// One whose block is another's is removed.
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30))
	w.f.put(api.NewBlockAffinity(api.AffinityHost, "n", prefix("10.0.0.32/30"), api.AffinityPending))
	w.f.put(block.New(prefix("10.0.0.32/30"), "host:o", w.Now()).IPAMBlock)
	w.assign("n", 1)
	assert.NotContains(t, w.affinities(), "host/n/10.0.0.32/30")
}

// TestPoolMadeAnewWithAnotherBlockSize checks that blocks and affinities of the old size never lead to overlapping blocks.
func TestPoolMadeAnewWithAnotherBlockSize(t *testing.T) {
	for _, sizes := range [][2]int{{30, 28}, {28, 30}} {
		w := newWorld(t, aNode("n"), aNode("o"), aPool("p", "10.0.0.0/27", sizes[0]))
		w.assign("o", 3)
		w.f.put(api.NewBlockAffinity(api.AffinityHost, "n", prefix("10.0.0.16/28"), api.AffinityPending))
		w.f.put(api.NewBlockAffinity(api.AffinityHost, "n", prefix("10.0.0.4/30"), api.AffinityPendingDeletion))
		w.f.put(aPool("p", "10.0.0.0/27", sizes[1]))
		got, err := w.try("n", 32) // checks for overlaps
		require.NoError(t, err)
		assert.Greater(t, len(got.Addrs), 12)
		for name := range w.affinities() {
			_, _, cidr, err := api.ParseAffinityName(name)
			require.NoError(t, err)
			assert.Contains(t, w.blocks(), cidr.String())
		}
	}
}

func TestDamagedBlocksAreLeftAlone(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/29", 30))
	w.assign("n", 1)
	for _, b := range w.blocks() {
		b = b.DeepCopy()
		b.Spec.Unallocated = append(b.Spec.Unallocated, 0) // both in use and free
		w.f.put(b)
	}
	assert.Len(t, w.assignAnyway("n", 1), 1)
}

// assignAnyway is assign in a world that is known to be damaged.
func (w world) assignAnyway(node string, n int) []string {
	got, err := w.AutoAssign(w.t.Context(), Request{Node: node, Family: 4, Count: n, Use: api.UseWorkload})
	require.NoError(w.t, err)
	return texts(got.Addrs)
}

func TestLoadBalancerAddressesBelongToNoNode(t *testing.T) {
	w := newWorld(t, aPool("lb", "10.0.0.0/24", 30, func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseLoadBalancer} }))
	w.assign("", 1, use(api.UseLoadBalancer))
	require.Len(t, w.affinities(), 1)
	for name := range w.affinities() {
		assert.Contains(t, name, "virtual/load-balancer/")
	}
	for _, b := range w.blocks() {
		assert.Equal(t, "virtual:load-balancer", *b.Spec.Affinity)
	}
}

func TestAssignAllIsAllOrNothing(t *testing.T) {
	w := newWorld(t, aNode("n"), aPool("p", "10.0.0.0/24", 30), aPool("six", "fd00::/126", 126))
	request := func(family, n int) Request {
		return Request{Node: "n", Family: family, Count: n, Handle: "pod", Use: api.UseWorkload}
	}
	got, err := w.AssignAll(t.Context(), request(4, 1), request(6, 2))
	require.NoError(t, err)
	assert.Len(t, append(got[0].Addrs, got[1].Addrs...), 3)

	_, err = w.AssignAll(t.Context(), request(4, 2), request(6, 3))
	require.EqualError(t, err, "Assigned 2 out of 3 requested IPv6 addresses; No IPs available in pools: [fd00::/126]; Pools tried: six (fd00::/126): 0 of 4 addresses free, 4 in use")
	kept, err := w.ByHandle(t.Context(), "pod")
	require.NoError(t, err)
	assert.Len(t, kept, 3)
	assert.Empty(t, w.f.surplus())
}

// TestExhaustedPoolsAreExplained: which pools were tried and how full they are, and why the others were passed over.
func TestExhaustedPoolsAreExplained(t *testing.T) {
	w := newWorld(t, aNode("node-a", "rack=a"), aNode("node-b"),
		aPool("full", "10.1.0.0/29", 30),
		aPool("manual", "10.2.0.0/24", 26, func(s *api.IPPoolSpec) { m := api.AssignManual; s.AssignmentMode = &m }),
		aPool("rack-b", "10.3.0.0/24", 26, func(s *api.IPPoolSpec) { s.NodeSelector = "rack == 'b'" }),
		aPool("old", "10.4.0.0/24", 26, func(s *api.IPPoolSpec) { s.Disabled = true }),
		aPool("balancers", "10.5.0.0/24", 26, func(s *api.IPPoolSpec) { s.AllowedUses = []api.IPPoolUse{api.UseLoadBalancer} }),
		aReservation("10.1.0.0"))
	w.assign("node-a", 5)
	w.assign("node-a", 2, func(r *Request) {
		r.Handle, r.Attributes = "warm-node-a-1", map[string]string{api.OwnerNode: "node-a", api.OwnerType: api.TypeWarmPool}
	})
	got, err := w.try("node-a", 1)
	require.NoError(t, err)
	require.EqualError(t, got.Shortfall(), `Assigned 0 out of 1 requested IPv4 addresses; No IPs available in pools: [10.1.0.0/29]; `+
		`Pools tried: full (10.1.0.0/29): 0 of 8 addresses free, 7 in use (2 of them in warm pools), 1 reserved; `+
		`Pools passed over: old (10.4.0.0/24): it is disabled; manual (10.2.0.0/24): its assignmentMode is Manual: it serves only who names it; `+
		`rack-b (10.3.0.0/24): its nodeSelector rack == "b" does not match the node; balancers (10.5.0.0/24): its allowedUses are [LoadBalancer]`)

	// A limit that stands in the way while there are addresses.
	_, err = w.ReleaseByHandle(t.Context(), "h-node-a")
	require.NoError(t, err)
	_, err = w.try("node-a", 9, func(r *Request) { r.MaxBlocks = 1 })
	require.ErrorIs(t, err, ErrBlockLimit)
	require.ErrorContains(t, err, "limit of 1 blocks reached for this node; Pools tried: full (10.1.0.0/29): ")
}
