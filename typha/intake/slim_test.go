package intake

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/typha/cache"
)

// What the datastore gave is left as it is; what is kept of an endpoint says the same, and shares with its like what they have in common.
func TestEndpointsShareTraits(t *testing.T) {
	make := func(name, version string) *api.WorkloadEndpoint {
		o := &api.WorkloadEndpoint{ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "shop", Labels: map[string]string{"app": "web", "version": version},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		}}
		o.Spec.Node, o.Spec.Profiles = "a", []string{"kns.shop"}
		return o
	}
	s := newSlimmer()
	given := make("web-0", "1")
	before := given.DeepCopy()
	one := s.slim(given).(*cache.Endpoint)
	require.Equal(t, before, given)
	want := cache.EndpointOf(before)
	want.Name = "" // which is in its key
	require.Equal(t, want, one)
	other, changed := s.slim(make("web-1", "1")).(*cache.Endpoint), s.slim(make("web-0", "2")).(*cache.Endpoint)
	require.Same(t, one.Traits, other.Traits)
	require.Equal(t, map[string]string{"app": "web", "version": "2"}, changed.Labels)
	require.Equal(t, map[string]string{"app": "web", "version": "1"}, one.Labels)
	ported := make("web-3", "1")
	ported.Spec.Ports = []api.WorkloadEndpointPort{{Name: "http", Port: 80}}
	require.Equal(t, ported.Spec.Ports, s.slim(ported).(*cache.Endpoint).Ports, "only those that say all the same share")
	require.Empty(t, one.Ports)

	for i := range mostLabels { // what is remembered is bounded
		s.sharedTraits(&cache.Traits{Labels: map[string]string{"pod": fmt.Sprint(i)}})
	}
	require.LessOrEqual(t, len(s.labels), mostLabels)
	require.LessOrEqual(t, len(s.traits), mostLabels)
	require.Equal(t, one.Labels, s.slim(make("web-2", "1")).(*cache.Endpoint).Labels)
}

func pointer(m map[string]string) uintptr { return reflect.ValueOf(m).Pointer() }

// Of blocks there stays who uses which address, and everything that says whether they are whole.
func TestBlocksKeepWhoUsesWhat(t *testing.T) {
	o := api.NewIPAMBlock(netip.MustParsePrefix("10.0.0.0/30"))
	handle, now := "k8s-pod-network.1", metav1.NewTime(time.Now().Truncate(time.Second))
	for i, a := range []api.AllocationAttribute{
		{HandleID: &handle, Owner: map[string]string{api.OwnerNode: "a", api.OwnerPod: "web-0", api.OwnerNamespace: "shop"}},
		{HandleID: &handle, Owner: map[string]string{api.OwnerNode: "a", api.OwnerPod: "web-1", api.OwnerNamespace: "shop"}},
		{HandleID: &handle, Owner: map[string]string{api.OwnerNode: "a", api.OwnerType: "vxlanTunnelAddress"}},
		{ReleasedAt: &now},
	} {
		o.Spec.Allocations[i] = new(i)
		o.Spec.Attributes = append(o.Spec.Attributes, a)
	}
	o.Spec.Unallocated, o.Spec.SequenceNumberForAllocation = []int{}, nil
	before, err := json.Marshal(o)
	require.NoError(t, err)
	kept := newSlimmer().slim(o).(*api.IPAMBlock)
	after, err := json.Marshal(o)
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	require.Equal(t, pointer(kept.Spec.Attributes[0].Owner), pointer(kept.Spec.Attributes[1].Owner))

	text, err := json.Marshal(kept)
	require.NoError(t, err)
	b, err := block.Of(kept) // which must not write into what is shared
	require.NoError(t, err)
	again, err := json.Marshal(kept)
	require.NoError(t, err)
	require.Equal(t, string(text), string(again))
	for i, want := range []map[string]string{
		{api.OwnerNode: "a"}, {api.OwnerNode: "a"}, {api.OwnerNode: "a", api.OwnerType: "vxlanTunnelAddress"}, {},
	} {
		has, ok := b.Lookup(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		require.True(t, ok)
		require.Equal(t, want, has.Owner)
		require.Equal(t, i == 3, has.Cooling())
	}
}
