package kubernetes_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
)

// translation is a spec of a cluster-wide policy of Kubernetes, what it is in our terms, and what cannot be said.
type translation struct{ name, spec, want, wrong string }

// clusterTranslations are those of ClusterNetworkPolicies.
var clusterTranslations = []translation{
	{
		"user story: nothing gets into the sensitive namespace",
		`{tier: Admin, priority: 20, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: sensitive-ns}}},
			ingress: [{action: Deny, from: [{namespaces: {}}], name: select-all-deny-all}]}`,
		`{tier: kube-admin, order: 20, types: [Ingress], selector: "` + pods + `", namespaceSelector: "kubernetes.io/metadata.name == 'sensitive-ns'",
			ingress: [{action: Deny, source: {selector: "` + pods + `", namespaceSelector: all()}, metadata: {annotations: {name: select-all-deny-all}}}]}`, "",
	},
	{
		"user story: monitoring gets in everywhere, to one port and to a range",
		`{tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: monitoring-ns}}}],
			protocols: [{tcp: {destinationPort: {number: 443}}}, {tcp: {destinationPort: {range: {start: 9000, end: 9100}}}}, {udp: {destinationPort: {number: 53}}}]}]}`,
		`{tier: kube-admin, order: 7, types: [Ingress], selector: "` + pods + `", namespaceSelector: all(), ingress: [
			{action: Allow, protocol: TCP, source: {selector: "` + pods + `", namespaceSelector: "kubernetes.io/metadata.name == 'monitoring-ns'"}, destination: {ports: [443, 9000:9100]}},
			{action: Allow, protocol: UDP, source: {selector: "` + pods + `", namespaceSelector: "kubernetes.io/metadata.name == 'monitoring-ns'"}, destination: {ports: [53]}}]}`, "",
	},
	{
		"user story: what DNS answers is left to the tenants",
		`{tier: Admin, priority: 10, subject: {pods: {namespaceSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [infra]}]}, podSelector: {matchLabels: {app: web}}}},
			egress: [{action: Pass, to: [{pods: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app: dns}}}}],
				protocols: [{destinationNamedPort: dns}, {destinationNamedPort: dns-tcp}]}]}`,
		`{tier: kube-admin, order: 10, types: [Egress], selector: "` + pods + ` && app == 'web'", namespaceSelector: "tier not in { 'infra' }", egress: [
			{action: Pass, destination: {selector: "` + pods + ` && app == 'dns'", namespaceSelector: "kubernetes.io/metadata.name == 'kube-system'", ports: [dns, dns-tcp]}}]}`, "",
	},
	{
		"user story: isolated from the world, of both families",
		`{tier: Baseline, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0, 10.1.2.3/8, "::/0", 10.0.0.0/8]}]}]}`,
		`{tier: kube-baseline, order: 0, types: [Egress], selector: "` + pods + `", namespaceSelector: all(), egress: [
			{action: Deny, destination: {nets: [0.0.0.0/0, 10.0.0.0/8]}}, {action: Deny, destination: {nets: ["::/0"]}}]}`, "",
	},
	{
		"SCTP, and a name beside a number",
		`{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {a: x}}}], protocols: [{destinationNamedPort: http}, {sctp: {destinationPort: {number: 7}}}]}]}`,
		`{tier: kube-admin, order: 1, types: [Ingress], selector: "` + pods + `", namespaceSelector: all(), ingress: [
			{action: Deny, protocol: SCTP, source: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}, destination: {ports: [7]}},
			{action: Deny, source: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}, destination: {ports: [http]}}]}`, "",
	},
	{
		"without rules it says nothing",
		`{tier: Admin, priority: 5, subject: {namespaces: {}}}`,
		`{tier: kube-admin, order: 5, selector: "` + pods + `", namespaceSelector: all()}`, "",
	},
	{
		"what is not supported: accepted by nobody, else denied",
		`{tier: Admin, priority: 5, subject: {namespaces: {}}, egress: [
			{action: Accept, to: [{domainNames: [kubernetes.io]}, {namespaces: {}}]},
			{action: Pass, to: [{nodes: {}}], name: to-nodes},
			{action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]},
			{action: Accept, to: [{networks: [10.0.0.0/8]}]}]}`,
		`{tier: kube-admin, order: 5, types: [Egress], selector: "` + pods + `", namespaceSelector: all(), egress: [
			{action: Deny, metadata: {annotations: {name: to-nodes}}}, {action: Allow, destination: {nets: [10.0.0.0/8]}}]}`,
		`spec.egress[0]: peer 0: domainNames are not supported; write networks; the rule accepts nothing
spec.egress[1]: peer 0: nodes are not supported; write their addresses as networks; the rule denies everything
spec.egress[2]: names a port beside networks, whose ports have no names; write two rules; the rule accepts nothing`,
	},
	{
		"what a later version may say is not taken for nothing",
		`{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [
			{action: Accept, from: [{}]}, {action: Accept, from: []}, {action: Accept, from: [{namespaces: {}}], protocols: [{}]},
			{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {}}]}, {action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]},
			{action: Log, from: [{namespaces: {}}]}]}`,
		`{tier: kube-admin, order: 5, types: [Ingress], selector: "` + pods + `", namespaceSelector: all(), ingress: [{action: Deny}]}`,
		`spec.ingress[0]: peer 0: says nothing that is known here; write namespaces, pods or networks; the rule accepts nothing
spec.ingress[1]: names no peer; write one; the rule accepts nothing
spec.ingress[2]: protocol or port 0: says nothing that is known here; write tcp, udp, sctp or destinationNamedPort; the rule accepts nothing
spec.ingress[3]: protocol or port 0: names no port; write destinationPort with either number or range; the rule accepts nothing
spec.ingress[4]: protocol or port 0: names no port; write destinationPort with either number or range; the rule accepts nothing
spec.ingress[5]: action "Log" is not known; write Accept, Deny or Pass; the rule denies everything`,
	},
	{
		"what makes no sense",
		`{tier: Admin, priority: 5, subject: {namespaces: {}}, egress: [
			{action: Deny, to: [{networks: [nonsense]}]}, {action: Accept, to: [{networks: ["::ffff:10.0.0.0/104"]}]},
			{action: Accept, to: [{namespaces: {matchExpressions: [{key: a, operator: Perhaps}]}}]},
			{action: Accept, to: [{namespaces: {}, networks: [10.0.0.0/8]}]},
			{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 8}}}}]},
			{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: "8080:8090"}]},
			{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, destinationNamedPort: x}]}]}`,
		`{tier: kube-admin, order: 5, types: [Egress], selector: "` + pods + `", namespaceSelector: all(), egress: [{action: Deny}]}`,
		`spec.egress[0]: peer 0: "nonsense" is not a CIDR; write one such as 10.0.0.0/8 or fd00::/8; the rule denies everything
spec.egress[1]: peer 0: "::ffff:10.0.0.0/104" is not a CIDR; write one such as 10.0.0.0/8 or fd00::/8; the rule accepts nothing
spec.egress[2]: peer 0: "Perhaps" is not a valid label selector operator; the rule accepts nothing
spec.egress[3]: peer 0: says several things at once; write a peer for each; the rule accepts nothing
spec.egress[4]: protocol or port 0: 9 to 8 is no range of ports; the rule accepts nothing
spec.egress[5]: protocol or port 0: destinationNamedPort "8080:8090" is no name of a port: write at most 15 lower-case letters, digits and -; the rule accepts nothing
spec.egress[6]: protocol or port 0: says several things at once; write an item for each; the rule accepts nothing`,
	},
	{
		"for which pods is not known: closed for their namespaces",
		`{tier: Baseline, priority: 5, subject: {pods: {namespaceSelector: {matchLabels: {a: x}}, podSelector: {matchExpressions: [{key: a, operator: Perhaps}]}}}, egress: [{action: Accept, to: [{namespaces: {}}]}]}`,
		`{tier: kube-baseline, order: 5, types: [Egress], selector: "` + pods + `", namespaceSelector: "a == 'x'", egress: [{action: Deny}]}`,
		`spec.subject: "Perhaps" is not a valid label selector operator; the policy denies everything to the namespaces`,
	},
	{
		"for whom is not known at all: for nobody",
		`{tier: Admin, priority: 5, subject: {pods: {namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: Perhaps}]}}}, egress: [{action: Deny, to: [{namespaces: {}}]}]}`,
		"", `spec.subject: "Perhaps" is not a valid label selector operator; the policy does nothing`,
	},
	{"nobody", `{tier: Admin, priority: 5, subject: {}}`, "", `spec.subject: is neither namespaces nor pods alone; write one of the two; the policy does nothing`},
	{"a tier of a later version", `{tier: Middle, priority: 5, subject: {namespaces: {}}}`, "", `spec.tier: "Middle" is not known, hence the policy does nothing; write Admin or Baseline`},
}

// adminTranslations are those of AdminNetworkPolicies.
var adminTranslations = []translation{
	{
		"ports of every kind",
		`{priority: 30, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, ingress: [{name: to-web, action: Allow, from: [{pods: {namespaceSelector: {matchLabels: {a: x}}, podSelector: {}}}],
			ports: [{portNumber: {port: 80}}, {portRange: {start: 8000, end: 8010}}, {portNumber: {protocol: UDP, port: 53}}, {portRange: {protocol: SCTP, start: 1, end: 2}}, {namedPort: web}]}]}`,
		`{tier: kube-admin, order: 30, types: [Ingress], selector: "` + pods + ` && app == 'web'", namespaceSelector: all(), ingress: [
			{action: Allow, protocol: SCTP, source: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}, destination: {ports: [1:2]}, metadata: {annotations: {name: to-web}}},
			{action: Allow, protocol: TCP, source: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}, destination: {ports: [80, 8000:8010]}, metadata: {annotations: {name: to-web}}},
			{action: Allow, protocol: UDP, source: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}, destination: {ports: [53]}, metadata: {annotations: {name: to-web}}},
			{action: Allow, source: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}, destination: {ports: [web]}, metadata: {annotations: {name: to-web}}}]}`, "",
	},
	{
		"every other kind of peer",
		`{priority: 0, subject: {namespaces: {}}, egress: [{action: Pass, to: [{namespaces: {matchLabels: {a: x}}}, {networks: ["fd00::/8"]}]}, {action: Deny, to: [{nodes: {}}]}, {action: Allow, to: [{domainNames: [x.org]}]}]}`,
		`{tier: kube-admin, order: 0, types: [Egress], selector: "` + pods + `", namespaceSelector: all(), egress: [
			{action: Pass, destination: {selector: "` + pods + `", namespaceSelector: "a == 'x'"}}, {action: Pass, destination: {nets: ["fd00::/8"]}}, {action: Deny}]}`,
		`spec.egress[1]: peer 0: nodes are not supported; write their addresses as networks; the rule denies everything
spec.egress[2]: peer 0: domainNames are not supported; write networks; the rule accepts nothing`,
	},
	{
		"ports that say nothing, or too much, or are of no protocol",
		`{priority: 0, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{}]},
			{action: Allow, from: [{namespaces: {}}], ports: [{namedPort: x, portNumber: {port: 1}}]}, {action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {protocol: ICMP, port: 1}}]}]}`,
		`{tier: kube-admin, order: 0, types: [Ingress], selector: "` + pods + `", namespaceSelector: all(), ingress: [{action: Deny}]}`,
		`spec.ingress[0]: protocol or port 0: says nothing that is known here; write tcp, udp, sctp or destinationNamedPort; the rule accepts nothing
spec.ingress[1]: protocol or port 0: says nothing that is known here; write tcp, udp, sctp or destinationNamedPort; the rule accepts nothing
spec.ingress[2]: protocol or port 0: says nothing that is known here; write tcp, udp, sctp or destinationNamedPort; the rule denies everything`,
	},
}

// baselineTranslations are those of BaselineAdminNetworkPolicies.
var baselineTranslations = []translation{
	{
		"user story: tenants are apart by default",
		`{subject: {namespaces: {matchLabels: {tenant: red}}}, ingress: [{action: Allow, from: [{namespaces: {matchLabels: {tenant: red}}}]}, {action: Deny, from: [{namespaces: {}}]}],
			egress: [{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {}}}, {networks: [10.0.0.0/8]}], ports: [{portNumber: {port: 80}}]}]}`,
		`{tier: kube-baseline, order: 1000, types: [Ingress, Egress], selector: "` + pods + `", namespaceSelector: "tenant == 'red'", ingress: [
			{action: Allow, source: {selector: "` + pods + `", namespaceSelector: "tenant == 'red'"}}, {action: Deny, source: {selector: "` + pods + `", namespaceSelector: all()}}],
			egress: [{action: Deny, protocol: TCP, destination: {selector: "` + pods + `", namespaceSelector: all(), ports: [80]}}, {action: Deny, protocol: TCP, destination: {nets: [10.0.0.0/8], ports: [80]}}]}`, "",
	},
	{
		"nodes",
		`{subject: {namespaces: {}}, egress: [{action: Allow, to: [{nodes: {}}]}]}`,
		`{tier: kube-baseline, order: 1000, selector: "` + pods + `", namespaceSelector: all()}`,
		`spec.egress[0]: peer 0: nodes are not supported; write their addresses as networks; the rule accepts nothing`,
	},
}

// TestClusterWidePolicies has cluster-wide policies of Kubernetes, and what they are in our terms.
func TestClusterWidePolicies(t *testing.T) {
	kind(t, "cluster", clusterTranslations, func(spec []byte) (*api.GlobalNetworkPolicy, error, error) {
		var k v1alpha2.ClusterNetworkPolicy
		k.Name = "x"
		bad := yaml.UnmarshalStrict(spec, &k.Spec)
		p, err := kubernetes.ClusterNetworkPolicy(&k)
		return p, err, bad
	})
	kind(t, "admin", adminTranslations, func(spec []byte) (*api.GlobalNetworkPolicy, error, error) {
		var k v1alpha1.AdminNetworkPolicy
		k.Name = "x"
		bad := yaml.UnmarshalStrict(spec, &k.Spec)
		p, err := kubernetes.AdminNetworkPolicy(&k)
		return p, err, bad
	})
	kind(t, "baseline", baselineTranslations, func(spec []byte) (*api.GlobalNetworkPolicy, error, error) {
		var k v1alpha1.BaselineAdminNetworkPolicy
		k.Name = "x"
		bad := yaml.UnmarshalStrict(spec, &k.Spec)
		p, err := kubernetes.BaselineAdminNetworkPolicy(&k)
		return p, err, bad
	})
}

func kind(t *testing.T, name string, table []translation, translate func([]byte) (p *api.GlobalNetworkPolicy, wrong, bad error)) {
	for _, c := range table {
		t.Run(name+"/"+c.name, func(t *testing.T) {
			p, err, bad := translate([]byte(strings.ReplaceAll(c.spec, "\t", " ")))
			require.NoError(t, bad)
			if c.wrong == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, c.wrong)
			}
			if c.want == "" {
				require.Nil(t, p)
				return
			}
			var want api.GlobalNetworkPolicySpec
			require.NoError(t, yaml.UnmarshalStrict([]byte(strings.ReplaceAll(c.want, "\t", " ")), &want))
			assert.Equal(t, want, p.Spec)
			p.Default()
			require.NoError(t, p.Validate())
		})
	}
}

// TestManyPorts has more ports than a rule of ours may have.
func TestManyPorts(t *testing.T) {
	var k v1alpha1.AdminNetworkPolicy
	var ports []v1alpha1.AdminNetworkPolicyPort
	for i := range 100 { // apart, so that they are no ranges
		ports = append(ports, v1alpha1.AdminNetworkPolicyPort{PortNumber: &v1alpha1.Port{Port: int32(1 + 2*i)}})
	}
	k.Name = "many"
	require.NoError(t, yaml.Unmarshal([]byte("{subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}]}"), &k.Spec))
	k.Spec.Ingress[0].Ports = &ports
	p, err := kubernetes.AdminNetworkPolicy(&k)
	require.NoError(t, err)
	p.Default()
	require.NoError(t, p.Validate())
	var have []string
	for _, r := range p.Spec.Ingress {
		have = append(have, fmt.Sprintf("%d from %d to %d", len(r.Destination.Ports), r.Destination.Ports[0].First, r.Destination.Ports[len(r.Destination.Ports)-1].Last))
	}
	require.Equal(t, []string{"50 from 1 to 99", "50 from 101 to 199"}, have)
}
