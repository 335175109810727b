package etcd

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/muslin-net/muslin/api"
)

func decodeText(t *testing.T, key api.Key, value string) api.Object {
	t.Helper()
	o, err := decode(api.MustKind(key.Kind), key, &mvccpb.KeyValue{Value: []byte(value), ModRevision: 7})
	require.NoError(t, err)
	require.Equal(t, key, api.KeyOf(o))
	require.Equal(t, "7", o.GetResourceVersion())
	return o
}

// TestIPAMValues reads stored values, checks what they are to the API, and writes them back.
func TestIPAMValues(t *testing.T) {
	for _, test := range []struct {
		name  string
		key   api.Key
		value string
		spec  string // what the API sees
		back  string // what is stored after a write; empty means value
	}{
		{
			name: "block in use and cooling down",
			key:  api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/30"},
			value: `{"cidr":"10.9.0.4/30","affinity":"host:node-a","affinity_claim_time":"2026-08-22T10:00:00Z",
				"allocations":[0,null,1,null],"unallocated":[3,1],
				"attributes":[{"handle_id":"k8s-pod-network.4f1c","secondary":{"namespace":"shop","node":"node-a",
				"pod":"web-0","timestamp":"2026-08-22 10:00:01.5 +0000 UTC"}},{"releasedAt":"2026-08-22T10:05:00Z"}],
				"sequenceNumber":1787392800000000005,
				"sequenceNumberForAllocation":{"0":1787392800000000000,"2":1787392800000000004},"deleted":false}`,
			spec: `{"cidr":"10.9.0.4/30","affinity":"host:node-a","affinityClaimTime":"2026-08-22T10:00:00Z",
				"allocations":[0,null,1,null],"unallocated":[3,1],
				"attributes":[{"handle_id":"k8s-pod-network.4f1c","secondary":{"namespace":"shop","node":"node-a",
				"pod":"web-0","timestamp":"2026-08-22 10:00:01.5 +0000 UTC"}},{"releasedAt":"2026-08-22T10:05:00Z"}],
				"sequenceNumber":1787392800000000005,
				"sequenceNumberForAllocation":{"0":1787392800000000000,"2":1787392800000000004},"deleted":false}`,
		},
		{
			name:  "block nobody owns, with a field of the future",
			key:   api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/30"},
			value: `{"cidr":"10.9.0.4/30","affinity":null,"allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":[],"sequenceNumber":18446744073709551615,"sequenceNumberForAllocation":{},"deleted":false,"colour":{"of":"tomorrow"}}`,
			spec:  `{"cidr":"10.9.0.4/30","allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":[],"sequenceNumber":18446744073709551615,"deleted":false,"colour":{"of":"tomorrow"}}`,
		},
		{
			name:  "block of old, whose owner had a key of its own",
			key:   api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/30"},
			value: `{"cidr":"10.9.0.4/30","affinity":null,"hostAffinity":"node-a","allocations":[null],"unallocated":[0],"attributes":[],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":false}`,
			spec:  `{"cidr":"10.9.0.4/30","affinity":"host:node-a","allocations":[null],"unallocated":[0],"attributes":[],"sequenceNumber":1,"deleted":false}`,
			back:  `{"cidr":"10.9.0.4/30","affinity":"host:node-a","allocations":[null],"unallocated":[0],"attributes":[],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":false}`,
		},
		{
			name:  "both keys: the new one counts",
			key:   api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/30"},
			value: `{"cidr":"10.9.0.4/30","affinity":"virtual:load-balancer","hostAffinity":"node-a","allocations":[],"unallocated":[],"attributes":[],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":true}`,
			spec:  `{"cidr":"10.9.0.4/30","affinity":"virtual:load-balancer","allocations":[],"unallocated":[],"attributes":[],"sequenceNumber":1,"deleted":true}`,
			back:  `{"cidr":"10.9.0.4/30","affinity":"virtual:load-balancer","allocations":[],"unallocated":[],"attributes":[],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":true}`,
		},
		{
			name:  "affinity",
			key:   api.Key{Kind: "BlockAffinity", Name: "host/node-a/10.9.0.4/30"},
			value: `{"state":"pending","deleted":false}`,
			spec:  `{"state":"pending","node":"node-a","type":"host","cidr":"10.9.0.4/30","deleted":false}`,
		},
		{
			name:  "affinity of services",
			key:   api.Key{Kind: "BlockAffinity", Name: "virtual/load-balancer/fd00::/122"},
			value: `{"state":"pendingDeletion","deleted":true}`,
			spec:  `{"state":"pendingDeletion","node":"load-balancer","type":"virtual","cidr":"fd00::/122","deleted":true}`,
		},
		{
			name:  "affinity of old without a value",
			key:   api.Key{Kind: "BlockAffinity", Name: "host/node-a/10.9.0.4/30"},
			value: ``,
			spec:  `{"state":"confirmed","node":"node-a","type":"host","cidr":"10.9.0.4/30","deleted":false}`,
			back:  `{"state":"confirmed","deleted":false}`,
		},
		{
			name:  "affinity of old with an empty object",
			key:   api.Key{Kind: "BlockAffinity", Name: "host/node-a/10.9.0.4/30"},
			value: `{}`,
			spec:  `{"state":"confirmed","node":"node-a","type":"host","cidr":"10.9.0.4/30","deleted":false}`,
			back:  `{"state":"confirmed","deleted":false}`,
		},
		{
			name:  "handle",
			key:   api.Key{Kind: "IPAMHandle", Name: "k8s-pod-network.4F1c"},
			value: `{"block":{"10.9.0.4/30":1},"deleted":false}`,
			spec:  `{"handleID":"k8s-pod-network.4F1c","block":{"10.9.0.4/30":1},"deleted":false}`,
		},
		{
			name:  "configuration",
			key:   api.Key{Kind: "IPAMConfiguration", Name: "default"},
			value: `{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":7,"kubeVirtVMAddressPersistence":"Disabled","ipCooldownSeconds":30}`,
			spec:  `{"strictAffinity":true,"autoAllocateBlocks":true,"maxBlocksPerHost":7,"kubeVirtVMAddressPersistence":"Disabled","ipCooldownSeconds":30}`,
		},
		{
			name:  "configuration whose false fields are left out",
			key:   api.Key{Kind: "IPAMConfiguration", Name: "default"},
			value: `{}`,
			spec:  `{"strictAffinity":false,"autoAllocateBlocks":false}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := decodeText(t, test.key, test.value)
			var seen struct{ Spec json.RawMessage }
			encoded, err := api.Encode(o)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(encoded, &seen))
			require.Equal(t, parsed(t, test.spec), parsed(t, string(seen.Spec)))

			back, err := encode(api.MustKind(test.key.Kind), o)
			require.NoError(t, err)
			if test.back == "" {
				test.back = test.value
			}
			require.Equal(t, parsed(t, test.back), parsed(t, string(back)))
		})
	}
}

// parsed keeps numbers as written: sequence numbers do not fit a double.
func parsed(t *testing.T, text string) any {
	t.Helper()
	f, err := parseFields([]byte(text))
	require.NoError(t, err)
	return normal(t, f)
}

func normal(t *testing.T, f fields) any {
	t.Helper()
	out := map[string]any{}
	for k, raw := range f {
		var nested map[string]json.RawMessage
		if json.Unmarshal(raw, &nested) == nil && nested != nil {
			out[k] = normal(t, nested)
			continue
		}
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil && list != nil {
			items := map[string]json.RawMessage{}
			for i, item := range list {
				items[string(rune('a'+i))] = item
			}
			out[k] = normal(t, items)
			continue
		}
		out[k] = string(raw)
	}
	return out
}

// TestIPAMDocuments checks that what Calico stores is decoded the quick way, for which the document must be what the API
// would write.
func TestIPAMDocuments(t *testing.T) {
	for _, test := range []struct {
		key   api.Key
		value string
	}{
		{api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/31"}, `{"cidr":"10.9.0.4/31","affinity":"host:node-a","affinity_claim_time":"2026-08-22T10:00:00Z","allocations":[0,null],"unallocated":[1],"attributes":[{"handle_id":"h","secondary":{"node":"node-a","pod":"web-0"}}],"sequenceNumber":1787392800000000005,"sequenceNumberForAllocation":{"0":1787392800000000000},"deleted":false}`},
		{api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/31"}, `{"cidr":"10.9.0.4/31","affinity":null,"allocations":[null,null],"unallocated":[0,1],"attributes":[],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":false}`},
		{api.Key{Kind: "BlockAffinity", Name: "host/node-a/10.9.0.4/31"}, `{"state":"confirmed","deleted":false}`},
		{api.Key{Kind: "IPAMHandle", Name: "h"}, `{"block":{"10.9.0.4/31":1},"deleted":false}`},
		{api.Key{Kind: "IPAMConfiguration", Name: "default"}, `{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":7}`},
	} {
		doc, err := ipamDocument(test.key.Kind, test.key.Name, []byte(test.value))
		require.NoError(t, err)
		o := decodeText(t, test.key, test.value)
		o.SetResourceVersion("")
		written, err := api.Encode(o)
		require.NoError(t, err)
		require.Equal(t, string(written), string(doc))
	}
}

// TestNewIPAMValues pins what Calico must find in objects made here.
func TestNewIPAMValues(t *testing.T) {
	text := func(o api.Object) string {
		v, err := encode(api.KindOf(o), o)
		require.NoError(t, err)
		return string(v)
	}
	b := &api.IPAMBlock{Spec: api.IPAMBlockSpec{CIDR: "10.9.0.4/31", Allocations: []*int{nil, nil}, Unallocated: []int{0, 1}, Attributes: []api.AllocationAttribute{}, SequenceNumber: 5}}
	b.SetName("10.9.0.4/31")
	require.JSONEq(t, `{"cidr":"10.9.0.4/31","affinity":null,"allocations":[null,null],"unallocated":[0,1],"attributes":[],"sequenceNumber":5,"sequenceNumberForAllocation":{},"deleted":false}`, text(b))
	h := &api.IPAMHandle{Spec: api.IPAMHandleSpec{HandleID: "h"}}
	h.SetName("h")
	require.JSONEq(t, `{"block":{},"deleted":false}`, text(h))
	no := false
	c := &api.IPAMConfiguration{Spec: api.IPAMConfigurationSpec{StrictAffinity: true, AutoAllocateBlocks: &no}}
	c.SetName("default")
	require.JSONEq(t, `{"strict_affinity":true}`, text(c))
}

// FuzzValues checks that whatever is stored is either refused or comes back with the same meaning, for good.
func FuzzValues(f *testing.F) {
	keys := []api.Key{
		{Kind: "IPAMBlock", Name: "10.9.0.4/30"},
		{Kind: "BlockAffinity", Name: "host/node-a/10.9.0.4/30"},
		{Kind: "IPAMHandle", Name: "h"},
		{Kind: "IPAMConfiguration", Name: "default"},
		{Kind: "IPPool", Name: "pool"},
		{Kind: "Tier", Name: "tier"},
	}
	f.Add([]byte(``))
	f.Add([]byte(`{"state":"confirmed","deleted":false}`))
	f.Add([]byte(`{"block":{"10.9.0.4/30":1},"deleted":false}`))
	f.Add([]byte(`{"strict_affinity":true,"auto_allocate_blocks":null}`))
	f.Add([]byte(`{"cidr":"10.9.0.4/30","affinity":null,"hostAffinity":"node-a","allocations":[0,null],"unallocated":[1],"attributes":[{"handle_id":null,"secondary":null}],"sequenceNumber":1787392800000000005,"sequenceNumberForAllocation":{"0":1},"deleted":false}`))
	f.Add([]byte(`{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"pool","x":1},"spec":{"cidr":"10.0.0.0/16","new":[1,{"a":null}]}}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, key := range keys {
			kind := api.MustKind(key.Kind)
			o, err := decode(kind, key, &mvccpb.KeyValue{Value: value, ModRevision: 1})
			if err != nil {
				continue
			}
			require.Equal(t, key, api.KeyOf(o))
			once, err := encode(kind, o)
			require.NoError(t, err)
			again, err := decode(kind, key, &mvccpb.KeyValue{Value: once, ModRevision: 1})
			require.NoError(t, err, "%s", once)
			twice, err := encode(kind, again)
			require.NoError(t, err)
			require.JSONEq(t, string(once), string(twice))
		}
	})
}
