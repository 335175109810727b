package kubernetes_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
)

const pods = "projectcalico.org/orchestrator == 'k8s'"

// TestSpec has policies of Kubernetes, and what they are in our terms. What cannot be said opens nothing.
func TestSpec(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"nothing at all", "{}", `{selector: "` + pods + `", types: [Ingress]}`},
		{
			"labels", "{podSelector: {matchLabels: {b: x, a: w}, matchExpressions: [{key: c, operator: In, values: [p, q]}, {key: d, operator: DoesNotExist}]}, policyTypes: [Egress]}",
			`{selector: "` + pods + ` && a == 'w' && b == 'x' && c in { 'p', 'q' } && ! has(d)", types: [Egress]}`,
		},
		{
			"peers", "{ingress: [{from: [{podSelector: {matchLabels: {a: x}}}, {namespaceSelector: {}}, {namespaceSelector: {matchLabels: {team: w}}, podSelector: {}}, {}]}]}",
			`{selector: "` + pods + `", types: [Ingress], ingress: [
				{action: Allow, source: {selector: "` + pods + ` && a == 'x'"}},
				{action: Allow, source: {selector: "` + pods + `", namespaceSelector: all()}},
				{action: Allow, source: {selector: "` + pods + `", namespaceSelector: "team == 'w'"}},
				{action: Allow, source: {selector: "` + pods + `"}}]}`,
		},
		{"anyone", "{egress: [{}], policyTypes: [Egress]}", `{selector: "` + pods + `", types: [Egress], egress: [{action: Allow}]}`},
		{
			"ports, and a block with holes", "{ingress: [{ports: [{port: 80}, {port: 81}, {port: http}, {protocol: UDP}, {port: 90, endPort: 95}], from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}",
			`{selector: "` + pods + `", types: [Ingress], ingress: [
				{action: Allow, protocol: TCP, source: {nets: [10.0.0.0/8], notNets: [10.1.0.0/16]}, destination: {ports: [http, 80:81, 90:95]}},
				{action: Allow, protocol: UDP, source: {nets: [10.0.0.0/8], notNets: [10.1.0.0/16]}}]}`,
		},
		{
			"rules that make no sense, beside one that does",
			"{ingress: [{ports: [{port: 90, endPort: 80}]}, {ports: [{endPort: 80}]}, {from: [{ipBlock: {cidr: nonsense}}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}, {from: [{podSelector: {matchLabels: {'a b': x}}}]}, {ports: [{port: 1}]}]}",
			`{selector: "` + pods + `", types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [1]}}]}`,
		},
		{"for whom is not known: for all", "{podSelector: {matchExpressions: [{key: a, operator: Perhaps}]}, policyTypes: [Ingress, Egress]}", `{selector: "` + pods + `", types: [Ingress, Egress]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var spec api.StagedKubernetesNetworkPolicySpec
			require.NoError(t, yaml.UnmarshalStrict([]byte(c.spec), &spec))
			var want api.NetworkPolicySpec
			require.NoError(t, yaml.UnmarshalStrict([]byte(c.want), &want))
			want.Tier, want.Order = api.TierDefault, new(kubernetes.Order)
			p := kubernetes.NetworkPolicy(metav1.ObjectMeta{Namespace: "shop", Name: "web"}, &spec)
			assert.Equal(t, want, p.Spec)
			assert.Equal(t, "knp.default.web", p.Name)
			p.Default()
			require.NoError(t, p.Validate())
		})
	}
}
