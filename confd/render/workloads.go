package render

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// workloads adds the sessions of a peering with pods of this node. The pods dial: the node does not know when they are ready,
// nor by which of its addresses they know it. Of what a BGPPeer says of a session only AS numbers and filters are for pods.
func (r *renderer) workloads(p *api.BGPPeer, taken map[netip.AddrPort]string) {
	where := "BGPPeer(" + p.Name + ")"
	for _, w := range r.pods {
		if !slices.Contains(w.Peering.BGPPeers, p.Name) {
			continue
		}
		for _, a := range w.Addresses {
			if !r.own.address(a.Is6()).IsValid() {
				r.warn("%s: this node has no address of the family of %s, a pod's; there is no session", where, a)
				continue
			}
			key := netip.AddrPortFrom(a, api.DefaultBGPPort)
			if by, ok := taken[key]; ok {
				r.warn("%s: %s has the session with the pod at %s already", where, by, a)
				continue
			}
			taken[key] = where
			out := Peer{
				Name: sessionName(LocalWorkload, a, 0), Type: LocalWorkload, Source: where, Address: a, Port: api.DefaultBGPPort,
				ASNumber: uint32(p.Spec.ASNumber), Passive: true, Filters: r.filtersOf(p),
			}
			if local := p.Spec.LocalASNumber; local != nil {
				out.LocalASNumber = uint32(*local)
			}
			if len(out.Filters) == 0 {
				r.warn("%s.spec.filters: names no BGPFilter, and what pods announce is taken only where one accepts it", where)
			}
			r.out.Peers = append(r.out.Peers, out)
		}
	}
}
