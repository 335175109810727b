package render_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
)

func TestChecksumOffload(t *testing.T) {
	for override, want := range map[string]desired.Offload{
		"":                            desired.OffloadAuto,
		"ChecksumOffloadBroken=true":  desired.OffloadOff,
		"ChecksumOffloadBroken=false": desired.OffloadOn,
		"ChecksumOffloadBroken=":      desired.OffloadAuto,
		"SNATFullyRandom=true":        desired.OffloadAuto,
		"SNATFullyRandom=true,ChecksumOffloadBroken=true,MASQFullyRandom=false": desired.OffloadOff,
	} {
		s := vxlanWorld(func(c *api.FelixConfigurationSpec) { c.FeatureDetectOverride = override }).state()
		for name, v := range render.TunnelState(s).VXLAN {
			require.Equal(t, want, v.Offload, "%s with %q", name, override)
		}
	}
}
