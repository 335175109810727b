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
		switch {
		case f.decides():
			return Decision{Allowed: f.action == view.Allow, By: f.policy, Rule: f.rule}, true
		case f.action != view.Pass && f.enforced && tier.DefaultAction != view.Pass && in.ends():
			return Decision{By: "end of tier " + tier.Name, Rule: EndOfAll}, true
		}
	}
	if in != Normal {
		return Decision{}, false
	}
	for _, id := range list.Profiles { // one by one: Pass leaves a profile for the next
		if f := first(v, []string{id}, egress, p); f.decides() {
			return Decision{Allowed: f.action == view.Allow, By: f.policy, Rule: f.rule}, true
		}
	}
	return Decision{By: "no policy and no profile allows it", Rule: EndOfAll}, true
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
			if r := &rules[i]; r.Action != view.Log && p.Matches(packet.Of(r), v) {
				return found{action: r.Action, policy: id, rule: i, enforced: true}
			}
		}
	}
	return f
}
