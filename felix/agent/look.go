package agent

import (
	"context"
	"maps"

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
