package api

import (
	"slices"

	"github.com/muslin-net/muslin/api/selector"
)

// Closed returns what stands in for an object that is not valid and that came from where nobody validated it; nil if it is
// better handled as if it did not exist.
//
// A policy that cannot be understood fails closed: in its place, among the others, it denies everything to the endpoints that
// it selects, in the directions that it decides. Where its selector cannot be read either, that is every endpoint of its
// namespace; a cluster-wide policy then is for whom its other selectors select, and for nobody without any, since the slip of
// a pen must not close the whole cluster. A staged policy does nothing. A network set keeps the networks that can be read.
func Closed(o Object) Object {
	switch o := o.(type) {
	case *NetworkPolicy:
		c := o.DeepCopy()
		c.Spec.close()
		return onceValid(c)
	case *GlobalNetworkPolicy:
		c := o.DeepCopy()
		c.Spec.close()
		if c.Spec.PreDNAT {
			c.Spec.Egress, c.Spec.Types = nil, []PolicyType{Ingress}
		}
		if c.Spec.NamespaceSelector = readable(c.Spec.NamespaceSelector, true); c.Spec.Selector != o.Spec.Selector &&
			c.Spec.NamespaceSelector == "" && c.Spec.ServiceAccountSelector == "" {
			return nil
		}
		return onceValid(c)
	case *NetworkSet:
		c := o.DeepCopy()
		c.Spec.Nets = readableNets(c.Spec.Nets)
		return onceValid(c)
	case *GlobalNetworkSet:
		c := o.DeepCopy()
		c.Spec.Nets = readableNets(c.Spec.Nets)
		return onceValid(c)
	}
	return nil
}

// onceValid is the object if it is valid now.
func onceValid(o Object) Object {
	full := o.DeepCopyObject().(Object)
	full.Default()
	if full.Validate() != nil {
		return nil
	}
	return o
}

// close has the policy deny everything. What cannot be read of its selectors is left out.
func (s *NetworkPolicySpec) close() {
	s.Selector = readable(s.Selector, false)
	s.ServiceAccountSelector = readable(s.ServiceAccountSelector, false)
	s.Types = slices.DeleteFunc(s.Types, func(t PolicyType) bool { return t != Ingress && t != Egress })
	slices.Sort(s.Types)
	s.Types = slices.Compact(s.Types)
	if len(s.Types) == 0 {
		s.Types = []PolicyType{Ingress, Egress}
	}
	s.PerformanceHints = nil
	s.Ingress, s.Egress = []Rule{{Action: Deny}}, []Rule{{Action: Deny}}
	var c checker
	if labelName(&c, "tier", s.Tier); c.err() != nil {
		s.Tier = "" // the default tier
	}
}

// readable is the selector if it is one, "" otherwise.
func readable(text string, allowGlobal bool) string {
	s, err := selector.Parse(text)
	if err != nil || len(text) > maxSelector {
		return ""
	}
	if s.UsesGlobal() && (!allowGlobal || !s.IsGlobal()) {
		return ""
	}
	return text
}

func readableNets(nets []string) (out []string) {
	for _, n := range nets {
		var c checker
		if _, ok := c.net("nets", n, anyFamily); ok && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}
