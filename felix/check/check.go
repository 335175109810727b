// Package check tries things out when somebody asks: how large packets to other nodes may be, and what the kernel of this
// node can do. It changes nothing that outlives the question, and decides nothing: felix goes by what its drivers and the
// state say.
package check

import (
	"context"
	"fmt"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
)

// Agent knows the ways to other nodes.
type Agent interface {
	// Paths are the ways of pods' packets to all other nodes.
	Paths(ctx context.Context) ([]render.Path, error)
	// TunnelPools names, for each tunnel that pools want, one of them.
	TunnelPools(ctx context.Context) (map[view.Tunnel]string, error)
	// Capabilities is what was found out about the kernel when felix started.
	Capabilities(ctx context.Context) (state.Capabilities, error)
}

// Checks carries out the checks.
type Checks struct {
	Agent     Agent
	Checksums func() error // see tunnel.Driver.Checksums
}

// words are how people call the ways between nodes.
var words = map[view.Tunnel]string{view.TunnelNone: "direct", view.TunnelIPIP: "ipip", view.TunnelVXLAN: "vxlan"}

// Paths sends packets of full size to other nodes, all if none is named, and tells each outcome as it comes.
func (c Checks) Paths(ctx context.Context, nodes []string, tell func(server.PathCheck) error) error {
	list, err := c.Agent.Paths(ctx)
	if err != nil {
		return err
	}
	for _, name := range nodes {
		if !slices.ContainsFunc(list, func(p render.Path) bool { return p.Node == name }) {
			return fmt.Errorf("there is no way to node %s: it is this one, or it does not exist, or it has no address of a family that has pools", name)
		}
	}
	list = slices.DeleteFunc(list, func(p render.Path) bool { return len(nodes) > 0 && !slices.Contains(nodes, p.Node) })
	return paths(ctx, list, func(r pathResult) error {
		out := server.PathCheck{Node: r.Node, Address: r.Remote, By: words[r.By], Wanted: r.Size, Fits: r.fits, RoundTrip: r.roundTrip}
		if r.err != nil {
			out.Error = r.err.Error()
		}
		return tell(out)
	})
}
