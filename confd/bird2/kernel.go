package bird2

import (
	"net/netip"

	"github.com/muslin-net/muslin/confd/render"
)

// Preferences of BIRD, beside those that it gives by itself: 10 to what the kernel had, 100 to BGP, 200 to static routes.
const (
	ownBlocks     = 200 // nobody else's path to a block of this node counts
	elevated      = 200 // of BGP: beats what the kernel has
	localElevated = 201 // a pod that has arrived here, whose old node still announces it
)

// kernel writes what is learned from the kernel, and what goes into it.
func (t *text) kernel(v6 bool) {
	f := family(v6)
	t.line(0, "")
	t.line(0, "# What felix has written is this node's: the blackholes of its blocks and the routes to its pods.")
	t.line(0, "filter from_kernel%s {", f)
	if own := set(t.c.OwnBlocks, v6, ""); own != "" {
		t.line(1, "if net ~ %s then preference = %d;", own, ownBlocks)
	}
	t.line(1, "if defined(krt_metric) && krt_metric > 0 && krt_metric < %d then preference = %d;", maxPreference-t.normal(v6), localElevated)
	t.line(1, "accept;")
	t.line(0, "}")
	t.line(0, "# Routes of tunnels are felix's, and services are nobody's: nodes reach them by rules of their own.")
	t.line(0, "filter to_kernel%s {", f)
	t.line(1, `if proto = "gateways%s" then accept;`, f)
	t.line(1, "if source != RTS_BGP then reject;")
	for _, list := range [][]netip.Prefix{t.c.Unrouted, t.pools(func(p render.Pool) bool { return p.Tunnelled })} {
		if s := set(list, v6, "+"); s != "" {
			t.line(1, "if net ~ %s then reject;", s)
		}
	}
	t.line(1, "if bgp_local_pref < %d then krt_metric = %d - bgp_local_pref;", maxPreference, maxPreference)
	t.line(1, "else krt_metric = 1;")
	t.line(1, "accept;")
	t.line(0, "}")
	t.line(0, "protocol kernel kernel%s {", f)
	t.line(1, "learn; persist; scan time 2; graceful restart; merge paths on limit 16; metric 0;")
	t.line(1, "ipv%s { import filter from_kernel%s; export filter to_kernel%s; };", f, f, f)
	t.line(0, "}")
}

// static writes the service addresses that this node announces, and the ways to peers behind a gateway.
func (t *text) static(v6 bool) {
	f := family(v6)
	t.line(0, "protocol static services%s {", f)
	t.line(1, "ipv%s;", f)
	for _, p := range t.c.Originate {
		if p.Addr().Is6() == v6 {
			t.line(1, "route %s blackhole;", p)
		}
	}
	t.line(0, "}")
	t.line(0, "protocol static gateways%s {", f)
	t.line(1, "ipv%s;", f)
	for _, r := range t.c.StaticRoutes {
		if r.Prefix.Addr().Is6() == v6 {
			t.line(1, "route %s via %s;", r.Prefix, r.Gateway)
		}
	}
	t.line(0, "}")
}
