package speaker

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/bird/policy"
)

// StaticOrigin is the origin of paths that are no peer's but the configuration's.
const StaticOrigin = "static"

// fixed is what the configuration says about best paths, whatever peers say: routes to peers by gateways, and prefixes that
// no path is told of.
type fixed struct {
	static   map[netip.Prefix]Path
	unrouted []netip.Prefix
	engine   map[netip.Prefix][]Path // what the engine has for the prefixes that are spoken for here
}

// over is what readers are to see of a prefix. What the engine has is remembered where that is something else.
func (f *fixed) over(prefix netip.Prefix, paths []Path) []Path {
	path, static := f.static[prefix]
	if !static && !f.hides(prefix) {
		return paths
	}
	if len(paths) > 0 {
		f.engine[prefix] = paths
	} else {
		delete(f.engine, prefix)
	}
	if static {
		return []Path{path}
	}
	return nil
}

func (f *fixed) hides(prefix netip.Prefix) bool {
	return slices.ContainsFunc(f.unrouted, func(r netip.Prefix) bool {
		return r.Bits() <= prefix.Bits() && r.Contains(prefix.Addr())
	})
}

// fix makes these the static routes and the prefixes without a path.
func (t *bestTable) fix(routes []policy.StaticRoute, unrouted []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.fixed
	t.fixed = fixed{static: map[netip.Prefix]Path{}, unrouted: unrouted, engine: map[netip.Prefix][]Path{}}
	for _, r := range routes {
		t.fixed.static[r.Prefix] = Path{
			Prefix: r.Prefix, NextHop: r.Gateway, Origin: StaticOrigin, Preference: policy.PreferenceOf(policy.DefaultNormalPriority),
		}
	}
	engine := map[netip.Prefix][]Path{} // of all prefixes that may look different now
	for prefix, e := range t.entries.All() {
		if _, static := t.fixed.static[prefix]; static || t.fixed.hides(prefix) {
			engine[prefix] = e.all.list()
		}
	}
	for prefix := range t.fixed.static {
		if !t.entries.Has(prefix) {
			engine[prefix] = nil
		}
	}
	for prefix := range before.static {
		engine[prefix] = nil
	}
	maps.Copy(engine, before.engine)
	for prefix, paths := range engine {
		t.put(prefix, t.fixed.over(prefix, paths))
	}
}
