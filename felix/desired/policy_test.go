package desired

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

// run evaluates a chain as every backend must, for a packet of a protocol; a rule matches by protocol alone.
func run(chains map[string]Chain, name string, p view.Protocol) (allowed bool) {
	allow, denied := evaluate(chains, name, p)
	return allow && !denied
}

func evaluate(chains map[string]Chain, name string, p view.Protocol) (allow, denied bool) {
	var pass bool
	var eval func(name string)
	eval = func(name string) {
		for _, r := range chains[name].Rules {
			switch {
			case denied:
				return
			case r.If == IfUndecided && (allow || pass), r.If == IfAllowed && !allow:
				continue
			case r.Criteria().Protocol != 0 && r.Criteria().Protocol != p:
				continue
			}
			switch r.Do {
			case Allow:
				allow = true
				return
			case Pass:
				pass = true
				return
			case Return:
				return
			case Deny:
				denied = true
				return
			case Reset:
				allow, pass = false, false
			case Jump:
				eval(r.Target)
			}
		}
	}
	eval(name)
	return allow, denied
}

func TestStagedPoliciesDecideNothing(t *testing.T) {
	try := view.Policy{ID: "snp/s/try", Staged: true, Ingress: []view.Rule{{Action: view.Log}, {Action: view.Allow}, {Action: view.Deny}, {Action: view.Pass}}}
	var do []Action
	for _, r := range PolicyChains(try, "")[Ingress].Rules {
		do = append(do, r.Do)
		require.False(t, r.Decides())
	}
	require.Equal(t, []Action{Count, Count, Count}, do, "and nothing is logged")
	list := ListChains(view.PolicyList{ID: "l", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{try.ID, "np/s/web"}}}})[Ingress]
	decides := map[string]bool{}
	for _, r := range list.Rules {
		if r.Do == Jump {
			decides[r.Target] = r.Decides()
		}
	}
	require.Equal(t, map[string]bool{"cali-pi-snp/s/try": false, "cali-pi-np/s/web": true}, decides)
}

// judge is spec §3.1, read aloud.
func judge(l view.PolicyList, policies map[string]view.Policy, d Direction, p view.Protocol) (allowed bool) {
	rulesOf := func(id string) []view.Rule {
		if d == Egress {
			return policies[id].Egress
		}
		return policies[id].Ingress
	}
	first := func(id string) view.Action {
		for _, r := range rulesOf(id) {
			if r.Action != view.Log && (r.Protocol == 0 || r.Protocol == p) {
				return r.Action
			}
		}
		return 0
	}
tiers:
	for _, t := range l.Tiers {
		ids := t.Ingress
		if d == Egress {
			ids = t.Egress
		}
		applies := false
		for _, id := range ids {
			if policies[id].Staged {
				continue
			}
			applies = true
			switch first(id) {
			case view.Allow:
				return true
			case view.Deny:
				return false
			case view.Pass:
				continue tiers
			}
		}
		if applies && t.DefaultAction == view.Deny {
			return false
		}
	}
	for _, id := range l.Profiles {
		switch first(id) {
		case view.Allow:
			return true
		case view.Deny:
			return false
		}
	}
	return false
}

func TestChainsDecideAsTheSpecSays(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	pick := func(ids []string) (out []string) {
		for _, id := range ids {
			if r.IntN(3) == 0 {
				out = append(out, id)
			}
		}
		return out
	}
	for range 1_000 {
		policies, chains := map[string]view.Policy{}, map[string]Chain{}
		var ids, profiles []string
		add := func(id string, pass bool) {
			p := view.Policy{ID: id, Tier: "t", Staged: Staged(id)}
			rules := func() (out []view.Rule) {
				for range r.IntN(4) {
					a := []view.Action{view.Allow, view.Deny, view.Log, view.Pass}[r.IntN(4)]
					if a == view.Pass && !pass {
						a = view.Allow
					}
					out = append(out, view.Rule{Action: a, Protocol: view.Protocol(r.IntN(4))})
				}
				return out
			}
			p.Ingress, p.Egress = rules(), rules()
			policies[id] = p
			for _, c := range PolicyChains(p, "") {
				chains[c.Name] = c
			}
		}
		for i := range 6 {
			id := fmt.Sprintf("%s/ns/p%d", []string{"np", "snp"}[r.IntN(2)], i)
			ids = append(ids, id)
			add(id, true)
		}
		for i := range 3 {
			id := fmt.Sprintf("pro/p%d", i)
			profiles = append(profiles, id)
			add(id, false)
		}
		l := view.PolicyList{ID: "l", Profiles: pick(profiles)}
		for i := range r.IntN(4) {
			l.Tiers = append(l.Tiers, view.TierPolicies{
				Name: fmt.Sprint("t", i), DefaultAction: []view.Action{view.Deny, view.Pass}[r.IntN(2)], Ingress: pick(ids), Egress: pick(ids),
			})
		}
		for _, c := range ListChains(l) {
			chains[c.Name] = c
		}
		for _, d := range []Direction{Ingress, Egress} {
			for p := range view.Protocol(5) {
				require.Equal(t, judge(l, policies, d, p), run(chains, ListChain("l", d), p), "%s of protocol %d under %+v with %+v", d, p, l, policies)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for id, want := range map[string][2]string{
		"np/shop/web":      {"cali-pi-np/shop/web", "cali-po-np/shop/web"},
		"gnp/default.deny": {"cali-pi-gnp/default.deny", "cali-po-gnp/default.deny"},
		"pro/kns.shop":     {"cali-pri-kns.shop", "cali-pro-kns.shop"},
	} {
		assert.Equal(t, want, [2]string{PolicyChain(id, Ingress), PolicyChain(id, Egress)})
	}
	assert.Equal(t, "cali-tw-x", ListChain("x", Ingress))
	assert.Equal(t, "cali-fw-x", ListChain("x", Egress))
	for _, d := range []Direction{Ingress, Egress} {
		assert.Equal(t, d, DirectionOf(ListChain("x", d)))
		for p := Untracked; p <= Normal; p++ {
			assert.Equal(t, d, DirectionOf(PassChain("a-out-b", p, d)))
		}
	}
}

func TestLogPrefix(t *testing.T) {
	for _, c := range [][4]string{
		{"", "default", "np/shop/web", "calico-packet"},
		{"%t|%k|%n|%p", "default", "np/shop/web", "default|np|web|shop/web"},
		{"%t|%k|%n|%p", "security", "gnp/security.deny", "security|gnp|security.deny|security.deny"},
	} {
		assert.Equal(t, c[3], LogPrefix(c[0], c[1], c[2]))
	}
}

func TestUnknownActionDenies(t *testing.T) {
	c := PolicyChains(view.Policy{ID: "np/a/b", Ingress: []view.Rule{{Action: 99}}}, "")
	assert.Equal(t, Deny, c[Ingress].Rules[0].Do)
}
