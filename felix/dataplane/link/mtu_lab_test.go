//go:build lab

package link_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
)

// Both ends of a pod's pair follow, whichever way the MTU goes, and a full-size packet passes in both directions.
func TestBothEndsFollowTheMTU(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()
	err := d.Wire(ctx, p)
	require.NoError(t, err)
	follows := wanted
	follows.Netns = p.Netns
	last := 1400
	for _, mtu := range []int{1400, 1350, 1500, 1350, 9000} {
		follows.MTU = mtu
		tell(d, follows)
		before := pod.Run(t, "ip link show eth0")
		require.NoError(t, d.Apply(ctx))
		if mtu > last {
			require.Equal(t, before, pod.Run(t, "ip link show eth0"), "what is below comes first")
		}
		last = mtu
		require.NoError(t, d.Grow(ctx))
		size := fmt.Sprintf("mtu %d ", mtu)
		require.Contains(t, node.Run(t, "ip link show "+host), size)
		require.Contains(t, pod.Run(t, "ip link show eth0"), size)
		node.Run(t, "ip route replace 192.168.1.7/32 dev "+host+"; ip addr replace 10.9.9.9/32 dev lo")
		full := fmt.Sprintf("ping -c1 -i0.2 -w30 -M do -s %d ", mtu-28) // less the IP and ICMP headers
		node.Run(t, full+"192.168.1.7")
		pod.Run(t, full+"10.9.9.9")
		_, err := pod.Try(strings.Replace(full, fmt.Sprint(mtu-28), fmt.Sprint(mtu-27), 1) + "10.9.9.9")
		require.Error(t, err, "one byte more")
	}
	writes := d.Writes()
	d.Resync()
	require.NoError(t, errors.Join(d.Apply(ctx), d.Grow(ctx)))
	require.Equal(t, writes, d.Writes(), "nothing is written twice")
}

// A pod whose configuration names its MTU keeps its end; so does one whose namespace cannot be reached, with both.
func TestAPinnedMTUStays(t *testing.T) {
	node, pod, d, p := start(t)
	ctx := context.Background()
	err := d.Wire(ctx, p)
	require.NoError(t, err)
	tell(d, wanted)
	require.NoError(t, d.Apply(ctx))
	pod.Run(t, "ip link set eth0 mtu 1310")
	d.Resync()
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, pod.Run(t, "ip link show eth0"), "mtu 1310")

	unreachable := wanted
	unreachable.MTU, unreachable.Netns = 1300, "/nonexistent"
	tell(d, unreachable)
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, node.Run(t, "ip link show "+host), "mtu 1400")

	foreign := wanted
	foreign.MTU, foreign.Netns = 1300, labtest.New(t).Path
	tell(d, foreign)
	require.ErrorContains(t, d.Apply(ctx), foreign.Netns)
	require.Contains(t, node.Run(t, "ip link show "+host), "mtu 1400", "the host's end must not be the smaller one")
	foreign.Netns = p.Netns
	tell(d, foreign)
	require.NoError(t, d.Apply(ctx))
	require.Contains(t, pod.Run(t, "ip link show eth0"), "mtu 1300")
}
