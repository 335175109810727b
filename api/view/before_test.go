package view

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTheVersionBeforeKnowsNoFloatingAddresses(t *testing.T) {
	e := WorkloadEndpoint{ID: EndpointID{Workload: "ns/pod"}, ContainerID: "1"}
	floating := e
	floating.NATs = []NAT{{External: netip.MustParseAddr("192.0.2.1"), Internal: netip.MustParseAddr("10.0.0.1")}}
	other := e
	other.ContainerID = "2"
	set := IPSet{ID: "s", Type: SetNet}
	now, nowSet := VersionOf(e), VersionOf(set)
	assert.NotEqual(t, now, VersionOf(floating))

	before = "yes"
	defer func() { before = "" }()
	assert.NotEqual(t, now, VersionOf(e), "a field that is new changes the versions of all items of the kind")
	assert.Equal(t, VersionOf(e), VersionOf(floating))
	assert.NotEqual(t, VersionOf(e), VersionOf(other))
	assert.Equal(t, nowSet, VersionOf(set), "and of no other kind")
}
