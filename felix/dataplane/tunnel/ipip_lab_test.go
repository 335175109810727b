//go:build lab

package tunnel_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
)

func TestProbesFindOutByDoingAndLeaveNothing(t *testing.T) {
	ns := labtest.Enter(t)
	require.NoError(t, tunnel.ProbeVXLAN())
	err := tunnel.ProbeIPIP()
	_, refused := ns.Try("ip link add probed type ipip local 192.0.2.3 remote 192.0.2.4")
	assert.Equal(t, refused != nil, err != nil, "the probe agrees with ip(8): %v", err)
	assert.NotContains(t, ns.Run(t, "ip link"), "probe.calico")
}

// TestIPIPDevice runs on kernels with and without the module: with it the device is set up, without it the error names
// the choices.
func TestIPIPDevice(t *testing.T) {
	ns := labtest.Enter(t)
	d, err := tunnel.NewIPIP()
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	ctx := context.Background()
	d.Whole()
	require.NoError(t, d.Apply(ctx), "not wanted and not there")

	var c desired.Delta[string, desired.IPIP]
	c.Put(desired.IPIPDevice, desired.IPIP{Name: desired.IPIPDevice, MTU: 1480, Address: netip.MustParseAddr("10.1.0.7")})
	d.Update(c)
	err = d.Apply(ctx)
	if lack, lacks := errors.AsType[*tunnel.CapabilityError](tunnel.ProbeIPIP()); lacks {
		require.ErrorAs(t, err, &lack)
		var object *dataplane.ObjectError
		require.ErrorAs(t, err, &object)
		assert.Equal(t, "tunl0", object.Key)
		assert.ErrorContains(t, err, "load the module ipip")
		assert.ErrorContains(t, err, "ipipMode")
		assert.Len(t, d.Entries(), 1)
	} else {
		require.NoError(t, err)
		assert.Contains(t, ns.Run(t, "ip addr show tunl0"), "inet 10.1.0.7/32")
		assert.Contains(t, ns.Run(t, "ip link show tunl0"), "mtu 1480")
		ns.Run(t, "ip addr add 10.1.0.8/32 dev tunl0")
		d.Resync()
		require.NoError(t, d.Apply(ctx))
		assert.NotContains(t, ns.Run(t, "ip addr show tunl0"), "10.1.0.8")
	}
	c.Remove(desired.IPIPDevice)
	d.Update(c)
	require.NoError(t, d.Apply(ctx))
	out, _ := ns.Try("ip addr show tunl0")
	assert.NotContains(t, out, "10.1.0.7")
}
