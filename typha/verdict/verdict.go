// Package verdict says what policy does to a packet at an endpoint, and which rule decides, from what typha computed for the
// endpoint's node. It is pure: rule by rule, the way policies are written down and not the way they are programmed.
package verdict

import (
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
)

// View is what a node knows.
type View interface {
	packet.Sets
	List(id string) (view.PolicyList, bool)
	Policy(id string) (view.Policy, bool)
}

// EndOfAll is the number of the rule where none decided.
const EndOfAll = -1

// Decision is the outcome, and what decided.
type Decision struct {
	Allowed bool
	By      string // policy or profile id, or in words what else it was: the end of a tier or of all, a failsafe port, a setting
	Rule    int    // index within the policy, or EndOfAll
	// Open are the rules up to this one of which it cannot be said whether they match, since they ask for what is not known.
	Open []Open
}

// Open is a rule that asks for what is not known of a packet.
type Open struct {
	Policy string
	Rule   int
	Asks   string // "type of ICMP", "source port"
}

// Decide says what becomes of a packet from an endpoint (egress), or to it.
func Decide(v View, e view.WorkloadEndpoint, egress bool, p packet.Packet) Decision {
	if len(e.Incomplete) > 0 {
		return Decision{By: "the endpoint is closed: not known yet: " + e.Incomplete[0], Rule: EndOfAll}
	}
	d, _ := decide(v, e.PolicyList, Normal, egress, p)
	return d
}

// decide is the decision of a policy list in a pass. Only the normal pass always decides.
func decide(v View, id string, in Pass, egress bool, p packet.Packet) (d Decision, decides bool) {
	list, ok := v.List(id)
	if !ok {
		return Decision{By: "the endpoint is closed: its policies are not known yet", Rule: EndOfAll}, true
	}
	for _, tier := range list.Tiers {
		f := first(v, tierPolicies(tier, egress), egress, p)
		d.Open = append(d.Open, f.open...)
		switch {
		case f.decides():
			return Decision{f.action == view.Allow, f.policy, f.rule, d.Open}, true
		case f.action != view.Pass && f.enforced && tier.DefaultAction != view.Pass && in.ends():
			return Decision{false, "end of tier " + tier.Name, EndOfAll, d.Open}, true
		}
	}
	if in != Normal {
		return d, false
	}
	for _, id := range list.Profiles { // one by one: Pass leaves a profile for the next
		f := first(v, []string{id}, egress, p)
		if d.Open = append(d.Open, f.open...); f.decides() {
			return Decision{f.action == view.Allow, f.policy, f.rule, d.Open}, true
		}
	}
	return Decision{false, "no policy and no profile allows it", EndOfAll, d.Open}, true
}

func tierPolicies(t view.TierPolicies, egress bool) []string {
	if egress {
		return t.Egress
	}
	return t.Ingress
}

// found is the first rule that says something other than to log; its action is 0 if there is none.
type found struct {
	action   view.Action
	policy   string
	rule     int
	enforced bool // there is a policy at all that counts: staged ones do not
	open     []Open
}

func (f found) decides() bool { return f.action == view.Allow || f.action == view.Deny }

func first(v View, ids []string, egress bool, p packet.Packet) (f found) {
	for _, id := range ids {
		policy, ok := v.Policy(id)
		if !ok || policy.Staged {
			continue
		}
		f.enforced = true
		rules := policy.Ingress
		if egress {
			rules = policy.Egress
		}
		for i := range rules {
			r := &rules[i]
			if r.Action == view.Log {
				continue
			}
			if asks := p.Unknown(packet.Of(r), v); asks != "" {
				f.open = append(f.open, Open{id, i, asks})
			}
			if p.Matches(packet.Of(r), v) {
				return found{r.Action, id, i, true, f.open}
			}
		}
	}
	return f
}
