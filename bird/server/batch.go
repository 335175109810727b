package server

import (
	"net/netip"

	"github.com/muslin-net/muslin/bird/speaker"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// toBatch groups prefixes by their paths. Those that one announcement brought share them in memory, which is how they are
// found here; what is equal by chance is told twice.
func toBatch(list []speaker.Best, names map[netip.Addr]string) *birdv1.BestBatch {
	type identity struct {
		first *speaker.Path
		count int
	}
	groups := map[identity]*birdv1.BestPaths{}
	out := &birdv1.BestBatch{}
	var last identity
	var group *birdv1.BestPaths
	for _, b := range list {
		id := identity{count: len(b.Paths)}
		if id.count > 0 {
			id.first = &b.Paths[0]
		}
		if group == nil || id != last {
			if group = groups[id]; group == nil {
				group = &birdv1.BestPaths{}
				for _, p := range b.Paths {
					group.Paths = append(group.Paths, toPath(p, names))
				}
				groups[id] = group
				out.Groups = append(out.Groups, group)
			}
			last = id
		}
		if a := b.Prefix.Addr(); a.Is4() {
			v := a.As4()
			group.Prefixes4 = append(append(group.Prefixes4, v[:]...), byte(b.Prefix.Bits()))
		} else {
			v := a.As16()
			group.Prefixes6 = append(append(group.Prefixes6, v[:]...), byte(b.Prefix.Bits()))
		}
	}
	return out
}
