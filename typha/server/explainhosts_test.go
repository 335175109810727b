package server_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/client"
)

// Two nodes: n1 has an endpoint at its uplink, n2 one of all interfaces. Each pass that a packet meets is told, on both nodes.
func TestPolicyOfHostsIsExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, n2 := w.cluster()
	for node, c := range map[string]*client.Client{"10.0.0.1/24": n1, "10.0.0.2/24": n2} {
		p := netip.MustParsePrefix(node)
		register(t, c, client.Registration{IPv4: p, Interfaces: []client.Interface{
			{Name: "eth0", Addresses: []netip.Addr{p.Addr()}}, {Name: "eth1", Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 9, p.Addr().As4()[3]})}},
		}})
	}
	web, db := reserve(t, n1, "web"), reserve(t, n2, "db")
	report(t, n1, "x", 1, pod("web", web))
	report(t, n2, "y", 1, pod("db", db))
	tcp := api.ProtocolTCP
	to := func(action api.Action, port uint16) api.Rule {
		return api.Rule{Action: action, Protocol: &tcp, Destination: api.EntityRule{Ports: []api.Port{api.SinglePort(port)}}}
	}
	host := func(name, node, iface string) *api.HostEndpoint {
		return &api.HostEndpoint{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"host": name}}, Spec: api.HostEndpointSpec{Node: node, InterfaceName: iface}}
	}
	policy := func(name, on string, types []api.PolicyType, change func(*api.GlobalNetworkPolicySpec), rules ...api.Rule) *api.GlobalNetworkPolicy {
		p := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
		p.Spec.Selector, p.Spec.Types = "host == '"+on+"'", types
		for _, way := range types {
			if way == api.Ingress {
				p.Spec.Ingress = rules
			} else {
				p.Spec.Egress = rules
			}
		}
		if change != nil {
			change(&p.Spec)
		}
		return p
	}
	in, both := []api.PolicyType{api.Ingress}, []api.PolicyType{api.Ingress, api.Egress}
	w.create(host("edge", "n1", "eth0"))
	w.create(host("all", "n2", "*"))
	w.create(policy("raw", "edge", both, func(s *api.GlobalNetworkPolicySpec) { s.ApplyOnForward, s.DoNotTrack = true, true }, to(api.Allow, 7000)))
	w.create(policy("early", "edge", in, func(s *api.GlobalNetworkPolicySpec) { s.ApplyOnForward, s.PreDNAT = true, true }, to(api.Deny, 9999)))
	w.create(policy("kubelet", "edge", in, nil, to(api.Allow, 10250)))
	w.create(policy("through", "all", in, func(s *api.GlobalNetworkPolicySpec) { s.ApplyOnForward = true }, to(api.Deny, 5432), api.Rule{Action: api.Allow}))
	ada := w.operator(r.address)
	ask := func(from, to string, port uint16) string {
		e, err := ada.ExplainPolicy(t.Context(), client.Packet{From: from, To: to, Protocol: 6, Port: port})
		if err != nil {
			return err.Error()
		}
		lines := []string{fmt.Sprint(e.Allowed)}
		for _, d := range e.Decisions {
			way := map[bool]string{true: "out", false: "in"}[d.Egress]
			lines = append(lines, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %t: %s %d", d.Endpoint, d.Pass, way, d.Allowed, d.By, d.Rule)), " "))
		}
		return strings.Join(lines, "\n")
	}
	const webOut, dbIn = "cni/default/web/eth0 out true: pro/net 0", "cni/default/db/eth0 in true: pro/net 0"
	eventually(t, "all is known", func() bool {
		pods := ask("default/web", "default/db", 80) // their profile is made when they are reported
		return strings.Contains(pods, webOut) && strings.Contains(pods, dbIn) &&
			strings.Contains(ask("8.8.8.8", "host/edge", 10250), "gnp/kubelet") && strings.Contains(ask("8.8.8.8", "db", 5432)+ask("8.8.8.8", "default/db", 5432), "gnp/through") &&
			strings.Contains(ask("8.8.8.8", "n1", 7000), "gnp/raw") && strings.Contains(ask("8.8.8.8", "n1", 9999), "gnp/early")
	})
	for _, c := range []struct {
		from, to string
		port     uint16
		want     string
	}{
		{"8.8.8.8", "host/edge", 10250, "true\nhost/edge normal in true: gnp/kubelet 0"},
		{"8.8.8.8", "edge", 10251, "false\nhost/edge normal in false: end of tier default -1"},
		{"8.8.8.8", "10.0.0.1", 22, "true\nhost/edge normal in true: failsafe port 22 -1"},
		{"8.8.8.8", "n1", 7000, "true\nhost/edge untracked in true: gnp/raw 0"},
		{"n1", "8.8.8.8", 7000, "true\nhost/edge untracked out true: gnp/raw 0"},
		{"n1", "8.8.8.8", 53, "false\nhost/edge normal out false: no policy and no profile allows it -1"},
		{"8.8.8.8", "n1", 9999, "false\nhost/edge preDNAT in false: gnp/early 0\nhost/edge normal in false: end of tier default -1"},
		{"8.8.8.8", "10.9.9.1", 10251, "true"}, // by an interface without an endpoint
		{"8.8.8.8", "10.9.9.2", 10251, "true\nhost/all normal in true: gnp/through 1"},
		{"8.8.8.8", "default/web", 9999, "false\nhost/edge preDNAT in false: gnp/early 0\ncni/default/web/eth0 in false: no policy and no profile allows it -1"},
		{"default/web", "default/db", 5432, "false\n" + webOut + "\nhost/all forward in false: gnp/through 0\n" + dbIn},
		{"default/web", "default/db", 80, "true\n" + webOut + "\nhost/all forward in true: gnp/through 1\n" + dbIn},
		{"n1", "default/web", 1, "true"},
		{"default/web", "n1", 10250, "false\n" + webOut + "\ncni/default/web/eth0 out false: defaultEndpointToHostAction Drop -1"},
		{"n2", "n2", 5432, "false\nhost/all normal out false: no policy and no profile allows it -1\nhost/all normal in false: gnp/through 0"},
		{"n1", "n1", 5432, "true"},
	} {
		assert.Equal(t, c.want, ask(c.from, c.to, c.port), "%s to %s, %d", c.from, c.to, c.port)
	}
	for name, is := range map[string]error{"host/nobody": client.ErrNotFound, "nobody": client.ErrInvalid} {
		_, err := ada.ExplainPolicy(t.Context(), client.Packet{From: name, To: "8.8.8.8"})
		require.ErrorIs(t, err, is)
	}
}
