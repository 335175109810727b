//go:build lab

package link_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/link"
)

// TestGatewaysOfASpeakingPod: the pod reaches its node by them.
func TestGatewaysOfASpeakingPod(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()
	require.NoError(t, d.Wire(ctx, p))
	speaking := wanted
	speaking.Gateway4, speaking.Gateway6 = netip.MustParseAddr("169.254.8.1"), netip.MustParseAddr("fd00:8::1")
	tell(d, speaking)
	require.NoError(t, d.Apply(ctx))
	has := func() string { return node.Run(t, "ip addr show dev "+host) }
	require.Contains(t, has(), "inet 169.254.8.1/32 scope link")
	require.Contains(t, has(), "inet6 fd00:8::1/128 scope global nodad deprecated")
	node.Run(t, "ip addr add 10.30.0.1/32 dev lo; ip -6 addr add fd30::1/128 dev lo nodad")
	four := p.Addresses[0].String()
	node.Run(t, "ip route replace "+four+" dev "+host+" scope link src 10.30.0.1; ip -6 route replace "+p.Addresses[1].String()+" dev "+host)
	pod.Run(t, "ping -c 1 -i 0.2 -w 30 169.254.8.1; ping -c 1 -i 0.2 -w 30 fd00:8::1")
	require.Contains(t, node.Run(t, "ip route get "+p.Addresses[1].String()), "src fd30::1")

	// A restart finds all as it is wanted, and writes nothing.
	again, err := link.New()
	require.NoError(t, err)
	defer again.Close()
	tell(again, speaking)
	require.NoError(t, again.Apply(ctx))
	require.Zero(t, again.Writes())

	// Somebody takes one away, and the audit puts it back; another one, and none.
	node.Run(t, "ip addr del 169.254.8.1/32 dev "+host)
	d.Resync()
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, has(), "inet 169.254.8.1/32")
	speaking.Gateway4 = netip.MustParseAddr("169.254.8.9")
	tell(d, speaking)
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, has(), "inet 169.254.8.9/32")
	require.NotContains(t, has(), "169.254.8.1/")
	tell(d, wanted)
	require.NoError(t, d.Apply(ctx))
	require.NotContains(t, has(), "169.254.8")
	require.NotContains(t, has(), "fd00:8::1")
	require.Contains(t, has(), "inet6 fe80::ecee:eeff:feee:eeee/64", "the kernel's own stays")
}
