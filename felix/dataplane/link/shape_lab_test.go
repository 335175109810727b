//go:build lab

package link_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/link"
	"github.com/muslin-net/muslin/felix/desired"
)

func TestBandwidthIsBoundedInBothDirections(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()
	require.NoError(t, d.Wire(ctx, p))
	bounded := wanted
	bounded.Netns = pod.Path
	bounded.Ingress = desired.Shape{Rate: 10e6}
	bounded.Egress = desired.Shape{Rate: 20e6, Burst: 1 << 21, Peakrate: 40e6}
	tell(d, bounded)
	require.NoError(t, d.Apply(ctx))
	in := func() string { return node.Run(t, "tc qdisc show dev "+host) }
	out := func() string { return pod.Run(t, "tc qdisc show dev eth0") }
	require.Contains(t, in(), "tbf ca11: root refcnt")
	require.Contains(t, in(), "rate 10Mbit burst 128Kb")
	require.Contains(t, out(), "rate 20Mbit burst 256Kb peakrate 40Mbit")
	require.NoError(t, d.Check(ctx, p))

	// A restart finds all as it is wanted, and writes nothing.
	again, err := link.New()
	require.NoError(t, err)
	defer again.Close()
	tell(again, bounded)
	require.NoError(t, again.Apply(ctx))
	require.Zero(t, again.Writes())

	// Somebody takes a bound away: CHECK says so, and the audit puts it back.
	pod.Run(t, "tc qdisc del dev eth0 root")
	require.ErrorContains(t, d.Check(ctx, p), "what the pod sends is not bounded to 20000000 bit/s")
	d.Resync()
	require.NoError(t, d.Apply(ctx))
	require.NoError(t, d.Check(ctx, p))

	// Another rate, then none; a queue of somebody else's is let be.
	bounded.Ingress.Rate, bounded.Egress = 5e9, desired.Shape{}
	tell(d, bounded)
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, in(), "rate 5Gbit")
	require.NotContains(t, out(), "tbf")
	bounded.Ingress = desired.Shape{}
	tell(d, bounded)
	require.NoError(t, d.Apply(ctx))
	require.NotContains(t, in(), "tbf")
	node.Run(t, "tc qdisc add dev "+host+" root handle 1: tbf rate 1mbit burst 32kb latency 25ms")
	d.Resync()
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, in(), "tbf 1: root")
}

func TestRoutesInPlaceOfTheDefaultRoute(t *testing.T) {
	_, pod, d, p := start(t)
	p.Routes = prefixes("10.0.0.0/8", "172.16.0.0/12")
	require.NoError(t, d.Wire(context.Background(), p))
	routes := pod.Run(t, "ip route; ip -6 route")
	require.Contains(t, routes, "10.0.0.0/8 via 169.254.1.1 dev eth0")
	require.Contains(t, routes, "172.16.0.0/12 via 169.254.1.1 dev eth0")
	require.NotContains(t, routes, "default via 169.254.1.1")
	require.Contains(t, routes, "default via fe80::ecee:eeff:feee:eeee", "the other family names none")
	tell(d, wanted)
	require.NoError(t, d.Apply(context.Background()))
	require.NoError(t, d.Check(context.Background(), p))
}
