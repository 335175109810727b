package desired

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

// judgePass is spec §3.3, read aloud: what a pass of a host endpoint says of a packet, which is left to what follows unless
// it is allowed or denied.
func judgePass(l view.PolicyList, policies map[string]view.Policy, pass HostPass, d Direction, p view.Protocol) string {
	if pass == Normal {
		if judge(l, policies, d, p) {
			return "allow"
		}
		return "deny"
	}
	for _, t := range l.Tiers {
		applies, decided := false, false
		for _, id := range policiesOf(t, d) {
			if policies[id].Staged || decided {
				continue
			}
			applies = true
			rules := policies[id].Ingress
			if d == Egress {
				rules = policies[id].Egress
			}
			for _, r := range rules {
				if r.Action == view.Log || r.Protocol != 0 && r.Protocol != p {
					continue
				}
				switch r.Action {
				case view.Allow:
					return "allow"
				case view.Deny:
					return "deny"
				}
				decided = true // passed to the next tier
				break
			}
		}
		if applies && !decided && pass == Forward && t.DefaultAction == view.Deny {
			return "deny"
		}
	}
	return "left"
}

func TestPassesDecideAsTheSpecSays(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 1_000 {
		policies, chains := map[string]view.Policy{}, map[string]Chain{}
		var ids []string
		for i := range 6 {
			id := fmt.Sprintf("%s/p%d", []string{"gnp", "sgnp"}[r.IntN(2)], i)
			rules := func() (out []view.Rule) {
				for range r.IntN(4) {
					out = append(out, view.Rule{Action: []view.Action{view.Allow, view.Deny, view.Log, view.Pass}[r.IntN(4)], Protocol: view.Protocol(r.IntN(4))})
				}
				return out
			}
			p := view.Policy{ID: id, Staged: Staged(id), Ingress: rules(), Egress: rules()}
			policies[id], ids = p, append(ids, id)
			for _, c := range PolicyChains(p, "") {
				chains[c.Name] = c
			}
		}
		some := func() (out []string) {
			for _, id := range ids {
				if r.IntN(3) == 0 {
					out = append(out, id)
				}
			}
			return out
		}
		l := view.PolicyList{ID: "l"}
		for i := range r.IntN(4) {
			l.Tiers = append(l.Tiers, view.TierPolicies{Name: fmt.Sprint("t", i), DefaultAction: []view.Action{view.Deny, view.Pass}[r.IntN(2)], Ingress: some(), Egress: some()})
		}
		for pass := Untracked; pass <= Normal; pass++ {
			for d, c := range PassChains(l, pass) {
				d := Direction(d)
				chains[c.Name] = c
				require.Equal(t, PassChain("l", pass, d), c.Name)
				require.Equal(t, PassLayers(pass, d), c.In)
				require.Equal(t, Judges(l, pass, d) || Counts(l, pass, d), len(c.Rules) > 0)
				require.False(t, Judges(l, pass, d) && Counts(l, pass, d))
				if Counts(l, pass, d) {
					require.False(t, c.Decides())
					require.Equal(t, stagedIn(l, d), jumps(c), "each is gone through, in order, and nothing else is done")
				}
				if pass == PreDNAT && d == Egress {
					require.Empty(t, c.Rules, "what leaves is translated already")
					continue
				}
				for p := range view.Protocol(5) {
					allowed, denied := evaluate(chains, c.Name, p)
					got := "left"
					if denied {
						got = "deny"
					} else if allowed {
						got = "allow"
					}
					require.Equal(t, judgePass(l, policies, pass, d, p), got, "%s %s of protocol %d under %+v with %+v", pass, d, p, l, policies)
				}
			}
		}
	}
}

// stagedIn are the chains of a list's policies in a direction, all of which are staged.
func stagedIn(l view.PolicyList, d Direction) (out []string) {
	for _, t := range l.Tiers {
		for _, id := range policiesOf(t, d) {
			out = append(out, PolicyChain(id, d))
		}
	}
	return out
}

// jumps are the targets of a chain that does nothing but call others, whatever the state of the evaluation is.
func jumps(c Chain) (out []string) {
	for _, r := range c.Rules {
		if r.Do != Jump || r.If != Always || r.Match != nil {
			return nil
		}
		out = append(out, r.Target)
	}
	return out
}

func TestFailsafeChains(t *testing.T) {
	in := []Failsafe{{Protocol: 6, Port: 22, Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	out := []Failsafe{{Protocol: 17, Port: 53, Nets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}}
	got := map[string][]string{}
	for _, c := range FailsafeChains(in, out) {
		lines := []string{fmt.Sprint("in ", c.In)}
		discovery := 0
		for _, r := range c.Rules {
			require.Equal(t, Allow, r.Do)
			require.Equal(t, Always, r.If)
			if r.Match.ICMP != nil {
				require.EqualValues(t, 6, r.Match.IPVersion)
				discovery++
				continue
			}
			lines = append(lines, fmt.Sprintf("%d from %v port %v to %v port %v", r.Match.Protocol, r.Match.Source.Nets, r.Match.Source.Ports, r.Match.Destination.Nets, r.Match.Destination.Ports))
		}
		require.Equal(t, 8, discovery)
		got[c.Name] = lines
	}
	assert.Equal(t, map[string][]string{
		FailsafeIn:  {"in 3", "6 from [10.0.0.0/8] port [] to [] port [{22 22}]"},
		FailsafeOut: {"in 3", "17 from [] port [] to [10.9.0.0/16] port [{53 53}]"},
		FailsafeUntrackedIn: {
			"in 4", "6 from [10.0.0.0/8] port [] to [] port [{22 22}]", "17 from [10.9.0.0/16] port [{53 53}] to [] port []",
		},
		FailsafeUntrackedOut: {
			"in 4", "17 from [] port [] to [10.9.0.0/16] port [{53 53}]", "6 from [] port [{22 22}] to [10.0.0.0/8] port []",
		},
	}, got)
}

func TestLayers(t *testing.T) {
	assert.True(t, Layers(0).Has(Filter), "where chains are unless they say otherwise")
	assert.False(t, Layers(0).Has(Mangle))
	assert.False(t, Raw.Has(Filter))
	assert.True(t, (Filter | Mangle).Has(Mangle))
	assert.True(t, Chain{Name: "a"}.Equal(Chain{Name: "a", In: Filter}))
	assert.False(t, Chain{Name: "a", In: Raw}.Equal(Chain{Name: "a", In: Filter}))
	for want, p := range map[Layers]view.Policy{Raw: {DoNotTrack: true}, Mangle: {PreDNAT: true}, Filter: {ApplyOnForward: true}} {
		for _, c := range PolicyChains(p, "") {
			assert.Equal(t, want, c.In)
		}
	}
}
