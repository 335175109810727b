package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/state"
)

// probeEvery is how often what the kernel lacks is tried again: modules can be loaded while felix runs.
const probeEvery = 30 * time.Second

// Probes find out, by doing, what the kernel can do.
type Probes struct {
	// VXLAN and IPIP return by which means the kernel has the tunnel, a *tunnel.CapabilityError if it does not, or another
	// error if that could not be found out.
	VXLAN, IPIP func() (detail string, err error)
	Log         *slog.Logger
}

// Probe tries everything.
func (p Probes) Probe() state.Capabilities { return p.retry(state.Capabilities{}) }

// retry tries what is not known to be there.
func (p Probes) retry(known state.Capabilities) state.Capabilities {
	c := state.Capabilities{Has: map[string]string{}, Lacks: map[string]string{}}
	maps.Copy(c.Has, known.Has)
	for name, try := range map[string]func() (string, error){api.FeatureVXLAN: p.VXLAN, api.FeatureIPIP: p.IPIP} {
		if _, has := c.Has[name]; has {
			continue
		}
		detail, err := try()
		if _, lacks := errors.AsType[*tunnel.CapabilityError](err); lacks {
			c.Lacks[name] = err.Error()
			continue
		}
		if err != nil { // the driver will say if it is missing indeed
			p.Log.Warn("what the kernel can do could not be found out; it is taken to be able", "capability", name, "error", err)
			detail = "not found out"
		}
		c.Has[name] = detail
	}
	return c
}

// Run tells what the kernel can do, and again when that changed, until ctx ends. first is what Probe found before.
func (p Probes) Run(ctx context.Context, first state.Capabilities, tell func(state.Capabilities)) error {
	tell(first)
	timer := time.NewTicker(probeEvery)
	defer timer.Stop()
	for known := first; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if len(known.Lacks) == 0 {
			continue
		}
		if now := p.retry(known); !maps.Equal(now.Lacks, known.Lacks) || !maps.Equal(now.Has, known.Has) {
			known = now
			tell(known)
		}
	}
}
