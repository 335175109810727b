// Package hold decides what keeps pools and tiers from going when somebody has deleted them, where Kubernetes waits for that
// (finalizers): a pool goes when no block of it belongs to anybody, a tier when there is no policy in it. It is pure.
package hold

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// ConditionReady is the condition of tiers that kubectl shows; its reasons follow.
const (
	ConditionReady    = "Ready"
	ReasonActive      = "Active"
	ReasonTerminating = "Terminating"
)

// Pools is what is remembered of pools between looks: since when they are being deleted. The zero value remembers nothing.
type Pools struct{ since map[string]time.Time }

// PoolPlan is what to do.
type PoolPlan struct {
	Write   []*api.IPPool // with their finalizer, or without
	Release []*api.IPPool // whose blocks are to be released
	Next    time.Duration // after which time to look again; 0 is when something changes
}

// Look decides, given all pools and the blocks that belong to somebody. A pool that is being deleted is left alone for settle:
// who gives addresses out has begun before it was.
func (m *Pools) Look(pools []*api.IPPool, owned []netip.Prefix, settle time.Duration, now time.Time) (plan PoolPlan) {
	since := map[string]time.Time{}
	for _, p := range pools {
		has := slices.Contains(p.Finalizers, api.IPPoolFinalizer)
		switch {
		case p.DeletionTimestamp == nil && !has:
			plan.Write = append(plan.Write, with(p, api.IPPoolFinalizer))
		case p.DeletionTimestamp != nil && has:
			id := p.Name + "/" + string(p.UID)
			began, before := m.since[id]
			if !before {
				began = now
			}
			since[id] = began
			left := settle - now.Sub(began)
			switch {
			case left > 0:
				if plan.Next == 0 || left < plan.Next {
					plan.Next = left
				}
			case slices.ContainsFunc(owned, p.Prefix().Overlaps):
				plan.Release = append(plan.Release, p)
			default:
				plan.Write = append(plan.Write, without(p, api.IPPoolFinalizer))
			}
		}
	}
	m.since = since
	byName := func(a, b *api.IPPool) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(plan.Write, byName)
	slices.SortFunc(plan.Release, byName)
	return plan
}

// namedMost is how many policies a message names; the rest it counts.
const namedMost = 3

// Tiers decides what to write of tiers, given all of them and the keys of the policies of each.
func Tiers(tiers []*api.Tier, policies map[string][]api.Key, now metav1.Time) (write []*api.Tier) {
	for _, t := range tiers {
		w := t.DeepCopy()
		ready := metav1.Condition{Type: ConditionReady, Status: metav1.ConditionTrue, Reason: ReasonActive, LastTransitionTime: now}
		in := policies[t.Name]
		switch {
		case t.DeletionTimestamp == nil:
			w = with(w, api.TierFinalizer)
		case len(in) == 0:
			w = without(w, api.TierFinalizer)
			fallthrough
		default:
			ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, ReasonTerminating, remaining(in)
		}
		changed := meta.SetStatusCondition(&w.Status.Conditions, ready)
		if changed || len(w.Finalizers) != len(t.Finalizers) {
			write = append(write, w)
		}
	}
	slices.SortFunc(write, func(a, b *api.Tier) int { return strings.Compare(a.Name, b.Name) })
	return write
}

func remaining(in []api.Key) string {
	var names []string
	for _, k := range in {
		names = append(names, k.String())
	}
	slices.Sort(names)
	more := ""
	if n := len(names) - namedMost; n > 0 {
		names, more = names[:namedMost], fmt.Sprintf(" and %d more", n)
	}
	if len(names) == 0 {
		return ""
	}
	return "the tier goes when its policies have: " + strings.Join(names, ", ") + more
}

type finalized[T any] interface {
	*T
	api.Object
}

// with is a copy that has a finalizer.
func with[T any, O finalized[T]](o O, finalizer string) O {
	c := o.DeepCopyObject().(O)
	if !slices.Contains(c.GetFinalizers(), finalizer) {
		c.SetFinalizers(append(c.GetFinalizers(), finalizer))
	}
	return c
}

// without is a copy that has it not.
func without[T any, O finalized[T]](o O, finalizer string) O {
	c := o.DeepCopyObject().(O)
	c.SetFinalizers(slices.DeleteFunc(c.GetFinalizers(), func(f string) bool { return f == finalizer }))
	return c
}
