package desired

import (
	"fmt"
	"strings"

	"github.com/muslin-net/muslin/api/view"
)

// Direction is the direction of traffic as the endpoint sees it.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota // to the endpoint
	Egress                   // from the endpoint
)

// String is "ingress" or "egress".
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// DefaultLogPrefix is the default of Felix's LogPrefix.
const DefaultLogPrefix = "calico-packet"

// PolicyChain is the name of the chain with the rules of a policy or profile: "cali-pi-np/shop/web" (spec §4.5).
func PolicyChain(id string, d Direction) string {
	if name, ok := strings.CutPrefix(id, "pro/"); ok {
		return [...]string{Ingress: "cali-pri-", Egress: "cali-pro-"}[d] + name
	}
	return [...]string{Ingress: "cali-pi-", Egress: "cali-po-"}[d] + id
}

// ListChain is the name of the chain that evaluates a policy list: what Workload.Ingress and Workload.Egress name.
func ListChain(id string, d Direction) string {
	return [...]string{Ingress: "cali-tw-", Egress: "cali-fw-"}[d] + id
}

// OfPolicies tells whether a chain is one of PolicyChain or ListChain, which endpoints share.
func OfPolicies(chain string) bool {
	for _, d := range []Direction{Ingress, Egress} {
		for _, stem := range []string{PolicyChain("", d), PolicyChain("pro/", d), ListChain("", d)} {
			if strings.HasPrefix(chain, stem) {
				return true
			}
		}
	}
	return false
}

// DirectionOf is the direction of a chain of ListChain or PassChain.
func DirectionOf(chain string) Direction {
	if strings.HasPrefix(chain, ListChain("", Egress)) {
		return Egress
	}
	for p := Untracked; p <= Normal; p++ {
		if strings.HasPrefix(chain, PassChain("", p, Egress)) {
			return Egress
		}
	}
	return Ingress
}

// PolicyChains are the chains of a policy or profile, ingress first. logPrefix is the template of Felix's LogPrefix.
func PolicyChains(p view.Policy, logPrefix string) [2]Chain {
	return [2]Chain{
		Ingress: policyChain(p, Ingress, p.Ingress, logPrefix),
		Egress:  policyChain(p, Egress, p.Egress, logPrefix),
	}
}

// PolicyLayers are where the chains of a policy or profile are needed for the passes of its kind. (Egress chains that
// evaluate locally sent packets of a host endpoint are needed in Mangle too, see PassLayers.)
func PolicyLayers(p view.Policy) Layers {
	switch {
	case p.DoNotTrack:
		return Raw
	case p.PreDNAT:
		return Mangle
	}
	return Filter
}

func policyChain(p view.Policy, d Direction, rules []view.Rule, logPrefix string) Chain {
	c := Chain{Name: PolicyChain(p.ID, d), In: PolicyLayers(p), Rules: make([]Rule, 0, len(rules))}
	staged := Staged(p.ID)
	for i, r := range rules {
		rule := Rule{Match: matchOf(r), Comment: fmt.Sprintf("%s %s %d", p.ID, d, i)}
		switch {
		case staged && r.Action == view.Log:
			continue // it decides nothing even in force
		case staged:
			rule.Do = Count
		case r.Action == view.Allow:
			rule.Do = Allow
		case r.Action == view.Pass:
			rule.Do = Pass
		case r.Action == view.Log:
			rule.Do, rule.LogPrefix = Log, LogPrefix(logPrefix, p.Tier, p.ID)
		default: // an action nobody knows yet must not open anything
			rule.Do = Deny
		}
		c.Rules = append(c.Rules, rule)
	}
	return c
}

// LogPrefix fills in a log prefix template: %t tier, %k short kind, %n name, %p namespace/name (spec §3.1).
func LogPrefix(template, tier, policyID string) string {
	if template == "" {
		template = DefaultLogPrefix
	}
	kind, path, _ := strings.Cut(policyID, "/")
	name := path[strings.LastIndexByte(path, '/')+1:]
	return strings.NewReplacer("%t", tier, "%k", kind, "%n", name, "%p", path).Replace(template)
}

// OfStaged tells whether a chain is that of a staged policy. It decides nothing.
func OfStaged(chain string) bool {
	for _, d := range []Direction{Ingress, Egress} {
		if id, ok := strings.CutPrefix(chain, PolicyChain("", d)); ok && Staged(id) {
			return true
		}
	}
	return false
}

// Staged tells whether a policy id is of a staged kind, which is counted and never enforced.
func Staged(id string) bool {
	kind, _, _ := strings.Cut(id, "/")
	switch kind {
	case "snp", "sgnp", "sknp":
		return true
	}
	return false
}

// ListChains are the chains that evaluate a policy list for a workload, ingress first: tiers in order, then profiles,
// then drop (spec §3.1). A tier without enforced policies in a direction has no end there; its staged ones are counted.
func ListChains(l view.PolicyList) [2]Chain {
	return [2]Chain{Ingress: listChain(l, Ingress), Egress: listChain(l, Egress)}
}

func listChain(l view.PolicyList, d Direction) Chain {
	return Chain{Name: ListChain(l.ID, d), In: Filter, Rules: listRules(l, Normal, d)}
}

// listRules evaluate a list in a pass; workloads have the Normal one.
func listRules(l view.PolicyList, p HostPass, d Direction) (rules []Rule) {
	add := func(r Rule) { rules = append(rules, r) }
	add(Rule{Do: Reset, Comment: "start of policy"})
	for _, t := range l.Tiers {
		policies := policiesOf(t, d)
		if len(policies) == 0 {
			continue
		}
		if len(rules) > 1 {
			add(Rule{Do: Reset, Comment: "start of tier " + t.Name})
		}
		when := Always // nothing can have decided yet
		for _, id := range policies {
			add(Rule{If: when, Do: Jump, Target: PolicyChain(id, d), Comment: id})
			if Staged(id) {
				continue
			}
			add(Rule{If: IfAllowed, Do: Return, Comment: "allowed by " + id})
			when = IfUndecided
		}
		if when == IfUndecided && t.DefaultAction != view.Pass && p != Untracked && p != PreDNAT {
			add(Rule{If: IfUndecided, Do: Deny, Comment: "end of tier " + t.Name})
		}
	}
	if p != Normal {
		return rules
	}
	for _, id := range l.Profiles {
		add(Rule{Do: Jump, Target: PolicyChain(id, d), Comment: id})
		add(Rule{If: IfAllowed, Do: Return, Comment: "allowed by " + id})
	}
	add(Rule{Do: Deny, Comment: "no profile decided"})
	return rules
}

func policiesOf(t view.TierPolicies, d Direction) []string {
	if d == Egress {
		return t.Egress
	}
	return t.Ingress
}

func enforced(ids []string) []string {
	var out []string
	for _, id := range ids {
		if !Staged(id) {
			out = append(out, id)
		}
	}
	return out
}
