package gobgp

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// coreReader reads best paths as gobgp has them. The prefixes of one UPDATE share their attributes in memory, and mostly come
// in a row, so the last list is used again where it is still the same; across UPDATEs equal lists are found by their content.
type coreReader struct {
	known map[string][]speaker.Path
	key   []byte
	last  struct {
		from origin
		list []speaker.Path
	}
}

// origin is where a path has its attributes from. Two paths of the same origin differ in tags at most.
type origin struct {
	source   *peerInfo
	first    *bgp.PathAttributeInterface // of the attributes that came in; held, so that nothing else can be in its place
	len      int
	replaced uint64 // types of attributes that policy has removed, or replaced by such as hold tags only
}

func newCoreReader() *coreReader { return &coreReader{known: map[string][]speaker.Path{}} }

// tell passes on the outcome of path selection: as bestReader does.
func (r *coreReader) tell(events speaker.Events, e *bestPaths) {
	if len(e.MultiPathList) == 0 {
		for i := range e.PathList {
			r.tellOne(events, e.PathList[i:i+1])
		}
		return
	}
	for _, paths := range e.MultiPathList {
		r.tellOne(events, paths)
	}
}

// tellOne passes on the paths to one prefix.
func (r *coreReader) tellOne(events speaker.Events, paths []*corePath) {
	for len(paths) > 0 {
		prefix, n := paths[0].prefix(), 1
		for n < len(paths) && paths[n].prefix() == prefix {
			n++
		}
		if prefix.IsValid() {
			events.Best(prefix, r.list(paths[:n]))
		}
		paths = paths[n:]
	}
}

// list reads the paths of one prefix, but for those that are gone, and our own.
func (r *coreReader) list(paths []*corePath) []speaker.Path {
	from, plain := origin{}, false
	if len(paths) == 1 && !paths[0].IsWithdraw {
		if from, plain = paths[0].origin(); plain && from == r.last.from {
			return r.last.list
		}
	}
	var out []speaker.Path
	for _, p := range paths {
		if p.IsWithdraw {
			continue
		}
		if path := p.read(); path.Peer.IsValid() && path.NextHop.IsValid() {
			out = append(out, path)
		}
	}
	out = r.shared(out)
	if plain {
		r.last.from, r.last.list = from, out
	}
	return out
}

// shared is the list of the same content that is there already.
func (r *coreReader) shared(list []speaker.Path) []speaker.Path {
	if len(list) == 0 {
		return nil
	}
	r.key = r.key[:0]
	for i := range list {
		r.key = appendContent(r.key, &list[i])
	}
	if known, ok := r.known[string(r.key)]; ok {
		return known
	}
	if len(r.known) >= rememberedLists {
		clear(r.known)
	}
	r.known[string(r.key)] = list
	return list
}

func appendContent(key []byte, p *speaker.Path) []byte {
	for _, a := range []netip.Addr{p.NextHop, p.Peer, p.Originator} {
		key = appendText(key, string(a.AsSlice()))
	}
	key = appendText(key, p.Origin)
	key = binary.BigEndian.AppendUint32(key, p.Preference)
	key = binary.BigEndian.AppendUint32(key, p.MED)
	key = binary.AppendUvarint(key, uint64(len(p.ASPath)))
	for _, as := range p.ASPath {
		key = binary.BigEndian.AppendUint32(key, as)
	}
	key = binary.AppendUvarint(key, uint64(len(p.Communities)))
	for _, c := range p.Communities {
		key = append(key, byte(boolBit(c.Large)))
		for _, part := range c.Parts {
			key = binary.BigEndian.AppendUint32(key, part)
		}
	}
	return key
}

func boolBit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func (p *corePath) root() *corePath {
	for p.parent != nil {
		p = p.parent
	}
	return p
}

// prefix is not valid for other families.
func (p *corePath) prefix() netip.Prefix {
	var ip []byte
	var length uint8
	switch nlri := p.root().info.nlri.(type) {
	case *bgp.IPAddrPrefix:
		ip, length = nlri.Prefix.To4(), nlri.Length
	case *bgp.IPv6AddrPrefix:
		ip, length = nlri.Prefix, nlri.Length
	}
	a, _ := netip.AddrFromSlice(ip)
	if a.Is4In6() {
		return netip.Prefix{}
	}
	prefix, _ := a.Prefix(int(length))
	return prefix
}

// origin tells where the attributes are from; not plain if policy has changed more than tags, or there are none.
func (p *corePath) origin() (o origin, plain bool) {
	for ; p.parent != nil; p = p.parent {
		for _, t := range p.dels {
			if t >= 64 {
				return o, false
			}
			o.replaced |= 1 << t
		}
		for _, a := range p.pathAttrs {
			large, ok := a.(*bgp.PathAttributeLargeCommunities)
			if !ok || slices.ContainsFunc(large.Values, func(c *bgp.LargeCommunity) bool { return !policy.IsTag(largeOf(c)) }) {
				return o, false
			}
			o.replaced |= 1 << a.GetType()
		}
	}
	if len(p.pathAttrs) == 0 || len(p.dels) > 0 {
		return o, false
	}
	o.source, o.first, o.len = p.info.source, &p.pathAttrs[0], len(p.pathAttrs)
	return o, true
}

// letOut tells whether policy may let the path out to any peer: it does so by tags alone.
func (p *corePath) letOut() bool {
	for ; p != nil; p = p.parent {
		if slices.Contains(p.dels, bgp.BGP_ATTR_TYPE_LARGE_COMMUNITY) {
			return false
		}
		for _, a := range p.pathAttrs {
			if large, ok := a.(*bgp.PathAttributeLargeCommunities); ok {
				return slices.ContainsFunc(large.Values, func(c *bgp.LargeCommunity) bool { return policy.LetsOut(largeOf(c)) })
			}
		}
	}
	return false
}

func largeOf(c *bgp.LargeCommunity) policy.Community {
	return policy.Community{Large: true, Parts: [3]uint32{c.ASN, c.LocalData1, c.LocalData2}}
}

// read is a path without its prefix and our tags.
func (p *corePath) read() speaker.Path {
	out := speaker.Path{Preference: 100, Origin: "incomplete"}
	var over [256]bool // types that a younger path has, or has deleted
	for ; ; p = p.parent {
		for _, t := range p.dels {
			over[t] = true
		}
		for _, a := range p.pathAttrs {
			if t := a.GetType(); !over[t] {
				over[t] = true
				readCore(&out, a)
			}
		}
		if p.parent == nil {
			out.Peer = ipOf(p.info.source.Address)
			return out
		}
	}
}

// readCore adds one attribute to the path: as readAttribute does.
func readCore(out *speaker.Path, attr bgp.PathAttributeInterface) {
	switch a := attr.(type) {
	case *bgp.PathAttributeOrigin:
		out.Origin = [...]string{"igp", "egp", "incomplete"}[min(a.Value, 2)]
	case *bgp.PathAttributeNextHop:
		out.NextHop = ipOf(a.Value)
	case *bgp.PathAttributeMpReachNLRI:
		out.NextHop = ipOf(a.Nexthop)
	case *bgp.PathAttributeAsPath:
		for _, s := range a.Value {
			out.ASPath = append(out.ASPath, s.GetAS()...)
		}
	case *bgp.PathAttributeLocalPref:
		out.Preference = a.Value
	case *bgp.PathAttributeMultiExitDisc:
		out.MED = a.Value
	case *bgp.PathAttributeOriginatorId:
		out.Originator = ipOf(a.Value)
	case *bgp.PathAttributeCommunities:
		for _, c := range a.Value {
			out.Communities = append(out.Communities, policy.Community{Parts: [3]uint32{c >> 16, c & 0xffff}})
		}
	case *bgp.PathAttributeLargeCommunities:
		for _, c := range a.Values {
			if l := largeOf(c); !policy.IsTag(l) {
				out.Communities = append(out.Communities, l)
			}
		}
	}
}

func ipOf(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
