//go:build lab

package nftables_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/felix/desired"
)

// kind is this driver in the tests that all drivers have.
var kind = rulestest.Kind{
	Name: "nftables", List: "nft -s list ruleset | grep -v '^table'",
	New: func(*labtest.Namespace) (rulestest.Driver, error) { return nftables.New(nftables.Config{}) },
}

func TestPackets(t *testing.T) { kind.Run(t) }

// world is that of all drivers' tests, for those of this driver alone.
type world struct {
	*rulestest.World
	t                   testing.TB
	node, a, b, outside *labtest.Namespace
	driver              *nftables.Driver
}

func newWorld(t testing.TB) *world {
	w := kind.NewWorld(t)
	return &world{World: w, t: t, node: w.Node, a: w.A, b: w.B, outside: w.Outside, driver: w.Driver.(*nftables.Driver)}
}

func (w *world) apply(c desired.FirewallDelta) {
	w.t.Helper()
	w.Apply(c)
}

func (w *world) watch() { w.Watch() }

func (w *world) listen(in *labtest.Namespace, address string) {
	w.t.Helper()
	w.Listen(in, address)
}

func (w *world) probe(hook, expr string) func() string {
	w.t.Helper()
	return w.Probe(hook, expr)
}

func (w *world) wire(to *labtest.Namespace, host, inside, mac string) {
	w.Wire(to, host, inside, mac)
}

func (w *world) passes(from *labtest.Namespace, to string, want bool, why string) {
	w.t.Helper()
	w.Passes(from, to, want, why)
}

// devices makes the devices of rich's workloads: kernels before Linux 6.16 have no guards of what is not there.
func devices(t testing.TB, ns *labtest.Namespace) {
	ns.Run(t, "for i in 1 2 3 4; do ip link add cali$i type veth peer name peer$i; done")
}

func open(t testing.TB) *nftables.Driver {
	d, err := nftables.New(nftables.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func apply(t testing.TB, d *nftables.Driver, c desired.FirewallDelta) {
	t.Helper()
	d.Update(c)
	require.NoError(t, d.Apply(context.Background()))
	require.True(t, d.InSync())
}

const (
	addrA, addrB = rulestest.AddrA, rulestest.AddrB
	sixA, sixB   = rulestest.SixA, rulestest.SixB
	outsideAddr  = rulestest.OutsideAddr
	nodeAddr     = rulestest.NodeAddr
	brief        = rulestest.Brief
	patience     = rulestest.Patience
	leaves       = rulestest.Leaves
	// first is between raw's chains and connection tracking.
	first = "prerouting priority -290"
)

var (
	firewall, under, bothOpen = rulestest.Firewall, rulestest.Under, rulestest.BothOpen
	members, port, addrs      = rulestest.Members, rulestest.Port, rulestest.Addrs
	rich, guarded             = rulestest.Rich, rulestest.Guarded
	udpEcho, udpAnswered      = rulestest.UDPEcho, rulestest.UDPAnswered
)
