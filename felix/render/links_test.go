package render_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
	"github.com/muslin-net/muslin/felix/state"
)

// What bounds a pod is in the view; nothing bounds it until typha has told.
func TestBandwidthComesFromTheView(t *testing.T) {
	s := state.New("n")
	e := state.Endpoint{
		ID: view.EndpointID{Orchestrator: "k8s", Workload: "shop/web", Endpoint: "eth0"}, Interface: "cali1", Netns: "/run/netns/x", MTU: 1400,
		QoS: &view.QoS{IngressBandwidth: 1},
	}
	s.SetLocal(e)
	require.Equal(t, desired.WorkloadLink{Name: "cali1", MTU: 1400}, render.Links(s)["cali1"])
	s.Apply(view.Batch{Updates: []view.Item{view.WorkloadEndpoint{ID: e.ID, QoS: &view.QoS{
		IngressBandwidth: 10e6, EgressBandwidth: 20e6, EgressBurst: 5, EgressPeakrate: 30e6, EgressMinburst: 6, IngressPacketRate: 7,
	}}}})
	require.Equal(t, desired.WorkloadLink{
		Name: "cali1", MTU: 1400, Netns: "/run/netns/x", // its own end is to be bounded, too
		Ingress: desired.Shape{Rate: 10e6}, Egress: desired.Shape{Rate: 20e6, Burst: 5, Peakrate: 30e6, Minburst: 6},
	}, render.Links(s)["cali1"])
	require.EqualValues(t, 128<<10, desired.Shape{Rate: 10e6}.Bytes())
	require.EqualValues(t, 12_500_000, desired.Shape{Rate: 1e9}.Bytes())
	require.EqualValues(t, 1, desired.Shape{Rate: 1e9, Burst: 5}.Bytes())
}
