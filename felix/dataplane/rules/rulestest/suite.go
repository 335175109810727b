//go:build lab

package rulestest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/desired"
)

// Driver is a rule driver.
type Driver interface {
	Update(c desired.FirewallDelta)
	Apply(ctx context.Context) error
	Whole()
	Resync()
	Watch(ctx context.Context, wake dataplane.Wake) error
	InSync() bool
	Closed(iface string) string
	Entries() []dataplane.Entry
	Writes() uint64
	Close() error
	dataplane.Counters
}

// Kind is a kind of driver.
type Kind struct {
	Name string
	// New opens a driver on a namespace, in which the caller is.
	New func(ns *labtest.Namespace) (Driver, error)
	// List is a command that prints what the driver has in the kernel.
	List string
}

// Open opens a driver for a test.
func (k Kind) Open(t testing.TB, ns *labtest.Namespace) Driver {
	t.Helper()
	d, err := k.New(ns)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// Apply takes a change that must succeed, after which the driver is in sync.
func Apply(t testing.TB, d Driver, c desired.FirewallDelta) {
	t.Helper()
	d.Update(c)
	require.NoError(t, d.Apply(context.Background()))
	require.True(t, d.InSync())
}

// RunSpoofing runs the tests of sources that are not a workload's own.
func (k Kind) RunSpoofing(t *testing.T) {
	t.Run("IPv4 and IPv6", k.testSpoofedSourcesAreDropped)
	t.Run("others' and allowed", k.testSpoofedSourcesAreDroppedInIPv6)
}

// Run runs all tests on a kind of driver.
func (k Kind) Run(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"closed until told otherwise", k.testClosedUntilToldOtherwise},
		{"policies decide", k.testPoliciesDecide},
		{"egress policy and the host", k.testEgressPolicyAndTheHost},
		{"spoofed sources are dropped", k.testSpoofedSourcesAreDropped},
		{"IPv6 that no workload has", k.testIPv6ThatNoWorkloadHas},
		{"outgoing NAT", k.testOutgoingNAT},
		{"masqueraded UDP avoids the VXLAN port", k.testMasqueradedUDPAvoidsTheVXLANPort},
		{"VXLAN is admitted from known nodes and not tracked", k.testVXLANIsAdmittedFromKnownNodesAndNotTracked},
		{"tunnel packets come from known nodes only", k.testTunnelPacketsComeFromKnownNodesOnly},
		{"pods make no tunnel packets", k.testPodsMakeNoTunnelPackets},
		{"spoofed sources are dropped in IPv6", k.testSpoofedSourcesAreDroppedInIPv6},
		{"the host sends into tunnels from the tunnel's address", k.testTheHostSendsIntoTunnelsFromTheTunnelsAddress},
		{"outgoing NAT is a pool's choice", k.testOutgoingNATIsAPoolsChoice},
		{"floating addresses", k.testFloating},
		{"connections that are cut", k.testCutFlows},
		{"matches of every kind", k.testMatches},
		{"counters", k.testCounters},
		{"lines of the kernel's log", k.testLog},
		{"a limit of lines of the kernel's log", k.testLogLimit},
		{"a restart adopts without writing", k.testRestartAdoptsWithoutWriting},
		{"a list that all its workloads leave together", k.testAListThatAllLeaveTogether},
		{"any order of changes ends the same", k.testAnyOrderOfChangesEndsTheSame},
		{"next to others", k.testNextToOthers},
		{"a host endpoint protects the host", k.testHostEndpointProtectsTheHost},
		{"a host endpoint of all interfaces", k.testHostEndpointOfAllInterfaces},
		{"before the destination is translated", k.testPreDNAT},
		{"without tracking", k.testDoNotTrack},
		{"what is forwarded through host endpoints", k.testApplyOnForward},
		{"staged through host endpoints", k.testStagedThroughHostEndpoints},
		{"locally sent and translated", k.testLocallySentAndTranslated},
		{"tunnels pass host endpoints", k.testTunnelsPassHostEndpoints},
	} {
		t.Run(c.name, c.test)
	}
}
