//go:build lab

package agent_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os/exec"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// tunl0 stands for the driver of IP-in-IP: a device that is there already, and what it is told of destinations, with the
// route there at that moment.
type tunl0 struct {
	t     *testing.T
	steps []string
}

func (e *tunl0) Update(_ desired.Delta[string, desired.IPIP], encaps desired.Delta[netip.Prefix, desired.Encap], _ desired.Delta[netip.Addr, desired.Decap]) {
	for p := range encaps.Set {
		e.steps = append(e.steps, "encapsulate "+p.String()+": "+sh(e.t, "ip route show "+p.String()))
	}
	for p := range encaps.Removed {
		e.steps = append(e.steps, "no more "+p.String()+": "+sh(e.t, "ip route show "+p.String()))
	}
}
func (e *tunl0) Apply(context.Context) error                       { return nil }
func (e *tunl0) Whole()                                            {}
func (e *tunl0) Resync()                                           {}
func (e *tunl0) Watch(ctx context.Context, _ dataplane.Wake) error { <-ctx.Done(); return nil }
func (e *tunl0) Entries() []dataplane.Entry                        { return nil }
func (e *tunl0) Counters() (map[string]uint64, error)              { return nil, nil }
func (e *tunl0) Close() error                                      { return nil }

func sh(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", command).CombinedOutput()
	require.NoError(t, err, "%s: %s", command, out)
	return string(out)
}

// inside runs functions in the network namespace that the caller is in, until the test ends. Without it, what a driver starts from a
// goroutine of its own would be the machine's.
func inside(t *testing.T) func(func() error) error {
	t.Helper()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(here) })
	return func(f func() error) error {
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
			if err := unix.Setns(here, unix.CLONE_NEWNET); err != nil {
				done <- err
				return
			}
			done <- f()
		}()
		return <-done
	}
}

// While a destination moves from one way to another there is no moment in which packets are led to tunl0 and not
// encapsulated there. Routes to pods have the priority that is asked for.
func TestDestinationsAreEncapsulatedAsLongAsRoutesLeadThere(t *testing.T) {
	runtime.LockOSThread() // not unlocked: the thread and its namespace end with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "this test needs root")
	sh(t, `for d in tunl0 eth0 caliweb; do ip link add $d type veth peer name far$d; ip link set $d up; ip link set far$d up; done
		ip addr add 10.30.0.1/24 dev eth0`)
	e := &tunl0{t: t}
	d, err := agent.OpenDrivers(e, inside(t), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer d.Close()
	d.Whole()
	d.RoutesWhole()
	block, node := netip.MustParsePrefix("10.77.2.0/26"), netip.MustParseAddr("10.30.0.56")
	through := desired.IPIPRoute(block, node, 1480, 80)
	direct := desired.DirectRoute(block, node, "eth0", 80)

	var c desired.Changes
	c.Encaps.Put(block, desired.Encap{Remote: node})
	c.Routes.Put(through.Key(), through)
	d.Update(c)
	require.NoError(t, d.Apply(t.Context()))
	require.Equal(t, []string{"encapsulate 10.77.2.0/26: "}, e.steps, "before the route is there")
	require.Contains(t, sh(t, "ip route"), "10.77.2.0/26 via 10.30.0.56 dev tunl0 proto 80 onlink")

	c = desired.Changes{}
	c.Encaps.Remove(block)
	c.Routes.Put(direct.Key(), direct)
	d.Update(c)
	require.Len(t, e.steps, 1)
	require.NoError(t, d.Apply(t.Context()))
	require.Len(t, e.steps, 2)
	require.Contains(t, e.steps[1], "no more 10.77.2.0/26: 10.77.2.0/26 via 10.30.0.56 dev eth0", "after the route left")

	// And back, in one turn with what was retired.
	c = desired.Changes{}
	c.Encaps.Remove(block)
	d.Update(c)
	c = desired.Changes{}
	c.Encaps.Put(block, desired.Encap{Remote: node})
	c.Routes.Put(through.Key(), through)
	d.Update(c)
	require.NoError(t, d.Apply(t.Context()))
	require.Len(t, e.steps, 3, "what is wanted again is not retired")

	pod := desired.WorkloadRoute(netip.MustParseAddr("10.77.1.9"), "caliweb", 3)
	pod.Metric = 77
	c = desired.Changes{}
	c.Routes.Put(pod.Key(), pod)
	d.Update(c)
	require.NoError(t, d.Apply(t.Context()))
	require.True(t, d.Programmed(pod.Dst))
	require.False(t, d.Programmed(block), "another node's")
	missing := state.Endpoint{Interface: "caliweb", Addresses: []netip.Addr{netip.MustParseAddr("10.77.1.9"), netip.MustParseAddr("10.77.1.10")}}
	require.ErrorContains(t, d.Holds(missing), "route 10.77.1.10 is not programmed")
	require.NotContains(t, d.Holds(missing).Error(), "route 10.77.1.9 ")
	slower := pod
	slower.Metric = 1024
	c = desired.Changes{}
	c.Routes.Remove(pod.Key())
	c.Routes.Put(slower.Key(), slower)
	d.Update(c)
	require.NoError(t, d.Apply(t.Context()))
	require.True(t, d.Programmed(pod.Dst))
	require.Equal(t, "10.77.1.9 dev caliweb scope link metric 1024 \n", sh(t, "ip route show 10.77.1.9"))
}
