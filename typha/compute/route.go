package compute

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// routes says where every block and every address outside its node's blocks lives, and how its pool wants packets
// carried there. Its sources are the IPAM blocks (their own word on whom they are affine to and who uses them counts),
// the claims that are not confirmed yet, and the tunnel addresses of nodes.
type routes struct {
	out        *output
	pools      map[string]*pool
	transports map[string]Transport // pools whose mode is changing
	blocks     map[netip.Prefix]*block
	pending    map[claim]struct{}
	tunnels    map[string][]netip.Addr            // by node
	tunnelled  map[netip.Addr]map[string]struct{} // nodes by tunnel address
	floating   map[netip.Addr]map[api.Key]holder  // endpoints by the floating addresses that they claim
	lengths    map[int]int                        // how many blocks have that many address bits and prefix length
	table      map[view.Key][]*view.Route         // what the sources say

	dirtyBlocks  map[netip.Prefix]struct{}
	dirtyTunnels map[netip.Addr]struct{}
	dirtyFloats  map[netip.Addr]struct{}
	dirtyKeys    map[view.Key]struct{}
	emitted      map[view.Key]view.Route
	fromTunnel   map[netip.Addr][]view.Route
	fromFloat    map[netip.Addr][]view.Route
	fromBlock    map[netip.Prefix][]view.Route
}

// holder is an endpoint as far as a floating address that it claims depends on it.
type holder struct {
	node     string
	internal netip.Addr
}

// pool is an IP pool as far as routes depend on it.
type pool struct {
	name      string
	cidr      netip.Prefix
	transport Transport
}

// block is an IPAM block.
type block struct {
	object   *api.IPAMBlock
	affinity string // the node it is affine to
}

// claim is a node's claim of a block.
type claim struct {
	node string
	cidr netip.Prefix
}

func newRoutes(out *output) *routes {
	return &routes{
		out:          out,
		pools:        map[string]*pool{},
		transports:   map[string]Transport{},
		blocks:       map[netip.Prefix]*block{},
		pending:      map[claim]struct{}{},
		tunnels:      map[string][]netip.Addr{},
		tunnelled:    map[netip.Addr]map[string]struct{}{},
		floating:     map[netip.Addr]map[api.Key]holder{},
		lengths:      map[int]int{},
		table:        map[view.Key][]*view.Route{},
		dirtyBlocks:  map[netip.Prefix]struct{}{},
		dirtyTunnels: map[netip.Addr]struct{}{},
		dirtyFloats:  map[netip.Addr]struct{}{},
		dirtyKeys:    map[view.Key]struct{}{},
		emitted:      map[view.Key]view.Route{},
		fromTunnel:   map[netip.Addr][]view.Route{},
		fromFloat:    map[netip.Addr][]view.Route{},
		fromBlock:    map[netip.Prefix][]view.Route{},
	}
}

func (r *routes) setPool(name string, o *api.IPPool) {
	was := r.pools[name]
	var now *pool
	if o != nil {
		if cidr, err := netip.ParsePrefix(o.Spec.CIDR); err == nil {
			now = &pool{name: name, cidr: cidr.Masked(), transport: TransportOf(o)}
		}
	}
	if now == nil {
		delete(r.pools, name)
	} else {
		r.pools[name] = now
	}
	if was != nil && now != nil && was.cidr == now.cidr && was.transport.Equal(now.transport) {
		return
	}
	r.touchPool(was)
	r.touchPool(now)
}

// setTransport says how packets of a pool are carried while its mode changes; nil that the pool's own mode counts.
func (r *routes) setTransport(name string, t *Transport) {
	if t == nil {
		delete(r.transports, name)
	} else {
		r.transports[name] = *t
	}
	r.touchPool(r.pools[name])
}

// touchPool has all routes inside a pool computed anew.
func (r *routes) touchPool(p *pool) {
	if p == nil {
		return
	}
	for cidr := range r.blocks {
		if p.cidr.Overlaps(cidr) {
			r.dirtyBlocks[cidr] = struct{}{}
		}
	}
	for addr := range r.tunnelled {
		if p.cidr.Contains(addr) {
			r.dirtyTunnels[addr] = struct{}{}
		}
	}
	r.touchFloating(p.cidr)
}

// touchFloating has the floating addresses inside a prefix computed anew. They are few.
func (r *routes) touchFloating(in netip.Prefix) {
	for addr := range r.floating {
		if in.Contains(addr) {
			r.dirtyFloats[addr] = struct{}{}
		}
	}
}

// poolOf is the pool that contains a destination: the narrowest, and of those the first by name.
func (r *routes) poolOf(dst netip.Prefix) *pool {
	var best *pool
	for _, p := range r.pools {
		if p.cidr.Bits() > dst.Bits() || !p.cidr.Contains(dst.Addr()) {
			continue
		}
		if best == nil || p.cidr.Bits() > best.cidr.Bits() || p.cidr.Bits() == best.cidr.Bits() && p.name < best.name {
			best = p
		}
	}
	return best
}

func (r *routes) setBlock(name string, o *api.IPAMBlock) {
	cidr, err := netip.ParsePrefix(name)
	if err != nil {
		return
	}
	cidr = cidr.Masked()
	was := r.blocks[cidr]
	if o == nil || o.Spec.Deleted {
		if was == nil {
			return
		}
		delete(r.blocks, cidr)
		r.lengths[lengthOf(cidr)]--
	} else {
		now := &block{object: o}
		if o.Spec.Affinity != nil {
			now.affinity, _ = strings.CutPrefix(*o.Spec.Affinity, "host:")
			if now.affinity == *o.Spec.Affinity {
				now.affinity = "" // not a host's
			}
		}
		r.blocks[cidr] = now
		if was == nil {
			r.lengths[lengthOf(cidr)]++
		}
	}
	r.touchBlock(cidr)
}

// lengthOf tells families apart, too.
func lengthOf(p netip.Prefix) int { return p.Addr().BitLen()<<8 | p.Bits() }

func (r *routes) setAffinity(name string, o *api.BlockAffinity) {
	kind, node, cidr, err := api.ParseAffinityName(name)
	if err != nil || kind != api.AffinityHost {
		return
	}
	c := claim{node, cidr.Masked()}
	_, was := r.pending[c]
	now := o != nil && !o.Spec.Deleted && o.Spec.State == api.AffinityPending
	if now {
		r.pending[c] = struct{}{}
	} else {
		delete(r.pending, c)
	}
	if was != now {
		r.touchBlock(c.cidr)
	}
}

// touchBlock has a block computed anew, and the tunnel addresses inside it.
func (r *routes) touchBlock(cidr netip.Prefix) {
	r.dirtyBlocks[cidr] = struct{}{}
	for addr := range r.tunnelsIn(cidr) {
		r.dirtyTunnels[addr] = struct{}{}
	}
	r.touchFloating(cidr)
}

// tunnelsIn yields the tunnel addresses inside a block, going through the fewer of both.
func (r *routes) tunnelsIn(cidr netip.Prefix) func(yield func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		if host := cidr.Addr().BitLen() - cidr.Bits(); host < 20 && 1<<host < len(r.tunnelled) {
			addr := cidr.Addr()
			for range 1 << host {
				if _, ok := r.tunnelled[addr]; ok && !yield(addr) {
					return
				}
				addr = addr.Next()
			}
			return
		}
		for addr := range r.tunnelled {
			if cidr.Contains(addr) && !yield(addr) {
				return
			}
		}
	}
}

// owner is the node that a block is routed to, empty if to none. A claim that is not confirmed yet counts for nothing:
// until then no address of the block is in use by the node.
func (r *routes) owner(cidr netip.Prefix) string {
	b := r.blocks[cidr]
	if b == nil || b.affinity == "" {
		return ""
	}
	if _, pending := r.pending[claim{b.affinity, cidr}]; pending {
		return ""
	}
	return b.affinity
}

func (r *routes) setTunnels(node string, addrs []netip.Addr) {
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
	for _, a := range r.tunnels[node] {
		delete(r.tunnelled[a], node)
		if len(r.tunnelled[a]) == 0 {
			delete(r.tunnelled, a)
		}
		r.dirtyTunnels[a] = struct{}{}
	}
	delete(r.tunnels, node)
	if len(addrs) == 0 {
		return
	}
	r.tunnels[node] = addrs
	for _, a := range addrs {
		if r.tunnelled[a] == nil {
			r.tunnelled[a] = map[string]struct{}{}
		}
		r.tunnelled[a][node] = struct{}{}
		r.dirtyTunnels[a] = struct{}{}
	}
}

// setFloating says that an endpoint claims a floating address, or with nil that it no longer does.
func (r *routes) setFloating(addr netip.Addr, endpoint api.Key, now *holder) {
	r.dirtyFloats[addr] = struct{}{}
	if now != nil {
		if r.floating[addr] == nil {
			r.floating[addr] = map[api.Key]holder{}
		}
		r.floating[addr][endpoint] = *now
		return
	}
	delete(r.floating[addr], endpoint)
	if len(r.floating[addr]) == 0 {
		delete(r.floating, addr)
	}
}

// flush computes what is dirty.
func (r *routes) flush() {
	for cidr := range r.dirtyBlocks {
		replace(r, r.fromBlock, cidr, r.blockRoutes(cidr))
	}
	clear(r.dirtyBlocks)
	for addr := range r.dirtyTunnels {
		replace(r, r.fromTunnel, addr, r.tunnelRoutes(addr))
	}
	clear(r.dirtyTunnels)
	for addr := range r.dirtyFloats {
		replace(r, r.fromFloat, addr, r.floatingRoutes(addr))
	}
	clear(r.dirtyFloats)
	for k := range r.dirtyKeys {
		r.emit(k)
	}
	clear(r.dirtyKeys)
}

// blockRoutes are the routes of a block: to its owner, and to every other node that uses an address of it.
func (r *routes) blockRoutes(cidr netip.Prefix) []view.Route {
	b := r.blocks[cidr]
	if b == nil {
		return nil
	}
	var out []view.Route
	owner := r.owner(cidr)
	if owner != "" {
		out = append(out, r.route(cidr, view.RouteBlock, owner))
	}
	users := make([]string, len(b.object.Spec.Attributes)) // by attribute; empty if its addresses need no route
	foreign := false
	for i := range users {
		if node := user(&b.object.Spec.Attributes[i]); node != owner {
			users[i] = node
			foreign = foreign || node != ""
		}
	}
	if !foreign {
		return out
	}
	addr := cidr.Addr()
	for _, attribute := range b.object.Spec.Allocations {
		if attribute != nil && *attribute >= 0 && *attribute < len(users) && users[*attribute] != "" {
			out = append(out, r.route(netip.PrefixFrom(addr, addr.BitLen()), view.RouteWorkload, users[*attribute]))
		}
		addr = addr.Next()
	}
	return out
}

// user is the node on which the addresses of an attribute are in use by workloads. Tunnel addresses have routes of their
// own kind, those of a warm pool are not in use, released ones no longer.
func user(a *api.AllocationAttribute) string {
	if a.ReleasedAt != nil || a.Owner[api.OwnerType] != "" {
		return ""
	}
	return a.Owner[api.OwnerNode]
}

// tunnelRoutes are the routes to the nodes with a tunnel address, where it is not inside a block of the node.
func (r *routes) tunnelRoutes(addr netip.Addr) []view.Route {
	var out []view.Route
	for node := range r.tunnelled[addr] {
		if r.ownerOf(addr) != node {
			out = append(out, r.route(netip.PrefixFrom(addr, addr.BitLen()), view.RouteTunnel, node))
		}
	}
	return out
}

// floatingRoutes is the route to a floating address: to the endpoint with the lowest address, as text, of those who claim it. There
// is none to an address of no pool, as nobody may draw nodes' or the world's addresses to himself, nor to one that IPAM has given
// to somebody.
func (r *routes) floatingRoutes(addr netip.Addr) []view.Route {
	dst := netip.PrefixFrom(addr, addr.BitLen())
	if r.given(addr) || r.poolOf(dst) == nil {
		return nil
	}
	var best *holder
	for _, h := range r.floating[addr] {
		if best == nil || cmp.Or(strings.Compare(h.internal.String(), best.internal.String()), strings.Compare(h.node, best.node)) < 0 {
			best = &h
		}
	}
	if best == nil {
		return nil
	}
	return []view.Route{r.route(dst, view.RouteWorkload, best.node)}
}

// given tells whether IPAM has given an address to somebody.
func (r *routes) given(addr netip.Addr) bool {
	for bits := addr.BitLen(); bits >= 0; bits-- {
		if r.lengths[addr.BitLen()<<8|bits] == 0 {
			continue
		}
		cidr, err := addr.Prefix(bits)
		if err != nil || r.blocks[cidr] == nil {
			continue
		}
		at := cidr.Addr()
		for _, attribute := range r.blocks[cidr].object.Spec.Allocations {
			if at == addr && attribute != nil {
				return true
			}
			at = at.Next()
		}
	}
	return false
}

// ownerOf is the node to whom the block that contains an address is routed.
func (r *routes) ownerOf(addr netip.Addr) string {
	for bits := addr.BitLen(); bits >= 0; bits-- {
		if r.lengths[addr.BitLen()<<8|bits] == 0 {
			continue
		}
		if cidr, err := addr.Prefix(bits); err == nil {
			if owner := r.owner(cidr); owner != "" {
				return owner
			}
		}
	}
	return ""
}

func (r *routes) route(dst netip.Prefix, kind view.RouteType, node string) view.Route {
	v := view.Route{Dst: dst, Type: kind, Node: node, Receive: []view.Tunnel{view.TunnelNone}}
	if p := r.poolOf(dst); p != nil {
		t, changing := r.transports[p.name]
		if !changing {
			t = p.transport
		}
		v.Pool, v.Send, v.CrossSubnet, v.Receive = p.name, t.Send, t.CrossSubnet, t.Receive
	}
	return v
}

// replace makes now the routes of a source.
func replace[K comparable](r *routes, sources map[K][]view.Route, source K, now []view.Route) {
	was := sources[source]
	for i := range was {
		k := was[i].Key()
		r.table[k] = slices.DeleteFunc(r.table[k], func(v *view.Route) bool { return v == &was[i] })
		r.dirtyKeys[k] = struct{}{}
	}
	delete(sources, source)
	if len(now) > 0 {
		sources[source] = now
	}
	for i := range now {
		k := now[i].Key()
		r.table[k] = append(r.table[k], &now[i])
		r.dirtyKeys[k] = struct{}{}
	}
}

// emit tells the views of one key. Where several things live at one place, the first type counts.
func (r *routes) emit(k view.Key) {
	var now *view.Route
	for _, v := range r.table[k] {
		if now == nil || v.Type < now.Type {
			now = v
		}
	}
	was, emitted := r.emitted[k]
	if now == nil {
		delete(r.table, k)
		delete(r.emitted, k)
		if emitted {
			r.out.allDrop(views.NodeView, k)
			if was.Type == view.RouteBlock {
				r.out.drop(bgpView(was.Node), k)
			}
		}
		return
	}
	if emitted && sameRoute(&was, now) {
		return
	}
	r.emitted[k] = *now
	entry := views.NewEntry(*now)
	r.out.all(views.NodeView, entry)
	switch {
	case now.Type == view.RouteBlock:
		r.out.put(bgpView(now.Node), entry)
	case emitted && was.Type == view.RouteBlock:
		r.out.drop(bgpView(was.Node), k)
	}
}

func sameRoute(a, b *view.Route) bool {
	return a.Dst == b.Dst && a.Type == b.Type && a.Node == b.Node && a.Pool == b.Pool && a.Send == b.Send &&
		a.CrossSubnet == b.CrossSubnet && slices.Equal(a.Receive, b.Receive)
}
