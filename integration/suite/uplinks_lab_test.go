//go:build lab

package suite

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestUplinks: what a node encapsulates leaves by the interface that leads to the other node, though its address is on another, and
// goes another way when the routes do or the link fails. Connections go on.
func TestUplinks(t *testing.T) {
	c := up(t, "suite-uplinks", lab.ModeIPIP, nil)
	for i, node := range []string{"worker-1", "worker-2"} {
		c.sh(t, node, fmt.Sprintf("ip link add link ens5 name ens6 type macvlan mode bridge; ip addr add 10.40.0.%d/24 dev ens6; ip link set ens6 up", i+1))
	}
	first, second := c.capture(t, "worker-1", "ens5"), c.capture(t, "worker-1", "ens6")
	pods := []string{"pod-2", "pod-3"}
	to := func(pod string) func(lab.Packet) bool {
		a := firstOf(c.pod(t, pod), false)
		return func(p lab.Packet) bool { return p.Outgoing && p.Encap == lab.EncapIPIP && p.Inner.Dst == a }
	}
	talks := c.converse(t, [2]string{"pod-1", pods[0]}, [2]string{"pod-1", pods[1]})
	leave := func(when string, want ...string) {
		t.Helper()
		took := eventually(t, patience, func() string {
			second.packets(t, func(lab.Packet) bool { return false })
			second.seen = nil
			talks.goOn(t, when)
			got := slices.DeleteFunc(slices.Clone(pods), func(pod string) bool { return len(second.packets(t, to(pod))) == 0 })
			if !slices.Equal(got, want) {
				return fmt.Sprintf("%s packets to %s leave by ens6, and should to %s", when, strings.Join(got, " and "), strings.Join(want, " and "))
			}
			return ""
		})
		t.Logf("%s: seen within %s", when, took.Round(time.Millisecond))
	}
	route := fmt.Sprintf("ip route %%s %s via 10.40.0.2 dev ens6", c.node(t, "worker-2").Addresses[0])
	leave("at the beginning")
	for range 2 {
		c.sh(t, "worker-1", fmt.Sprintf(route, "add"))
		leave("with a route to worker-2 by ens6", "pod-2")
		c.sh(t, "worker-1", fmt.Sprintf(route, "del"))
		leave("without it")
	}
	c.sh(t, "worker-1", fmt.Sprintf(route, "add"))
	leave("with it again", "pod-2")
	c.sh(t, "worker-1", "ip link set ens6 down")
	first.packets(t, to("pod-2"))
	first.seen = nil
	talks.goOn(t, "without the link")
	require.NotEmpty(t, first.packets(t, to("pod-2")), "they leave by ens5")
}
