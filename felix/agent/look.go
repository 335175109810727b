package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
)

// Paths are the ways of pods' packets to the other nodes.
func (a *Agent) Paths(ctx context.Context) ([]render.Path, error) { return look(ctx, a, render.Paths) }

// TunnelPools names, for each tunnel that pools want, one of them.
func (a *Agent) TunnelPools(ctx context.Context) (map[view.Tunnel]string, error) {
	return look(ctx, a, render.TunnelPools)
}

// Capabilities is what was found out about the kernel.
func (a *Agent) Capabilities(ctx context.Context) (state.Capabilities, error) {
	return look(ctx, a, func(s *state.State) state.Capabilities {
		return state.Capabilities{Has: maps.Clone(s.Capabilities.Has), Lacks: maps.Clone(s.Capabilities.Lacks)}
	})
}

// podPatience is how long a pod of which typha will tell is waited for: kubelet may have seen it first.
const podPatience = 2 * time.Second

// FollowsPods says whether the typha that serves this node tells of each pod before it is made.
func (a *Agent) FollowsPods(is bool) { a.podsFollow.Store(is) }

// Asked is what typha says that the pod of an endpoint asks for, by the pod's UID: the one that had its name before may have
// asked for something else. A pod that typha is to tell of and has not yet is waited for a while. Nil: it asks for nothing, or
// typha does not know it.
func (a *Agent) Asked(ctx context.Context, e state.Endpoint) (*view.AddressRequest, error) {
	if e.UID == "" {
		return nil, nil
	}
	patient, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	told := make(chan *view.AddressRequest, 1)
	tell := func(s *state.State) bool {
		request, known := requestOf(s, e)
		if known {
			told <- request
		}
		return known
	}
	a.post(ctx, event{do: func(s *state.State) state.Section {
		switch {
		case tell(s):
		case a.podsFollow.Load():
			a.askers = append(a.askers, asker{tell: tell, ctx: patient})
		default:
			told <- nil
		}
		return 0
	}})
	request, err := wait(patient, a, told)
	if err != nil && patient.Err() != nil && ctx.Err() == nil {
		a.log.Warn("typha has not told of a pod in time: it is made without what it asks for by annotations, and stays closed until typha has",
			"endpoint", e.ID, "uid", e.UID, "waited", podPatience)
		return nil, nil
	}
	return request, err
}

// asker waits for typha to tell of a pod.
type asker struct {
	tell func(*state.State) bool // tells whoever waits, if it is known
	ctx  context.Context         //nolint:containedctx // it bounds this one wait, and is how the loop knows that nobody waits any more
}

// Foreseen returns when the policy of an endpoint that is not there yet is known, or when ctx ends.
func (a *Agent) Foreseen(ctx context.Context, e state.Endpoint) {
	known := make(chan struct{}, 1)
	tell := func(s *state.State) bool {
		if len(s.Closed(e)) > 0 {
			return false
		}
		known <- struct{}{}
		return true
	}
	a.post(ctx, event{do: func(s *state.State) state.Section {
		if !tell(s) {
			a.askers = append(a.askers, asker{tell: tell, ctx: ctx})
		}
		return 0
	}})
	_, _ = wait(ctx, a, known) // whoever waits goes on without
}

func requestOf(s *state.State, e state.Endpoint) (request *view.AddressRequest, known bool) {
	w, ok := s.Workloads[e.ID.String()]
	if !ok || w.UID != e.UID {
		return nil, false
	}
	return w.Request, true
}

// tellAskers answers those whose pod is known by now, and forgets those who no longer wait.
func (a *Agent) tellAskers() {
	a.askers = slices.DeleteFunc(a.askers, func(w asker) bool {
		return w.ctx.Err() != nil || w.tell(a.state)
	})
}

// PodCIDRs are the ranges that Kubernetes gave to the node.
func (a *Agent) PodCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	return look(ctx, a, func(s *state.State) []netip.Prefix { return s.Nodes[s.Node].PodCIDRs })
}
