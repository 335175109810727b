package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/internal/thorough"
)

var patterns sync.Map // of compiled expressions: most of the time would go into compiling them

func expression(pattern string) *regexp.Regexp {
	if re, ok := patterns.Load(pattern); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(pattern)
	patterns.Store(pattern, re)
	return re
}

// interpret runs statements on a route as an engine does. It is slow and obvious: the judge of Compile.
func interpret(p Program, list []Statement, rt Route, neighbor netip.Addr, fallback bool) (Route, NextHopMode, bool) {
	sets := map[string]Set{}
	for _, s := range p.Sets {
		sets[s.Name] = s
	}
	next := NextHopAuto
	for _, s := range list {
		if !holds(sets, s, rt, neighbor) {
			continue
		}
		rt.Communities = append(slices.Clone(rt.Communities), s.AddCommunities...)
		if s.RemoveLargeCommunities != "" {
			re := expression(s.RemoveLargeCommunities)
			rt.Communities = slices.DeleteFunc(rt.Communities, func(c Community) bool { return c.Large && re.MatchString(c.String()) })
		}
		if s.Preference != 0 {
			rt.Preference = s.Preference
		}
		for range s.PrependTimes {
			rt.ASPath = append([]uint32{s.Prepend}, rt.ASPath...)
		}
		if s.NextHop != NextHopAuto {
			next = s.NextHop
		}
		if s.Action != Continue {
			return rt, next, s.Action == Accept
		}
	}
	return rt, next, fallback
}

func holds(sets map[string]Set, s Statement, rt Route, neighbor netip.Addr) bool {
	for what, m := range ordered(s) {
		if m.Set == "" {
			continue
		}
		set, ok := sets[m.Set]
		if !ok {
			panic("statement " + s.Name + " looks at a set that is not there: " + m.Set)
		}
		found := false
		switch what {
		case "neighbor":
			found = neighbor.IsValid() && slices.ContainsFunc(set.Neighbors, func(p netip.Prefix) bool { return p.Contains(neighbor) })
		case "prefix":
			if set.Prefixes[0].Prefix.Addr().Is6() != rt.Prefix.Addr().Is6() {
				return false // another family, inverted or not
			}
			// Engines look at the longest range that contains the route, and at no other.
			best := PrefixRange{}
			for _, r := range set.Prefixes {
				if contains(r.Prefix, rt.Prefix) && (!best.Prefix.IsValid() || r.Prefix.Bits() > best.Prefix.Bits()) {
					best = r
				}
			}
			found = best.Prefix.IsValid() && best.Min <= rt.Prefix.Bits() && rt.Prefix.Bits() <= best.Max
		case "community", "tag":
			for _, pattern := range set.Patterns {
				re := expression(pattern)
				found = found || slices.ContainsFunc(rt.Communities, func(c Community) bool {
					return c.Large == (what == "tag") && re.MatchString(c.String())
				})
			}
		case "path":
			words := strings.Fields(strings.Trim(fmt.Sprint(rt.ASPath), "[]"))
			path := strings.Join(words, "_") + "_"
			found = strings.HasPrefix(path, strings.TrimPrefix(set.Patterns[0], "^"))
		}
		if found == m.Invert {
			return false
		}
	}
	return len(s.NextHops) == 0 || slices.Contains(s.NextHops, rt.NextHop)
}

// generator makes small random configurations and routes, from few values, so that things meet.
type generator struct{ *rand.Rand }

func pick[T any](g generator, list ...T) T { return list[g.IntN(len(list))] }

func (g generator) prefix(v6 bool) netip.Prefix {
	if v6 {
		return netip.MustParsePrefix(pick(g, "fd00:1::/48", "fd00:1:0:1::/64", "fd00:1:0:1::5/128", "fd00:2::/64", "::/0"))
	}
	return netip.MustParsePrefix(pick(g, "192.168.0.0/16", "192.168.1.0/26", "192.168.1.5/32", "192.168.2.0/26", "10.9.0.0/16", "10.9.1.0/24", "0.0.0.0/0"))
}

func (g generator) community() Community {
	c, err := bgp.ParseCommunity(pick(g, "65000:1", "65000:2", "1:2:3", "4:5:6"))
	if err != nil {
		panic(err)
	}
	return c
}

func (g generator) rule(v6 bool) bgp.Rule {
	r := bgp.Rule{Accept: g.IntN(2) == 0, SessionType: bgp.SessionType(g.IntN(3)), FromRemotePeers: g.IntN(4) == 0}
	if g.IntN(2) == 0 {
		r.Prefix, r.Operator = g.prefix(v6), bgp.Operator(1+g.IntN(4))
		if (r.Operator == bgp.In || r.Operator == bgp.NotIn) && g.IntN(2) == 0 {
			r.MinLength, r.MaxLength = pick(g, 0, 26, 32), pick(g, 0, 26, 32)
		}
	}
	if g.IntN(4) == 0 {
		c := g.community()
		r.Community = &c
	}
	if g.IntN(5) == 0 {
		r.ASPrefix = pick(g, []uint32{65001}, []uint32{65001, 65002})
	}
	if g.IntN(6) == 0 {
		r.Priority = pick[uint32](g, 512, 1024)
	}
	if g.IntN(6) == 0 {
		r.Interface = pick(g, "cali*", "eth?")
	}
	for r.Accept && len(r.Operations) < 3 && g.IntN(3) > 0 {
		c := g.community()
		r.Operations = append(r.Operations, pick(g,
			bgp.Operation{AddCommunity: &c}, bgp.Operation{Prepend: []uint32{64512, 64512, 7}}, bgp.Operation{SetPriority: 700}))
	}
	return r
}

func (g generator) rules(v6 bool) []bgp.Rule {
	var out []bgp.Rule
	for g.IntN(3) > 0 && len(out) < 4 {
		out = append(out, g.rule(v6))
	}
	return out
}

func (g generator) config() Config {
	c := Config{RouterID: netip.MustParseAddr("10.0.0.1"), ASNumber: 64512}
	if g.IntN(3) == 0 {
		c.ClusterID = netip.MustParseAddr("1.0.0.1")
	}
	for _, name := range []string{"f", "g"} {
		c.Filters = append(c.Filters, bgp.Filter{Name: name, Import4: g.rules(false), Export4: g.rules(false), Import6: g.rules(true), Export6: g.rules(true)})
	}
	for i := range 2 + g.IntN(4) {
		p := Peer{
			Name: fmt.Sprint("p", i), Type: PeerNode, Source: "x", ASNumber: pick[uint32](g, 64512, 64512, 65001, 65009),
			Address: netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", 2+i)), NextHop: NextHopMode(g.IntN(3)),
		}
		if g.IntN(4) == 0 {
			p.Address = netip.MustParseAddr(fmt.Sprintf("fd00:ffff::%d", 2+i))
		}
		if g.IntN(3) == 0 {
			p.Type, p.ReflectorClient = PeerMesh, g.IntN(3) > 0
		} else if g.IntN(4) == 0 {
			p.Type = PeerLocalWorkload
		}
		for _, name := range []string{"g", "missing", "f"} {
			if p.Type != PeerMesh && g.IntN(3) == 0 {
				p.Filters = append(p.Filters, name)
			}
		}
		c.Peers = append(c.Peers, p)
	}
	c.Export.Pools = []Pool{
		{Prefix: netip.MustParsePrefix("192.168.0.0/16"), DisableExport: g.IntN(4) == 0},
		{Prefix: netip.MustParsePrefix("fd00:1::/48")},
	}
	if g.IntN(2) == 0 {
		c.Export.OwnBlocks = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/26"), netip.MustParsePrefix("fd00:1:0:1::/64")}
	}
	if g.IntN(2) == 0 {
		c.Originate = []Origination{{Prefix: netip.MustParsePrefix("10.9.1.0/24")}}
		c.Export.ServiceRanges = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
		c.Export.Advertisements = []Origination{{Prefix: netip.MustParsePrefix("192.168.0.0/16"), Communities: []Community{g.community()}}}
	}
	c.Normalize()
	return c
}

func (g generator) route(v6 bool) Route {
	rt := Route{
		Prefix: g.prefix(v6), Preference: PreferenceOf(pick[uint32](g, 512, 1024)),
		NextHop: netip.MustParseAddr(pick(g, "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.7", "10.0.0.8")), ASPath: pick(g, nil, []uint32{65001}, []uint32{65001, 65002}, []uint32{65002}),
	}
	for g.IntN(2) == 0 {
		if c := g.community(); !slices.Contains(rt.Communities, c) {
			rt.Communities = append(rt.Communities, c)
		}
	}
	return rt
}

func visible(list []Community) []Community {
	return slices.DeleteFunc(slices.Clone(list), IsTag)
}

// TestCompiledIsDecided runs compiled programs beside the decisions they stand for, over random configurations and routes.
func TestCompiledIsDecided(t *testing.T) {
	for seed := range thorough.Rounds(10, 50) {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 1))}
		c := g.config()
		require.NoError(t, c.Validate())
		ctx := Context{LetOut: c.Exported()}
		if g.IntN(3) == 0 {
			ctx.Unreachable = []netip.Addr{netip.MustParseAddr("10.0.0.8")}
		}
		program, tagger, peers := c.Compile(ctx), c.Tagger(), c.Active()
		for range 10 {
			from := pick(g, peers...)
			to := pick(g, peers...)
			info := func(rt Route) string {
				return fmt.Sprintf("seed %d\n%v\nfrom %+v\nto %+v\n%v", seed, rt, from, to, program)
			}

			// A learned route: import, and then export to another peer.
			rt := g.route(from.Address.Is6())
			rt.Learned = true
			wantRoute, verdict := c.Import(&from, rt, ctx)
			got, _, accepted := interpret(program, program.Import, rt, from.Address, true)
			own := strings.HasPrefix(verdict.By, "own AS") || strings.HasPrefix(verdict.By, "own originator") // the engine's own checks
			if !own {
				require.Equal(t, verdict.Accept, accepted, "import: %s %s", verdict.By, info(rt))
			}
			if accepted && verdict.Accept {
				require.Equal(t, wantRoute.Preference, got.Preference, info(rt))
				require.ElementsMatch(t, wantRoute.Communities, visible(got.Communities), info(rt))
				require.Equal(t, wantRoute.ASPath, got.ASPath, info(rt))
				passedOn := !from.Internal(&c) || !to.Internal(&c) || c.Reflects()
				onMesh := from.Internal(&c) && to.Internal(&c) && (from.Switches(&c) || to.Switches(&c))
				if (passedOn || onMesh) && from.Address.Is6() == to.Address.Is6() {
					want := c.export(&to, wantRoute)
					if onMesh && !c.passes(&from, &to, rt.NextHop) { // elsewhere the engine itself keeps the rules of reflection
						want = Verdict{By: "split horizon"}
					}
					out, next, sent := interpret(program, program.Export, got, to.Address, false)
					require.Equal(t, want.Accept, sent, "export: %s %s", want.By, info(rt))
					if sent {
						require.True(t, slices.ContainsFunc(got.Communities, LetsOut), "it has no mark: %s", info(rt))
						wantNext := to.NextHop
						if wantNext == NextHopAuto && from.Type == PeerLocalWorkload {
							wantNext = NextHopSelf
						}
						require.Equal(t, wantNext, next, info(rt))
						require.Equal(t, visible(out.Communities), out.Communities, "tags leave: %s", info(rt))
					}
				}
			}

			// An own route.
			rt = g.route(to.Address.Is6())
			rt.NextHop, rt.ASPath = netip.Addr{}, nil
			rt.Interface = pick(g, "", "cali1", "tunl0", "eth0")
			want := c.ExportOwn(&to, rt)
			tagged := rt
			tagged.Communities = append(slices.Clone(rt.Communities), tagger.Tags(rt)...)
			tagged, _, accepted = interpret(program, program.Import, tagged, netip.Addr{}, true)
			require.True(t, accepted)
			out, _, sent := interpret(program, program.Export, tagged, to.Address, false)
			require.Equal(t, want.Accept, sent, "own: %s %s", want.By, info(rt))
			if sent {
				require.True(t, slices.ContainsFunc(tagged.Communities, LetsOut), "it has no mark: %s", info(rt))
				expected := apply(rt, want.Operations)
				for _, a := range c.Export.Advertisements {
					if !want.filter && contains(a.Prefix, rt.Prefix) {
						expected.Communities = append(expected.Communities, a.Communities...)
					}
				}
				require.ElementsMatch(t, expected.Communities, out.Communities, info(rt))
				require.Equal(t, expected.Preference, out.Preference, info(rt))
			}
		}
	}
}
