package gobgp_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// testAllPaths has a reflector tell its client c of both ways to a prefix that a and d announce, and take each back when c may
// have it no more: since it has gone, since a filter rejects it by what has changed about it, since the filter has changed, or
// what is exported without one. Whether paths may outlive their peer is all the same.
func testAllPaths(third byte, stale time.Duration) func(*testing.T, []*speaker.Speaker) {
	return func(t *testing.T, speakers []*speaker.Speaker) { allPaths(t, speakers, third, stale) }
}

func allPaths(t *testing.T, speakers []*speaker.Speaker, third byte, stale time.Duration) {
	prefix := netip.MustParsePrefix("192.168.9.0/26")
	reflector, client := loopback(third, 2), loopback(third, 3)
	secret := policy.Community{Parts: [3]uint32{64512, 9}}
	generation := uint64(10)
	source := func(n int, announced bool, communities ...policy.Community) {
		t.Helper()
		c := config(loopback(third, n), 64512, peer(loopback(third, n), reflector, 64512, true))
		generation++
		c.Generation = generation
		if announced {
			c.Originate = []policy.Origination{{Prefix: prefix, Communities: communities}}
		}
		apply(t, speakers[n-1], c)
	}
	base := config(reflector, 64512)
	base.ClusterID = netip.MustParseAddr("244.0.0.1")
	for _, n := range []int{1, 3, 4} {
		p := peer(reflector, loopback(third, n), 64512, false)
		p.ReflectorClient, p.LongLivedStaleTime = true, stale
		base.Peers = append(base.Peers, p)
	}
	reflect := func(change func(*policy.Config)) {
		t.Helper()
		c := base
		c.Peers = slices.Clone(c.Peers)
		generation++
		c.Generation = generation
		change(&c)
		apply(t, speakers[1], c)
	}
	filtered := func(rules ...bgp.Rule) func(*policy.Config) {
		return func(c *policy.Config) {
			c.Filters = []bgp.Filter{{Name: "f", Export4: rules}}
			c.Peers[1].Filters = []string{"f"}
		}
	}
	hasWays := func(what string, from ...int) {
		t.Helper()
		var want []string
		for _, n := range from {
			want = append(want, loopback(third, n).String())
		}
		eventually(t, what+": "+strings.Join(want, " "), func() bool {
			var told, got []string
			if err := speakers[1].Show(context.Background(), speaker.LookAdvertised, client.String(), prefix, func(j speaker.Judged) {
				told = append(told, j.NextHop.String())
			}); err != nil {
				return false
			}
			list, _, _ := speakers[2].ReadBest(0).Next(1 << 20)
			for _, b := range list {
				for _, p := range b.Paths {
					got = append(got, p.NextHop.String())
				}
			}
			peers, err := speakers[1].Peers(client.String())
			slices.Sort(told)
			slices.Sort(got)
			return err == nil && slices.Equal(told, want) && slices.Equal(got, want) && int(peers[0].Advertised) == len(want)
		})
	}
	configC := config(client, 64512, peer(client, reflector, 64512, true))
	configC.Peers[0].LongLivedStaleTime = stale
	apply(t, speakers[2], configC)
	source(1, true)
	source(4, true)
	reflect(filtered(bgp.Rule{Community: &secret}))
	hasWays("at first", 1, 4)
	since := state(t, speakers[2]).Since

	source(4, true, secret)
	hasWays("one has changed, and the filter rejects it now", 1)
	source(4, true)
	hasWays("it has changed back", 1, 4)
	source(1, false)
	hasWays("the other has gone", 4)
	source(1, true)
	hasWays("it is there again", 1, 4)
	reflect(filtered(bgp.Rule{Prefix: prefix, Operator: bgp.Equal}))
	hasWays("the filter rejects the prefix")
	reflect(filtered(bgp.Rule{Community: &secret}))
	hasWays("the filter is as it was", 1, 4)
	reflect(func(*policy.Config) {})
	hasWays("there is no filter", 1, 4)
	reflect(func(c *policy.Config) { c.Export.Pools = []policy.Pool{{Prefix: prefix, DisableExport: true}} })
	hasWays("the pool is not exported")
	reflect(func(*policy.Config) {})
	hasWays("it is exported", 1, 4)
	reflect(func(c *policy.Config) { c.Export.Pools = nil })
	hasWays("there is no pool")
	reflect(func(*policy.Config) {})
	hasWays("there is one", 1, 4)
	require.Equal(t, since, state(t, speakers[2]).Since, "the session stayed up")
}
