// Package conditions judges pools, nodes and tiers: which pools may be allocated from, where a pool's mode asks for what a
// node's kernel lacks, and which policies do not make sense. It decides what the conditions of their status say; who writes them, and when, is for others.
//
// What is said is a function of the pools and nodes alone, so that several writers agree.
package conditions

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// Owned are the types of condition that are judged here. All others are somebody else's.
var owned = []string{api.ConditionAllocatable, api.ConditionDataplaneSupported, api.ConditionPoliciesValid}

// namedMost is how many nodes, or pools, a message names; the rest it counts.
const namedMost = 3

// Lack is that a pool's mode asks for what a node's kernel lacks.
type Lack struct {
	Node, Pool string
	// Feature is what the kernel lacks (api.FeatureIPIP, api.FeatureVXLAN), Wants the setting that asks for it, Instead
	// the setting to change otherwise.
	Feature, Wants, Instead string
}

// Find tells what a pool's mode asks for and the node's kernel lacks. A node that has not said what its kernel can do
// lacks nothing.
func Find(pool *api.IPPool, node *api.Node) (Lack, bool) {
	l := Lack{Node: node.Name, Pool: pool.Name}
	s := &pool.Spec
	switch {
	case s.IPIPMode != "" && s.IPIPMode != api.IPIPNever:
		l.Feature, l.Wants, l.Instead = api.FeatureIPIP, "ipipMode "+string(s.IPIPMode), "vxlanMode"
	case s.VXLANMode != "" && s.VXLANMode != api.VXLANNever:
		l.Feature, l.Wants, l.Instead = api.FeatureVXLAN, "vxlanMode "+string(s.VXLANMode), "ipipMode"
		if !pool.Prefix().Addr().Is4() {
			l.Instead = "vxlanMode: Never"
		}
	default:
		return Lack{}, false
	}
	if node.Status.Kernel == nil {
		return Lack{}, false
	}
	_, has := node.Status.Kernel.Features[l.Feature]
	return l, !has
}

// Error says what is lacking, and what to do.
func (l Lack) Error() string { return l.text("node " + l.Node) }

func (l Lack) text(nodes string) string {
	return fmt.Sprintf("%s: kernel has no %s; pool %s wants %s; load module %s, or set %s",
		nodes, l.Feature, l.Pool, l.Wants, l.Feature, l.Instead)
}

// Reason is the reason of a condition, in CamelCase.
func (l Lack) Reason() string {
	if l.Feature == api.FeatureVXLAN {
		return api.ReasonKernelLacksVXLAN
	}
	return api.ReasonKernelLacksIPIP
}

// OfPool returns the conditions of a pool. Nodes that have no address of the pool's family take no part in it.
func OfPool(pool *api.IPPool, pools []*api.IPPool, nodes []*api.Node) []metav1.Condition {
	out := []metav1.Condition{allocatable(pool, pools)}
	var lacking []string
	var lack Lack
	for _, n := range nodes {
		if l, lacks := Find(pool, n); lacks && takesPart(n, pool) {
			lack, lacking = l, append(lacking, n.Name)
		}
	}
	if len(lacking) > 0 {
		slices.Sort(lacking)
		out = append(out, unsupported(lack.Reason(), lack.text(some("node", lacking))))
	}
	return out
}

// OfNode returns the conditions of a node.
func OfNode(node *api.Node, pools []*api.IPPool) []metav1.Condition {
	var lacks []Lack
	for _, p := range pools {
		if l, is := Find(p, node); is && takesPart(node, p) {
			lacks = append(lacks, l)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	slices.SortFunc(lacks, func(a, b Lack) int {
		return cmp.Or(strings.Compare(a.Feature, b.Feature), strings.Compare(a.Pool, b.Pool))
	})
	var texts []string
	for i, l := range lacks {
		if i == namedMost {
			texts = append(texts, fmt.Sprintf("%d pools more", len(lacks)-i))
			break
		}
		texts = append(texts, l.Error())
	}
	return []metav1.Condition{unsupported(lacks[0].Reason(), strings.Join(texts, "; "))}
}

func unsupported(reason, message string) metav1.Condition {
	return metav1.Condition{Type: api.ConditionDataplaneSupported, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

// takesPart tells whether a node has an address of the pool's family.
func takesPart(n *api.Node, p *api.IPPool) bool {
	switch {
	case n.Spec.BGP == nil:
		return false
	case p.Prefix().Addr().Is4():
		return n.Spec.BGP.IPv4Address != ""
	}
	return n.Spec.BGP.IPv6Address != ""
}

// some names things, and counts those it does not name.
func some(what string, names []string) string {
	switch n := len(names); {
	case n == 1:
		return what + " " + names[0]
	case n <= namedMost:
		return what + "s " + strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	default:
		return fmt.Sprintf("%ss %s and %d more", what, strings.Join(names[:namedMost], ", "), n-namedMost)
	}
}

// allocatable judges whether addresses may be taken from a pool.
func allocatable(pool *api.IPPool, pools []*api.IPPool) metav1.Condition {
	no := func(reason, message string) metav1.Condition {
		return metav1.Condition{Type: api.ConditionAllocatable, Status: metav1.ConditionFalse, Reason: reason, Message: message}
	}
	if pool.DeletionTimestamp != nil {
		return no(api.ReasonTerminating, "the pool is being deleted")
	}
	for _, other := range pools {
		if other.Name != pool.Name && older(other, pool) && other.DeletionTimestamp == nil && other.Prefix().Overlaps(pool.Prefix()) {
			return no(api.ReasonCIDROverlap, fmt.Sprintf("cidr %s overlaps the older pool %s, %s; delete one of the two", pool.Spec.CIDR, other.Name, other.Spec.CIDR))
		}
	}
	if pool.Spec.Disabled {
		return no(api.ReasonPoolDisabled, "spec.disabled is true")
	}
	return metav1.Condition{Type: api.ConditionAllocatable, Status: metav1.ConditionTrue, Reason: api.ReasonOK}
}

// older orders pools by age, and by name where that is equal.
func older(a, b *api.IPPool) bool {
	if x, y := a.CreationTimestamp, b.CreationTimestamp; !x.Equal(&y) {
		return x.Before(&y)
	}
	return a.Name < b.Name
}

// Apply returns the conditions with those that are judged here replaced by the given ones. A condition that says what it
// said keeps the time of its last transition; now is that of the others.
func Apply(have, given []metav1.Condition, now metav1.Time) []metav1.Condition {
	return replace(have, given, now, func(kind string) bool { return slices.Contains(owned, kind) })
}

// Report is the same for what a node says of itself: it replaces all but those that are judged here, or told by Connected or
// Peers.
func Report(have, given []metav1.Condition, now metav1.Time) []metav1.Condition {
	theirs := func(kind string) bool { return Reportable(kind, false) }
	given = slices.DeleteFunc(slices.Clone(given), func(c metav1.Condition) bool { return !theirs(c.Type) })
	return replace(have, given, now, theirs)
}

// Reportable tells whether a condition is a node's felix to report, or beside it its confd's.
func Reportable(kind string, beside bool) bool {
	if beside {
		return kind == api.ConditionBGPPeersReady
	}
	return !slices.Contains(owned, kind) && kind != api.ConditionConnected && kind != api.ConditionBGPPeersReady
}

// Connected is the same for whether a node is connected.
func Connected(have []metav1.Condition, is bool, message string, now metav1.Time) []metav1.Condition {
	c := metav1.Condition{Type: api.ConditionConnected, Status: metav1.ConditionFalse, Reason: api.ReasonNotConnected, Message: message}
	if is {
		c.Status, c.Reason = metav1.ConditionTrue, api.ReasonConnected
	}
	return replace(have, []metav1.Condition{c}, now, func(kind string) bool { return kind == api.ConditionConnected })
}

// Peers is the same for what a node's confd says of its BGP sessions. Conditions of other types are not its to tell.
func Peers(have, given []metav1.Condition, now metav1.Time) []metav1.Condition {
	theirs := func(kind string) bool { return Reportable(kind, true) }
	given = slices.DeleteFunc(slices.Clone(given), func(c metav1.Condition) bool { return !theirs(c.Type) })
	return replace(have, given, now, theirs)
}

// replace replaces the conditions of some types. What comes out is in the order of types.
func replace(have, given []metav1.Condition, now metav1.Time, ours func(kind string) bool) []metav1.Condition {
	var out []metav1.Condition
	for _, c := range have {
		if !ours(c.Type) {
			out = append(out, c)
		}
	}
	for _, c := range given {
		c.LastTransitionTime = now
		if i := slices.IndexFunc(have, func(h metav1.Condition) bool { return h.Type == c.Type && h.Status == c.Status }); i >= 0 {
			c.LastTransitionTime = have[i].LastTransitionTime
		}
		if i := slices.IndexFunc(out, func(o metav1.Condition) bool { return o.Type == c.Type }); i >= 0 {
			out[i] = c // said twice: the last word counts
			continue
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b metav1.Condition) int { return strings.Compare(a.Type, b.Type) })
	return out
}
