package agent

import (
	"context"

	"github.com/muslin-net/muslin/felix/scope"
	"github.com/muslin-net/muslin/felix/state"
)

// Follow keeps a follower informed until stop is called: wake is called by the loop, and must not block, when the follower
// may have something to tell. From then on the follower is the loop's: only Next may be used with it.
func (a *Agent) Follow(ctx context.Context, f *scope.Follower, wake func()) (stop func()) {
	a.post(ctx, event{do: func(*state.State) state.Section {
		a.followers[f] = wake
		return 0
	}})
	return func() {
		a.post(context.WithoutCancel(ctx), event{do: func(*state.State) state.Section {
			delete(a.followers, f)
			return 0
		}})
	}
}

// Next is what a follower is to tell now.
func (a *Agent) Next(ctx context.Context, f *scope.Follower) (scope.Update, error) {
	return look(ctx, a, f.Next)
}

// Deciders are the policies and profiles that may decide on what a pod receives, with the number of their ingress rules.
func (a *Agent) Deciders(ctx context.Context, pod scope.Pod) (map[string]int, error) {
	return look(ctx, a, func(s *state.State) map[string]int { return scope.Deciders(s, pod) })
}

// tellFollowers tells what changed of policy.
func (a *Agent) tellFollowers() {
	changed := a.state.FirewallChanged()
	for f, wake := range a.followers {
		if f.Note(changed) {
			wake()
		}
	}
}

// tellPolicySync tells where pods' sockets are.
func (a *Agent) tellPolicySync() {
	if home := a.state.Config.Spec.PolicySyncPathPrefix; home != a.policySync && a.events.PolicySync != nil {
		a.policySync = home
		a.events.PolicySync(home)
	}
}
