//go:build lab

package rulestest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// World is a node with two pods, and a machine outside:
//
//	a 10.0.1.1, fd00:1::1 ── cali1 ─┐
//	                               node 192.168.9.1, fd09::1 ── outside 192.168.9.2, fd09::2 (also 10.0.2.9)
//	b 10.0.1.2, fd00:1::2 ── cali2 ─┘
//
// The test's own goroutine is on the node.
type World struct {
	Node, A, B, Outside *labtest.Namespace
	Driver              Driver

	t    testing.TB
	kind Kind
}

// Addresses of the pods, in both families, of the node, and of the machine outside.
const (
	AddrA       = "10.0.1.1"
	AddrB       = "10.0.1.2"
	SixA        = "fd00:1::1"
	SixB        = "fd00:1::2"
	NodeAddr    = "192.168.9.1"
	NodeSix     = "fd09::1"
	OutsideAddr = "192.168.9.2"
)

// NewWorld makes a world with a driver that was told nothing, and puts the caller on the node.
func (k Kind) NewWorld(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, kind: k, A: labtest.New(t), B: labtest.New(t), Outside: labtest.New(t)}
	w.Node = labtest.Enter(t)
	w.Node.Run(t, `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		mkdir -p /run/netns`)
	for i, pod := range []*labtest.Namespace{w.A, w.B} {
		host := fmt.Sprintf("cali%d", i+1)
		w.Wire(pod, host, "eth0", "ee:ee:ee:ee:ee:ee")
		w.Node.Run(t, fmt.Sprintf(`
			sysctl -qw net.ipv4.conf.%[1]s.proxy_arp=1 net.ipv6.conf.%[1]s.accept_dad=0
			ip link set %[1]s up
			ip route add 10.0.1.%[2]d dev %[1]s scope link
			ip -6 route add fd00:1::%[2]d dev %[1]s`, host, i+1))
		pod.Run(t, fmt.Sprintf(`
			sysctl -qw net.ipv6.conf.eth0.accept_dad=0
			ip link set eth0 up
			ip addr add 10.0.1.%[1]d/32 dev eth0
			ip -6 addr add fd00:1::%[1]d/128 dev eth0 nodad
			ip route add 169.254.1.1 dev eth0 scope link
			ip route add default via 169.254.1.1
			ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
			ip neigh replace fe80::ecee:eeff:feee:eeee lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
			ip -6 route add default via fe80::ecee:eeff:feee:eeee dev eth0`, i+1))
	}
	w.Wire(w.Outside, "up0", "eth0", "02:00:00:00:00:01")
	w.Node.Run(t, "ip addr add 192.168.9.1/24 dev up0; ip -6 addr add fd09::1/64 dev up0 nodad; ip link set up0 up; ip route add 10.0.2.0/24 via 192.168.9.2")
	w.Outside.Run(t, `
		ip addr add 192.168.9.2/24 dev eth0; ip -6 addr add fd09::2/64 dev eth0 nodad; ip link set eth0 up
		ip addr add 10.0.2.9/32 dev lo
		ip route add 10.0.1.0/24 via 192.168.9.1; ip -6 route add fd00:1::/64 via fd09::1`)
	for _, ns := range []*labtest.Namespace{w.Node, w.A, w.B, w.Outside} {
		ns.AwaitLinks(t)
	}
	w.Driver = k.Open(t, w.Node)
	return w
}

// Wire makes a veth pair between the node and a namespace.
func (w *World) Wire(to *labtest.Namespace, host, inside, mac string) {
	to.Run(w.t, "ip link add "+inside+" type veth peer name "+host+"; ip link set "+host+" address "+mac)
	// The namespace is known by a path only; ip(8) takes one with a slash.
	to.Run(w.t, "ip link set "+host+" netns "+w.Node.Path)
}

// T is the test that the world is for.
func (w *World) T() testing.TB { return w.t }

// Apply takes a change that must succeed.
func (w *World) Apply(c desired.FirewallDelta) {
	w.t.Helper()
	w.Driver.Update(c)
	require.NoError(w.t, w.Driver.Apply(context.Background()))
}

// Listen accepts TCP in a namespace and reports each client's address; those that nobody takes are forgotten beyond some.
func (w *World) Listen(in *labtest.Namespace, address string) <-chan netip.Addr {
	w.t.Helper()
	from := make(chan netip.Addr, 64)
	in.Do(w.t, func() error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				select {
				case from <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap():
				default:
				}
				go echo(c)
			}
		}()
		return nil
	})
	return from
}

func echo(c net.Conn) {
	defer c.Close()
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// How long an answer may take: one that must not come, and one that must (the machine may be busy, and a lost SYN is sent again after
// 1, 3, 7 and 15 s).
const (
	Brief    = 300 * time.Millisecond
	Patience = 30 * time.Second
)

// Dial connects from a namespace.
func Dial(from *labtest.Namespace, to string, wait time.Duration) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = from.In(func() error {
			c, err = net.DialTimeout("tcp", to, wait)
			return err
		})
	}()
	<-done
	return c, err
}

// Passes checks whether a connection is made.
func (w *World) Passes(from *labtest.Namespace, to string, want bool, why string) {
	w.t.Helper()
	wait := Brief
	if want {
		wait = Patience
	}
	c, err := Dial(from, to, wait)
	if err == nil {
		_ = c.Close()
	}
	assert.Equal(w.t, want, err == nil, "connection to %s: %v: %s", to, err, why)
}

// Alive tells whether an established connection still carries bytes.
func Alive(c net.Conn, wait time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(wait))
	if _, err := c.Write([]byte("hello")); err != nil {
		return false
	}
	b := make([]byte, 5)
	_, err := c.Read(b)
	return err == nil
}

// Watch runs the repair loop as felix does.
func (w *World) Watch() {
	ctx, stop := context.WithCancel(context.Background())
	due := make(chan struct{}, 1)
	done := make(chan struct{}, 2)
	go func() {
		assert.NoError(w.t, w.Driver.Watch(ctx, func(...dataplane.Drift) {
			select {
			case due <- struct{}{}:
			default:
			}
		}))
		done <- struct{}{}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			select {
			case <-due:
				if err := w.Driver.Apply(ctx); ctx.Err() == nil { // the test may end while it works
					assert.NoError(w.t, err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	w.t.Cleanup(func() { stop(); <-done; <-done })
}

// Repairs does damage on the node, and requires that its state is as wanted again, within a second. A busy machine may be late now and
// then: it is tried some times.
func (w *World) Repairs(name, damage, want string, state func() string) {
	w.t.Helper()
	took := Patience
	for try := 0; try < 10 && took > time.Second; try++ {
		w.Node.Run(w.t, damage)
		began := time.Now()
		if !assert.Eventually(w.t, func() bool { return state() == want }, Patience, 10*time.Millisecond, name) {
			require.Equal(w.t, want, state(), "%s: %s", name, damage)
		}
		took = time.Since(began) // of which a part is looking
	}
	assert.LessOrEqual(w.t, took, time.Second, name)
	w.t.Logf("%s: repaired within %s", name, took.Round(time.Millisecond))
}

// The firewall of the tests.

// Firewall is a firewall of workloads under policy lists.
func Firewall(workloads map[string]desired.Workload, lists []view.PolicyList, policies ...view.Policy) (c desired.FirewallDelta) {
	for _, p := range policies {
		for _, chain := range desired.PolicyChains(p, "") {
			c.Chains.Put(chain.Name, chain)
		}
	}
	for _, l := range lists {
		for _, chain := range desired.ListChains(l) {
			c.Chains.Put(chain.Name, chain)
		}
	}
	for name, x := range workloads {
		c.Workloads.Put(name, x)
	}
	c.Settings = &desired.Settings{WorkloadPrefixes: []string{"cali"}}
	return c
}

// Under is a workload with a policy list.
func Under(list string) desired.Workload {
	return desired.Workload{
		Endpoint: "k8s/test/" + list, Ingress: desired.ListChain(list, desired.Ingress), Egress: desired.ListChain(list, desired.Egress),
	}
}

// AllowAll is a profile that allows everything, and OpenLists the list with it alone.
var (
	AllowAll  = view.Policy{ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}}
	OpenLists = []view.PolicyList{{ID: "open", Profiles: []string{"pro/all"}}}
)

// BothOpen lets both pods do everything.
func BothOpen() desired.FirewallDelta {
	return Firewall(map[string]desired.Workload{"cali1": Under("open"), "cali2": Under("open")}, OpenLists, AllowAll)
}

// Addrs parses addresses.
func Addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}
