package render_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/thorough"
)

// TestRIBAddsUpToRoutes changes paths, next hops, pods, blocks and pools at random, all about few destinations, so that each
// source of routes takes over from each other. The sum of the RIB's changes is what is computed from scratch.
func TestRIBAddsUpToRoutes(t *testing.T) {
	destinations := []string{"192.168.1.0/26", "192.168.2.0/26", "192.168.1.5/32", "203.0.113.0/24", "10.30.0.0/24"}
	hops := []netip.Addr{addr("10.30.0.56"), addr("10.30.0.57"), addr("10.99.0.1")}
	for seed := range uint64(thorough.Rounds(20, 200)) {
		r := rand.New(rand.NewPCG(seed, 8))
		s := state.New(self)
		var rib render.RIB
		routes, encaps := map[desired.RouteKey]desired.Route{}, map[netip.Prefix]desired.Encap{}
		changes := []func() state.Section{
			func() state.Section {
				p := state.Path{Prefix: prefix(destinations[r.IntN(len(destinations))])}
				if n := r.IntN(3); n > 0 {
					p.Ways = &state.Ways{NextHops: hops[r.IntN(2) : r.IntN(2)+n], Metric: uint32(r.IntN(2))}
				}
				return s.SetPath(p)
			},
			func() state.Section {
				h := state.Host{Interfaces: map[string]state.Interface{}, NextHops: map[netip.Addr]state.NextHop{}}
				if r.IntN(2) == 0 {
					h.Interfaces["eth0"] = state.Interface{Index: 2, MTU: 1500, Up: true, Addresses: []netip.Prefix{prefix("10.30.0.55/24")}}
				}
				for _, hop := range hops {
					if link := []string{"", "eth0", "eth1", desired.IPIPDevice}[r.IntN(4)]; link != "" {
						h.NextHops[hop] = state.NextHop{Via: hop, Link: link}
					}
				}
				return s.SetHost(h)
			},
			func() state.Section {
				if r.IntN(2) == 0 {
					return s.DeleteLocal("cali1")
				}
				return s.SetLocal(state.Endpoint{Interface: "cali1", Addresses: []netip.Addr{addr("192.168.1.5")}, Leaving: r.IntN(2) == 0})
			},
			func() state.Section {
				item := view.Route{Dst: prefix(destinations[r.IntN(2)]), Type: view.RouteBlock, Node: []string{self, "other"}[r.IntN(2)]}
				if r.IntN(2) == 0 {
					return s.Apply(view.Batch{Removes: []view.Key{item.Key()}})
				}
				return s.Apply(view.Batch{Updates: []view.Item{item}})
			},
			func() state.Section {
				pool := &api.IPPool{Spec: api.IPPoolSpec{CIDR: "192.168.0.0/16", IPIPMode: []api.IPIPMode{"Never", "Always"}[r.IntN(2)]}}
				pool.Name = "pool"
				return s.Apply(view.Batch{Updates: []view.Item{view.Resource{Object: pool}}})
			},
		}
		for step := range 200 {
			touched := state.Section(0)
			for range 1 + r.IntN(3) {
				touched |= changes[r.IntN(len(changes))]()
			}
			if touched&(state.Routes|state.Paths) != 0 {
				d, e := rib.Update(s, touched)
				apply(routes, d)
				apply(encaps, e)
			}
			want := render.Routes(s)
			at := fmt.Sprintf("seed %d, step %d", seed, step)
			require.True(t, desired.Diff(routes, want, desired.Route.Equal).Empty(), "%s: %v, want %v", at, routes, want)
			require.Equal(t, render.Encaps(want), encaps, at)
		}
	}
}
