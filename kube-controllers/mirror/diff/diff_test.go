package diff

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func profile(name, team string) *api.Profile {
	p := &api.Profile{}
	p.Name = name
	p.Spec.LabelsToApply = map[string]string{"team": team}
	return p
}

var rules = Rules[*api.Profile]{
	Owned: func(p *api.Profile) bool { return strings.HasPrefix(p.Name, "kns.") },
	Same:  func(s, w *api.Profile) bool { return maps.Equal(s.Spec.LabelsToApply, w.Spec.LabelsToApply) },
	Fill:  func(s, w *api.Profile) { s.Spec = w.Spec },
}

func names(list []*api.Profile) (out []string) {
	for _, p := range list {
		out = append(out, p.Name+"="+p.Spec.LabelsToApply["team"])
	}
	return out
}

func TestMake(t *testing.T) {
	stored := []*api.Profile{profile("kns.same", "a"), profile("kns.old", "a"), profile("kns.gone", "a"), profile("mine", "a")}
	stored[1].Annotations = map[string]string{"kept": "yes"}
	want := []*api.Profile{profile("kns.same", "a"), profile("kns.old", "b"), profile("kns.new", "a"), profile("mine", "b"), profile("kns.new", "z")}
	plan := Make(want, stored, rules)
	require.Equal(t, []string{"kns.new=a"}, names(plan.Create))
	require.Equal(t, []string{"kns.old=b"}, names(plan.Update))
	require.Equal(t, "yes", plan.Update[0].Annotations["kept"])
	require.Equal(t, []string{"kns.gone=a"}, names(plan.Delete))
	require.Equal(t, []string{"mine=b"}, names(plan.Foreign))
	require.Equal(t, "a", stored[1].Spec.LabelsToApply["team"], "what was given is not changed")

	only := rules
	only.OnlyUpdate = true
	plan = Make(want, stored, only)
	require.Empty(t, plan.Create)
	require.Empty(t, plan.Delete)
	require.Equal(t, []string{"kns.old=b"}, names(plan.Update))
}

// TestOneStepIsEnough does what is planned, in random worlds: then nothing is left to do, whatever the order of what is given.
func TestOneStepIsEnough(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	some := func(prefix string) (list []*api.Profile) {
		for i := range r.IntN(12) {
			list = append(list, profile(fmt.Sprintf("%s%d", prefix, i+r.IntN(3)*20), string(rune('a'+r.IntN(3)))))
		}
		return list
	}
	for range 300 {
		want := some("kns.")
		stored := map[string]*api.Profile{}
		for _, p := range append(some("kns."), some("own.")...) {
			stored[p.Name] = p
		}
		list := func() []*api.Profile {
			all := slices.Collect(maps.Values(stored)) // in no order
			return all
		}
		plan := Make(want, list(), rules)
		require.Equal(t, plan, Make(want, list(), rules))
		for _, p := range slices.Concat(plan.Create, plan.Update) {
			stored[p.Name] = p
		}
		for _, p := range plan.Delete {
			require.True(t, rules.Owned(p))
			delete(stored, p.Name)
		}
		require.Equal(t, Plan[*api.Profile]{}, Make(want, list(), rules))
	}
}
