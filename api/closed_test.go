package api_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

// TestClosed has objects that nobody validated, and what stands in for them.
func TestClosed(t *testing.T) {
	const closed = "types: [Ingress, Egress], ingress: [{action: Deny}], egress: [{action: Deny}]"
	ports := strings.TrimSuffix(strings.Repeat("80,", 51), ",")
	for _, c := range []struct{ name, kind, spec, want string }{
		{
			"mixed families in one rule", "NetworkPolicy",
			"{tier: t, order: 7, selector: app == 'a', types: [Ingress], ingress: [{action: Allow, source: {nets: [10.0.0.0/8, 'fd00::/8']}}]}",
			"{tier: t, order: 7, selector: app == 'a', types: [Ingress], ingress: [{action: Deny}], egress: [{action: Deny}]}",
		},
		{
			"too many ports", "GlobalNetworkPolicy",
			"{selector: app == 'a', egress: [{action: Allow, protocol: TCP, destination: {ports: [" + ports + "]}}]}",
			"{selector: app == 'a', " + closed + "}",
		},
		{"an action that is none", "NetworkPolicy", "{types: [Egress, Egress], egress: [{action: Perhaps}]}", "{types: [Egress], ingress: [{action: Deny}], egress: [{action: Deny}]}"},
		{"types that are none", "NetworkPolicy", "{types: [Sideways]}", "{" + closed + "}"},
		{"a tier that can be none", "NetworkPolicy", "{tier: 'a b'}", "{" + closed + "}"},
		{"a rule's selector", "NetworkPolicy", "{selector: has(x), ingress: [{action: Allow, source: {selector: 'a ='}}]}", "{selector: has(x), " + closed + "}"},
		{"its own selector: all of the namespace", "NetworkPolicy", "{selector: 'a ='}", "{" + closed + "}"},
		{"a global one's own selector: nobody", "GlobalNetworkPolicy", "{selector: 'a ='}", ""},
		{"unless others tell", "GlobalNetworkPolicy", "{selector: 'a =', namespaceSelector: has(x)}", "{namespaceSelector: has(x), " + closed + "}"},
		{
			"before translation", "GlobalNetworkPolicy", "{selector: has(x), preDNAT: true, applyOnForward: true, ingress: [{action: Maybe}]}",
			"{selector: has(x), preDNAT: true, applyOnForward: true, types: [Ingress], ingress: [{action: Deny}]}",
		},
		{"a set keeps what can be read", "GlobalNetworkSet", "{nets: [10.0.0.0/8, 10.0.0.0/99, nonsense, 10.0.0.0/8, 'fd00::/8']}", "{nets: [10.0.0.0/8, 'fd00::/8']}"},
		{"a set of a namespace too", "NetworkSet", "{nets: [x]}", "{}"},
		{"staged policies do nothing", "StagedNetworkPolicy", "{selector: 'a ='}", ""},
		{"endpoints are closed when they are absent", "HostEndpoint", "{}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			object := func(spec string) api.Object {
				o, err := api.New(c.kind)
				require.NoError(t, err)
				require.NoError(t, yaml.UnmarshalStrict([]byte("{metadata: {name: p, namespace: ns}, spec: "+spec+"}"), o))
				if !api.KindOf(o).Namespaced {
					o.SetNamespace("")
				}
				return o
			}
			bad := object(c.spec)
			before := bad.DeepCopyObject()
			full := bad.DeepCopyObject().(api.Object)
			full.Default()
			require.Error(t, full.Validate())
			got := api.Closed(bad)
			assert.Equal(t, before, bad, "it is left as it is")
			if c.want == "" {
				require.Nil(t, got)
				return
			}
			assert.Equal(t, object(c.want), got)
			got.Default()
			require.NoError(t, got.Validate())
		})
	}
}
