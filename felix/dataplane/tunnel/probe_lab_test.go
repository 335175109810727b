//go:build lab

package tunnel_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
)

func TestTheProbeFindsOutByDoingAndLeavesNothing(t *testing.T) {
	ns := labtest.Enter(t)
	require.NoError(t, tunnel.ProbeVXLAN())
	assert.NotContains(t, ns.Run(t, "ip link"), "probe.calico")
}
