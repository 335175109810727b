package uplink

import (
	"context"
	"net/netip"
	"slices"

	birdclient "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/felix/state"
)

// Exchange is the conversation with bird about routes.
type Exchange interface {
	Announce(birdclient.LocalRoute)
	Withdraw(netip.Prefix)
	SnapshotEnd()
	NextHop(a netip.Addr, reachable bool, metric uint32)
	Applied(sequence uint64)
	Run(ctx context.Context, handle func(birdclient.Update)) error
}

// BGP exchanges routes with bird: what this node has programmed goes out, best paths come in, and for each next hop bird is
// told whether the kernel reaches it.
type BGP struct {
	bird Exchange

	announced map[netip.Prefix]bool // owned by the agent's loop, through Announce
	started   bool

	hops []netip.Addr // that bird wants judged, sorted; owned by Run's handler
	ways *state.Ways  // of the path that was read last, the same
}

// NewBGP prepares the exchange.
func NewBGP(bird Exchange) *BGP { return &BGP{bird: bird, announced: map[netip.Prefix]bool{}} }

// Announce makes prefixes the whole of what this node announces. It is called by one goroutine.
func (b *BGP) Announce(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		if !b.announced[p] {
			b.announced[p] = true
			b.bird.Announce(birdclient.LocalRoute{Prefix: p})
		}
	}
	for p := range b.announced {
		if !slices.Contains(prefixes, p) {
			delete(b.announced, p)
			b.bird.Withdraw(p)
		}
	}
	if !b.started {
		b.started = true
		b.bird.SnapshotEnd()
	}
}

// Reachable tells bird what the kernel says of next hops.
func (b *BGP) Reachable(h state.Host) {
	for hop, at := range h.NextHops {
		b.bird.NextHop(hop, at.Link != "", at.Metric)
	}
}

// Run passes best paths on until ctx ends: resolve is told all next hops when they changed, paths each change with whether
// bird has told all that it has, and a function to call when the change is in the kernel.
func (b *BGP) Run(ctx context.Context, resolve func([]netip.Addr), paths func(changed []state.Path, known bool, applied func())) error {
	return b.bird.Run(ctx, func(u birdclient.Update) {
		changed := b.pathsOf(u.Best)
		if !slices.Equal(u.NextHops, b.hops) {
			b.hops = u.NextHops
			resolve(u.NextHops)
		}
		paths(changed, u.Synced, func() { b.bird.Applied(u.Sequence) })
	})
}

// pathsOf reads best paths. Prefixes in a row that are reached in the same ways share them.
func (b *BGP) pathsOf(all []birdclient.Best) []state.Path {
	out := make([]state.Path, 0, len(all))
	for _, best := range all {
		if len(best.Paths) == 0 {
			out = append(out, state.Path{Prefix: best.Prefix})
			continue
		}
		if b.ways == nil || !same(b.ways, best.Paths) {
			b.ways = &state.Ways{}
			for _, p := range best.Paths {
				b.ways.NextHops, b.ways.Metric = append(b.ways.NextHops, p.NextHop), p.Metric
			}
		}
		out = append(out, state.Path{Prefix: best.Prefix, Ways: b.ways})
	}
	return out
}

func same(w *state.Ways, paths []birdclient.Path) bool {
	return w.Metric == paths[len(paths)-1].Metric &&
		slices.EqualFunc(w.NextHops, paths, func(a netip.Addr, p birdclient.Path) bool { return a == p.NextHop })
}

// NoBGP is the exchange of a node on which no bird runs: it takes what it is told, and has told all that it knows, which is
// nothing, as soon as it runs. So routes that BGP brought before go at once.
type NoBGP struct{}

// Announce does nothing: there is nobody to tell.
func (NoBGP) Announce(birdclient.LocalRoute) {}

// Withdraw does nothing.
func (NoBGP) Withdraw(netip.Prefix) {}

// SnapshotEnd does nothing.
func (NoBGP) SnapshotEnd() {}

// NextHop does nothing.
func (NoBGP) NextHop(netip.Addr, bool, uint32) {}

// Applied does nothing.
func (NoBGP) Applied(uint64) {}

// Run says that there are no paths, and waits for the end of ctx.
func (NoBGP) Run(ctx context.Context, handle func(birdclient.Update)) error {
	handle(birdclient.Update{Synced: true})
	<-ctx.Done()
	return nil
}
