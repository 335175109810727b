//go:build lab

package agent_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/host"
	"github.com/muslin-net/muslin/felix/state"
)

// patience is for what must come: a busy machine rests for seconds.
const patience = 30 * time.Second

// reboot is a node that has just started: felix runs with what it has on disk, and there are no links yet.
type reboot struct {
	*agent.Agent
	t       *testing.T
	outside string // the name of the namespace of a machine outside
	ready   chan []string
}

func newReboot(t *testing.T, saved *view.Batch) *reboot {
	runtime.LockOSThread() // not unlocked: the thread and its namespace end with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "this test needs root")
	r := &reboot{t: t, outside: fmt.Sprintf("reboot-%d-%d", os.Getpid(), unix.Gettid()), ready: make(chan []string, 16)}
	sh(t, "ip link set lo up; mkdir -p /run/netns; ip netns add "+r.outside)
	t.Cleanup(func() { sh(t, "ip netns del "+r.outside) })
	log := slog.New(slog.DiscardHandler)
	in := inside(t)
	d, err := agent.OpenDrivers(&tunl0{t: t}, in, log)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	r.Agent = agent.New("worker-1", d, &announcer{}, nil, agent.Events{
		LocalChanged: func([]state.Endpoint) {}, MTU: func(int) {}, Ready: func(why []string) { r.ready <- why },
	}, log)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	within := func(run func() error) {
		go func() { ended <- in(run) }()
	}
	within(func() error { return r.Run(ctx) })
	within(func() error { return d.Watch(ctx, r.Wake) })
	within(func() error { return host.New(log).Run(ctx, func(h state.Host) { r.SetHost(ctx, h) }) })
	t.Cleanup(func() {
		stop()
		for range cap(ended) {
			require.NoError(t, <-ended)
		}
	})
	if saved != nil {
		r.SetBearers(ctx, map[string][]string{"hep": {"eth0"}})
		r.Batch(ctx, *saved, nil)
	}
	return r
}

func (r *reboot) awaitReady() {
	r.t.Helper()
	for why := range r.ready {
		if len(why) == 0 {
			return
		}
	}
}

// linkUp lets the node's network appear.
func (r *reboot) linkUp() {
	sh(r.t, "ip link add eth0 type veth peer name eth0 netns "+r.outside+`
		ip netns exec `+r.outside+` sh -ec 'ip addr add 192.168.9.2/24 dev eth0; ip link set eth0 up'
		ip addr add 192.168.9.1/24 dev eth0; ip link set eth0 up`)
}

// fromOutside runs f in the other namespace.
func (r *reboot) fromOutside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked
		fd, err := unix.Open("/run/netns/"+r.outside, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (r *reboot) reaches(port int, within time.Duration) bool {
	return r.fromOutside(func() error {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("192.168.9.1:%d", port), within)
		if err == nil {
			_ = c.Close()
		}
		return err
	}) == nil
}

func (r *reboot) listen(ports ...int) {
	for _, p := range ports {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", p))
		require.NoError(r.t, err)
		r.t.Cleanup(func() { _ = l.Close() })
	}
}

// flood sends datagrams at the node, whether there is a way or not, and counts those that arrive.
func (r *reboot) flood() (arrived *atomic.Int64) {
	arrived = &atomic.Int64{}
	in, err := net.ListenPacket("udp4", ":5000")
	require.NoError(r.t, err)
	go func() {
		b := make([]byte, 8)
		for {
			if _, _, err := in.ReadFrom(b); err != nil {
				return
			}
			arrived.Add(1)
		}
	}()
	ctx, stop := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.fromOutside(func() error {
			out, err := net.ListenPacket("udp4", ":0")
			if err != nil {
				return err
			}
			defer out.Close()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				_, _ = out.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv4(192, 168, 9, 1), Port: 5000})
				select {
				case <-tick.C:
				case <-ctx.Done():
					return nil
				}
			}
		})
	}()
	r.t.Cleanup(func() { stop(); require.NoError(r.t, <-ended); _ = in.Close() })
	return arrived
}

// After a reboot, with typha away, host endpoints are protected from the saved view before links come up, by either rule driver.
func TestHostEndpointsAreProtectedBeforeLinksComeUp(t *testing.T) {
	for driver, mode := range map[string]string{"nftables": "Enabled", "iptables": "Disabled"} {
		t.Run(driver, func(t *testing.T) { protectedBeforeLinksComeUp(t, driver, mode) })
	}
}

func protectedBeforeLinksComeUp(t *testing.T, driver, mode string) {
	for name, e := range map[string]view.HostEndpoint{
		"named":          {Name: "hep", Interface: "eth0", Normal: "l1"},
		"all interfaces": {Name: "hep", Interface: "*", Normal: "l1"},
		"by address":     {Name: "hep", ExpectedIPs: []netip.Addr{netip.MustParseAddr("192.168.9.1")}, Normal: "l1"},
	} {
		t.Run(name, func(t *testing.T) {
			saved := hosted(e)
			config := &api.FelixConfiguration{Spec: *api.EffectiveFelix()}
			config.Name, config.Spec.NFTablesMode = "default", &mode
			saved.Updates = append(saved.Updates, view.Resource{Object: config})
			r := newReboot(t, &saved)
			r.awaitReady()
			tables := sh(t, "nft list tables")
			require.Equal(t, driver == "nftables", strings.Contains(tables, "table ip calico"), tables)
			r.listen(22, 80, 81)
			arrived := r.flood()
			r.linkUp()
			require.True(t, r.reaches(80, patience), "allowed")
			require.True(t, r.reaches(22, patience), "failsafe")
			require.False(t, r.reaches(81, 300*time.Millisecond), "end of tier")
			require.Zero(t, arrived.Load(), "from the first packet on")
		})
	}
}

// hosted is a view with a host endpoint that serves port 80 only, and may go anywhere.
func hosted(e view.HostEndpoint) view.Batch {
	return view.Batch{InSync: true, Updates: []view.Item{
		view.Node{Name: "worker-1", IPv4: netip.MustParsePrefix("192.168.9.1/24")},
		view.Policy{ID: "gnp/only-80", Tier: "default", Ingress: []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}}}}}},
		view.Policy{ID: "pro/all", Egress: []view.Rule{{Action: view.Allow}}},
		view.PolicyList{ID: "l1", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"gnp/only-80"}}}, Profiles: []string{"pro/all"}},
		e,
	}}
}

// connect makes a TCP connection from the node to a machine outside, or from there, and returns the node's end first.
func (r *reboot) connect(inward bool, port uint16) (here, there net.Conn) {
	var l net.Listener
	dial := func() (err error) {
		here, err = net.DialTimeout("tcp", l.Addr().String(), patience)
		return err
	}
	address := netip.AddrPortFrom(netip.MustParseAddr("192.168.9.2"), port)
	listen := func() (err error) { l, err = net.Listen("tcp4", address.String()); return err }
	if inward {
		address = netip.AddrPortFrom(netip.MustParseAddr("192.168.9.1"), port)
		require.NoError(r.t, listen())
		require.NoError(r.t, r.fromOutside(dial))
	} else {
		require.NoError(r.t, r.fromOutside(listen))
		require.NoError(r.t, dial())
	}
	there, err := l.Accept()
	require.NoError(r.t, err)
	if inward {
		here, there = there, here
	}
	r.t.Cleanup(func() { _ = l.Close(); _ = here.Close(); _ = there.Close() })
	return here, there
}

// hears tells whether what one end says arrives at the other.
func hears(from, to net.Conn, within time.Duration) bool {
	if _, err := from.Write([]byte("x")); err != nil {
		return false
	}
	if err := to.SetReadDeadline(time.Now().Add(within)); err != nil {
		return false
	}
	_, err := to.Read(make([]byte, 8))
	return err == nil
}

// Connections that are older than the node's rules are taken for what they are, whichever end spoke first since: what policy lets
// the node open goes on, and what it must not serve is cut.
func TestConnectionsOlderThanTheRules(t *testing.T) {
	protected := hosted(view.HostEndpoint{Name: "hep", Interface: "*", Normal: "l1"})
	open := protected
	open.Updates = protected.Updates[:1]
	r := newReboot(t, &open)
	r.linkUp()
	r.awaitReady()
	outHere, outThere := r.connect(false, 9000)
	inHere, inThere := r.connect(true, 81)
	table, err := conntrack.Open()
	require.NoError(t, err)
	t.Cleanup(func() { _ = table.Close() })
	flows := func(s conntrack.Select) []conntrack.Flow {
		all, err := table.Flows(t.Context(), s, func(f *conntrack.Flow) bool { return f.Original.Protocol == unix.IPPROTO_TCP })
		require.NoError(t, err)
		return all
	}
	require.NoError(t, table.Delete(t.Context(), flows(conntrack.Select{})))
	require.True(t, hears(outThere, outHere, patience))
	require.True(t, hears(inHere, inThere, patience))
	older := flows(conntrack.Select{})
	require.Len(t, older, 2)
	for _, f := range older {
		require.True(t, f.PickedUp, "the server was seen first: %s", &f)
		require.Contains(t, []uint16{81, 9000}, f.Original.SourcePort, "the server was seen first: %s", &f)
	}

	r.Batch(t.Context(), protected, nil)
	var cut []conntrack.Flow
	require.Eventually(t, func() bool {
		cut = flows(conntrack.Select{Marked: desired.ConnMarkCut})
		return len(cut) > 0
	}, patience, 10*time.Millisecond)
	require.Len(t, cut, 1)
	require.Equal(t, uint16(81), cut[0].Original.SourcePort)
	require.True(t, hears(outThere, outHere, patience))
	require.True(t, hears(outHere, outThere, patience))
	require.False(t, hears(inThere, inHere, 300*time.Millisecond))
	require.False(t, hears(inHere, inThere, 300*time.Millisecond))
}

// Without a view the host is open: nobody could repair it. There is no way to pods, since none is wired.
func TestWithoutAViewTheHostIsOpenAndPodsAreClosed(t *testing.T) {
	r := newReboot(t, nil)
	require.NotEmpty(t, <-r.ready)
	r.listen(81)
	r.linkUp()
	require.True(t, r.reaches(81, patience))
	require.ErrorContains(t, r.SetLocal(t.Context(), pod("web", "10.1.0.5")), "felix is not in sync")
	require.NotContains(t, sh(t, "ip route"), "10.1.0.5")
}
