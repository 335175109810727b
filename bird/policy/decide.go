package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/bgp"
)

// What decides besides filters, as operators are told.
const (
	byOwnBlock    = "own block"
	byElevated    = "elevated route inside an own block"
	byOrigination = "service route"
	byServices    = "service range of a reflector"
	byPool        = "inside a pool"
	byNoPool      = "outside every pool"
	byDefault     = "no filter matched"
	byWorkload    = "no BGPFilter accepts it, and what a pod announces is taken only where one does"
)

// ExportOwn decides whether a route of this node goes to the peer (spec: export decision).
func (c *Config) ExportOwn(p *Peer, rt Route) Verdict {
	return c.export(p, rt)
}

// ExportLearned decides whether a best path learned from one peer goes to another. from is nil if that one is gone.
func (c *Config) ExportLearned(p, from *Peer, rt Route) Verdict {
	switch {
	case from != nil && from.Address == p.Address:
		return Verdict{By: "learned from this peer"}
	case from != nil && from.Internal(c) && p.Internal(c) && !c.passes(from, p, rt.NextHop):
		return Verdict{By: "learned over iBGP; only a reflector passes it on"}
	case slices.Contains(rt.ASPath, p.ASNumber) && !p.Internal(c):
		return Verdict{By: fmt.Sprintf("AS %d is in the path", p.ASNumber)}
	}
	rt.Learned = true
	return c.export(p, rt)
}

func (c *Config) export(p *Peer, rt Route) Verdict {
	if v, ok := c.filter(p, rt, true); ok {
		return v
	}
	return c.exportDefault(rt, p.Internal(c))
}

// exportDefault is the export decision after filters.
func (c *Config) exportDefault(rt Route, internal bool) Verdict {
	for _, pool := range c.Export.Pools {
		if pool.DisableExport && contains(pool.Prefix, rt.Prefix) {
			return Verdict{By: fmt.Sprintf("IPPool(%s).disableBGPExport", pool.Prefix)}
		}
	}
	if internal && tunnelDevice(rt.Interface) || matchPattern("bpf*.cali", rt.Interface) {
		return Verdict{By: fmt.Sprintf("leaves over %s, a device of ours", rt.Interface)}
	}
	for _, block := range c.Export.OwnBlocks {
		switch {
		case rt.Prefix == block:
			return Verdict{Accept: true, By: byOwnBlock}
		case !contains(block, rt.Prefix):
		case !rt.Learned && rt.Preference > PreferenceOf(c.NormalPriority(rt.Prefix)):
			return Verdict{Accept: true, By: byElevated}
		default:
			return Verdict{By: fmt.Sprintf("inside own block %s, which is announced instead", block)}
		}
	}
	switch {
	case slices.ContainsFunc(c.Originate, func(o Origination) bool { return o.Prefix == rt.Prefix }):
		return Verdict{Accept: true, By: byOrigination}
	case c.Reflects() && within(c.Export.ServiceRanges, rt.Prefix):
		return Verdict{Accept: true, By: byServices}
	case slices.ContainsFunc(c.Export.Pools, func(p Pool) bool { return contains(p.Prefix, rt.Prefix) }):
		return Verdict{Accept: true, By: byPool}
	}
	return Verdict{By: byNoPool}
}

// tunnelDevice tells whether an interface is one that felix tunnels over: routes behind it are other nodes'.
func tunnelDevice(name string) bool {
	return name == "tunl0" || matchPattern("*.cali", name) || matchPattern("*.calico", name)
}

// Context is what decisions know beside the configuration.
type Context struct {
	Unreachable []netip.Addr // next hops that felix says are dead
	Drain       Drain
	Reflected   []netip.Addr   // peers of the mesh that have been seen to be reflectors, sorted
	LetOut      []netip.Prefix // whose routes the default decision has let out since the start, sorted (see Config.Exported)
}

// Drain is how far a node has left the service (RFC 8326).
type Drain uint8

// The steps: normal work, routes announced as about to go, and nothing announced.
const (
	InService Drain = iota
	Draining
	Drained
)

// String is the step as operators see it.
func (d Drain) String() string { return [...]string{"in service", "draining", "drained"}[d] }

// Import decides whether a route received from the peer is used, and what it becomes.
func (c *Config) Import(p *Peer, rt Route, ctx Context) (Route, Verdict) {
	rt.Learned = true
	own := 0
	for _, as := range rt.ASPath {
		if as == p.Local(c) {
			own++
		}
	}
	switch {
	case own > int(p.AllowedOwnAS):
		return rt, Verdict{By: "own AS in the path"}
	case p.Internal(c) && rt.Originator == c.RouterID:
		return rt, Verdict{By: "own originator"}
	case slices.Contains(c.OwnAddresses(), rt.NextHop):
		return rt, Verdict{By: "own next hop"}
	case slices.Contains(ctx.Unreachable, rt.NextHop):
		return rt, Verdict{By: fmt.Sprintf("next hop %s is unreachable", rt.NextHop)}
	}
	if slices.Contains(rt.Communities, gracefulShutdown) {
		rt.Preference = shutdownPreference
	}
	v, ok := c.filter(p, rt, false)
	if !ok {
		v = Verdict{Accept: true, By: byDefault}
		if p.Type == PeerLocalWorkload {
			v = Verdict{By: byWorkload}
		}
	}
	return apply(rt, v.Operations), v
}

// filter runs the peer's named filters; ok is false if none decides. Names of filters that do not exist are skipped.
func (c *Config) filter(p *Peer, rt Route, export bool) (v Verdict, ok bool) {
	v6 := p.Address.Is6()
	for _, name := range p.Filters {
		f := c.filterNamed(name)
		if f == nil {
			continue
		}
		for i, r := range f.Rules(v6, export) {
			if matches(&r, &rt, p.Internal(c)) {
				return Verdict{Accept: r.Accept, By: where(name, v6, export, i), Operations: r.Operations, filter: true}, true
			}
		}
	}
	return Verdict{}, false
}

func (c *Config) filterNamed(name string) *bgp.Filter {
	for i := range c.Filters {
		if c.Filters[i].Name == name {
			return &c.Filters[i]
		}
	}
	return nil
}

// OwnAddresses are the addresses by which peers know this node, as far as the configuration tells.
func (c *Config) OwnAddresses() []netip.Addr {
	out := append([]netip.Addr{c.RouterID}, c.ListenAddresses...)
	for _, p := range c.Peers {
		if p.SourceAddress.IsValid() {
			out = append(out, p.SourceAddress)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
