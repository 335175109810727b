package api_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// TestResidue reads a stored policy with things that the type does not know, changes it, and looks at what is written.
func TestResidue(t *testing.T) {
	const stored = `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a","future":{"deep":[1]}},
		"spec":{"tier":"default","selector":"","doNotTrack":false,"newKnob":{"a":{"b":1}},
			"ingress":[{"action":"Allow","newCriterion":"x"},{"action":"Deny","source":{"nets":["10.0.0.0/8"],"newMatch":true},"destination":{"newMatch":1}}],
			"egress":[{"action":"Pass"}]},
		"status":{}}`
	for _, c := range []struct {
		name   string
		change func(*api.GlobalNetworkPolicy)
		want   string
	}{
		{"nothing changed", func(*api.GlobalNetworkPolicy) {}, stored},
		{
			"something else changed: all is kept",
			func(p *api.GlobalNetworkPolicy) { p.Spec.Egress = nil; p.Spec.ApplyOnForward = true },
			`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a","future":{"deep":[1]}},
				"spec":{"tier":"default","selector":"","doNotTrack":false,"applyOnForward":true,"newKnob":{"a":{"b":1}},
					"ingress":[{"action":"Allow","newCriterion":"x"},{"action":"Deny","source":{"nets":["10.0.0.0/8"],"newMatch":true},"destination":{"newMatch":1}}]},
				"status":{}}`,
		},
		{
			"the known value wins over a kept spelling of its absence",
			func(p *api.GlobalNetworkPolicy) { p.Spec.DoNotTrack = true; p.Spec.Selector = "has(a)" },
			`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a","future":{"deep":[1]}},
				"spec":{"tier":"default","selector":"has(a)","doNotTrack":true,"newKnob":{"a":{"b":1}},
					"ingress":[{"action":"Allow","newCriterion":"x"},{"action":"Deny","source":{"nets":["10.0.0.0/8"],"newMatch":true},"destination":{"newMatch":1}}],
					"egress":[{"action":"Pass"}]},
				"status":{}}`,
		},
		{
			"the list changed: which rule is which cannot be told any more",
			func(p *api.GlobalNetworkPolicy) { p.Spec.Ingress = p.Spec.Ingress[1:] },
			`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a","future":{"deep":[1]}},
				"spec":{"tier":"default","selector":"","doNotTrack":false,"newKnob":{"a":{"b":1}},
					"ingress":[{"action":"Deny","source":{"nets":["10.0.0.0/8"]}}],
					"egress":[{"action":"Pass"}]},
				"status":{}}`,
		},
		{
			"the list is gone, and what was in it",
			func(p *api.GlobalNetworkPolicy) { p.Spec.Ingress = nil },
			`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a","future":{"deep":[1]}},
				"spec":{"tier":"default","selector":"","doNotTrack":false,"newKnob":{"a":{"b":1}},"egress":[{"action":"Pass"}]},
				"status":{}}`,
		},
		{
			"cleared",
			func(p *api.GlobalNetworkPolicy) { p.Residue().Clear() },
			`{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"a"},
				"spec":{"tier":"default","ingress":[{"action":"Allow"},{"action":"Deny","source":{"nets":["10.0.0.0/8"]}}],"egress":[{"action":"Pass"}]}}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := api.DecodeStored(api.MustKind("GlobalNetworkPolicy"), []byte(stored))
			require.NoError(t, err)
			require.False(t, o.Residue().IsEmpty())
			copied := o.DeepCopyObject().(*api.GlobalNetworkPolicy)
			c.change(copied)
			for range 2 { // to write it does not use it up
				text, err := api.Encode(copied)
				require.NoError(t, err)
				require.JSONEq(t, c.want, string(text))
			}
			text, err := api.Encode(o)
			require.NoError(t, err)
			require.JSONEq(t, stored, string(text), "the change of a copy reached the original")
		})
	}
}

// TestResidueOfOmittedStruct has unknown fields inside a struct that is left out while it is empty.
func TestResidueOfOmittedStruct(t *testing.T) {
	const stored = `{"apiVersion":"projectcalico.org/v3","kind":"Node","metadata":{"name":"a"},"spec":{},"status":{"future":1}}`
	o, err := api.DecodeStored(api.MustKind("Node"), []byte(stored))
	require.NoError(t, err)
	o.(*api.Node).Status.PodCIDRs = []string{"10.244.0.0/24"}
	text, err := api.Encode(o)
	require.NoError(t, err)
	require.JSONEq(t, `{"apiVersion":"projectcalico.org/v3","kind":"Node","metadata":{"name":"a"},"spec":{},"status":{"future":1,"podCIDRs":["10.244.0.0/24"]}}`, string(text))
}

// TestResidueIsCaseSensitive: a key in another case is another key, not a value for the known field.
func TestResidueIsCaseSensitive(t *testing.T) {
	const stored = `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"a"},"spec":{"cidr":"10.0.0.0/16","CIDR":"10.1.0.0/16"}}`
	o, err := api.DecodeStored(api.MustKind("IPPool"), []byte(stored))
	require.NoError(t, err)
	require.Equal(t, "10.0.0.0/16", o.(*api.IPPool).Spec.CIDR)
	text, err := api.Encode(o)
	require.NoError(t, err)
	require.JSONEq(t, stored, string(text))
}

// TestEncode: bytes depend on content alone, and apiVersion and kind are filled in without touching the object.
func TestEncode(t *testing.T) {
	o := &api.IPPool{Spec: api.IPPoolSpec{CIDR: "10.0.0.0/16", NodeSelector: "a != '<b>'"}}
	o.Name = "a"
	text, err := api.Encode(o)
	require.NoError(t, err)
	require.Equal(t, `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"a"},"spec":{"cidr":"10.0.0.0/16","nodeSelector":"a != '<b>'"}}`, string(text))
	require.Empty(t, o.Kind)
}

// TestDecodeStoredFails on what cannot be read; it is lenient in everything else.
func TestDecodeStoredFails(t *testing.T) {
	kind := api.MustKind("IPPool")
	for name, stored := range map[string]string{
		"not JSON":      `{"kind"`,
		"not an object": `[]`,
		"another kind":  `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"}}`,
		"a wrong type":  `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","spec":{"blockSize":"26"}}`,
	} {
		_, err := api.DecodeStored(kind, []byte(stored))
		require.ErrorContains(t, err, "IPPool", name)
	}
	o, err := api.DecodeStored(kind, []byte(`{"apiVersion":"crd.projectcalico.org/v1","kind":"IPPool","metadata":{"name":"a"},"spec":{"cidr":"10.0.0.0/16"}}`))
	require.NoError(t, err, "objects of the older group are read too")
	text, err := json.Marshal(o.GetObjectKind().GroupVersionKind())
	require.NoError(t, err)
	require.JSONEq(t, `{"Group":"projectcalico.org","Version":"v3","Kind":"IPPool"}`, string(text))
}
