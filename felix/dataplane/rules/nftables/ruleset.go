package nftables

import "github.com/muslin-net/muslin/felix/desired"

// Ruleset is what the driver writes into the table of one family, as plain data: for those who want to know what rules
// mean without asking a kernel.
type Ruleset struct {
	Chains map[string]RulesetChain
	Sets   map[string]RulesetSet
}

// RulesetChain is a chain. A base chain has a hook of NF_INET_…, any other has Hook -1.
type RulesetChain struct {
	Hook     int
	Type     string // "filter", "nat"
	Priority int32
	Rules    []RulesetRule
}

// RulesetRule is a rule: its expressions as netlink attributes (NFTA_RULE_EXPRESSIONS), and its comment.
type RulesetRule struct {
	Expressions []byte
	Comment     string
}

// RulesetSet is a set or verdict map. Keys have KeyLen bytes; in an interval set the first key behind the element follows,
// or nothing if the element ends the key space.
type RulesetSet struct {
	KeyLen   int
	Interval bool
	Elements map[string]RulesetVerdict // zero verdicts unless it is a verdict map
}

// RulesetVerdict is a verdict: a code of NF_… or NFT_…, and the chain of a jump.
type RulesetVerdict struct {
	Code  int32
	Chain string
}

// Compile is what a driver that is told of this firewall, and of nothing before, writes: for IPv4 and for IPv6. It is pure.
func Compile(firewall desired.FirewallDelta) (ip4, ip6 Ruleset) {
	d := unconnected()
	d.Update(firewall)
	d.compile()
	return d.families[0].ruleset(), d.families[1].ruleset()
}

func (f *family) ruleset() Ruleset {
	out := Ruleset{Chains: map[string]RulesetChain{}, Sets: map[string]RulesetSet{}}
	for name, c := range f.chains.AllDesired() {
		rc := RulesetChain{Hook: -1}
		if c.base != nil {
			rc.Hook, rc.Type, rc.Priority = int(c.base.Hook), c.base.Type, c.base.Priority
		}
		for _, r := range c.rules {
			rc.Rules = append(rc.Rules, RulesetRule{Expressions: r.expr, Comment: r.comment})
		}
		out.Chains[name] = rc
	}
	for name, spec := range f.sets.AllDesired() {
		set := RulesetSet{KeyLen: int(spec.Key.Len), Interval: spec.Interval, Elements: map[string]RulesetVerdict{}}
		if e := f.elements[name]; e != nil {
			for key, v := range e.AllDesired() {
				set.Elements[key] = RulesetVerdict{Code: int32(v.Code), Chain: v.Chain}
			}
		}
		out.Sets[name] = set
	}
	return out
}
