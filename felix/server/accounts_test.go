package server_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// counted is what a kernel counted.
type counted struct {
	all  []dataplane.Counter
	fail error
}

func (c counted) Counters(context.Context) ([]dataplane.Counter, error) { return c.all, c.fail }

func TestEndpointsShowWhatAppliesInOrder(t *testing.T) {
	w := newWorld()
	w.local["cali1"] = state.Endpoint{
		ID: view.EndpointID{Orchestrator: "k8s", Workload: "shop/web", Endpoint: "eth0"}, Interface: "cali1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
	w.applied = map[string]server.Applied{"cali1": {
		Closed: []string{"profile pro/x is not known"},
		List: view.PolicyList{ID: "l", Profiles: []string{"pro/x"}, Tiers: []view.TierPolicies{
			{Name: "first", DefaultAction: view.Deny, Ingress: []string{"snp/shop/try"}},
			{Name: "default", DefaultAction: view.Pass, Ingress: []string{"np/shop/web", "np/shop/empty"}},
		}},
		Policies: map[string]view.Policy{
			"snp/shop/try":  {ID: "snp/shop/try", Staged: true, Ingress: []view.Rule{{Action: view.Deny}}},
			"np/shop/empty": {ID: "np/shop/empty"},
			"np/shop/web": {ID: "np/shop/web", Ingress: []view.Rule{
				{Action: view.Log},
				{
					Action: view.Allow, Protocol: 6, Source: view.Match{Sets: []string{"s:x"}, NotNets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}},
					Destination: view.Match{Ports: []view.PortRange{{First: 80, Last: 80}, {First: 90, Last: 99}}},
				},
			}},
		},
	}}
	s := w.server()
	s.Counters = counted{all: []dataplane.Counter{
		{Chain: "cali-pi-np/shop/web", Comment: "np/shop/web ingress 1", Packets: 7, Bytes: 420},
		{Chain: "cali-tw-l", Comment: "end of tier default", Packets: 2, Bytes: 120},
		{Chain: "cali-tw-other", Comment: "end of tier default", Packets: 100, Bytes: 100},
	}}
	resp, err := s.Endpoints(t.Context(), &felixv1.EndpointsRequest{Endpoint: "shop/web"})
	require.NoError(t, err)
	require.Len(t, resp.GetEndpoints(), 1)
	e := resp.GetEndpoints()[0]
	assert.True(t, e.GetClosed())
	var rows []string
	for _, p := range e.GetPolicies() {
		if !p.GetEgress() {
			rows = append(rows, p.String())
		}
	}
	for i, want := range []*felixv1.PolicyCounter{
		{Tier: "first", Policy: "snp/shop/try", Action: "Deny", Staged: true},
		{Tier: "default", Policy: "np/shop/web", Action: "Log"},
		{Tier: "default", Policy: "np/shop/web", Rule: 1, Action: "Allow", Match: "tcp from not 10.9.0.0/16 s:x to ports 80,90-99", Packets: 7, Bytes: 420},
		{Tier: "default", Policy: "np/shop/empty", Rule: -1},
		{Tier: "default", Rule: -1, Action: "Pass", Packets: 2, Bytes: 120},
		{Policy: "pro/x", Rule: -1, Match: "not known on this node"},
		{Rule: -1, Action: "Deny"},
	} {
		assert.Equal(t, want.String(), rows[i])
	}
	assert.Len(t, rows, 7)

	s.Counters = counted{fail: errors.New("no kernel")}
	_, err = s.Endpoints(t.Context(), &felixv1.EndpointsRequest{})
	require.ErrorContains(t, err, "no kernel")
}

func TestHostEndpointsShowEachPass(t *testing.T) {
	w := newWorld()
	list := func(id string, policies ...string) server.Applied {
		a := server.Applied{List: view.PolicyList{ID: id, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: policies}}}, Policies: map[string]view.Policy{}}
		for _, p := range policies {
			a.Policies[p] = view.Policy{ID: p, Ingress: []view.Rule{{Action: view.Allow, Protocol: 6}}}
		}
		return a
	}
	edge := server.Host{
		Name: "edge", Interfaces: []string{"eth0", "eth1"}, Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.206")},
		FailsafeIn: []desired.Failsafe{{Protocol: 6, Port: 22}, {Protocol: 17, Port: 68, Nets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
	}
	edge.Passes[desired.Untracked], edge.Passes[desired.PreDNAT] = list("lr", "gnp/raw"), list("le", "gnp/early")
	edge.Passes[desired.Forward], edge.Passes[desired.Normal] = list("lf", "gnp/a"), list("la", "gnp/a")
	w.hosts = []server.Host{edge, {Name: "other", Interfaces: []string{"eth2"}}}
	s := w.server()
	s.Counters = counted{all: []dataplane.Counter{
		{Chain: "cali-pi-gnp/raw", Comment: "gnp/raw ingress 0", Packets: 7, Bytes: 70},
		{Chain: "cali-hep-forward-in-lf", Comment: "end of tier default", Packets: 2, Bytes: 20},
		{Chain: "cali-hep-normal-in-la", Comment: "end of tier default", Packets: 3, Bytes: 30},
		{Chain: "cali-hep-normal-out-la", Comment: "no profile decided", Packets: 4, Bytes: 40}, // in OUTPUT
		{Chain: "cali-hep-normal-out-la", Comment: "no profile decided", Packets: 1, Bytes: 10}, // and in POSTROUTING
	}}
	for _, name := range []string{"edge", "host/edge", "10.30.0.206"} {
		resp, err := s.Endpoints(t.Context(), &felixv1.EndpointsRequest{Endpoint: name})
		require.NoError(t, err)
		require.Len(t, resp.GetEndpoints(), 1, name)
		e := resp.GetEndpoints()[0]
		assert.Equal(t, "host/edge eth0,eth1", e.GetId()+" "+e.GetInterface())
		assert.Equal(t, []string{"tcp/22", "udp/68 with 10.0.0.0/8"}, e.GetFailsafeIn())
		assert.False(t, e.GetClosed())
		var rows []string
		for _, p := range e.GetPolicies() {
			rows = append(rows, p.String())
		}
		var want []string
		for _, p := range []*felixv1.PolicyCounter{
			{Pass: "untracked", Tier: "default", Policy: "gnp/raw", Action: "Allow", Match: "tcp", Packets: 7, Bytes: 70},
			{Pass: "preDNAT", Tier: "default", Policy: "gnp/early", Action: "Allow", Match: "tcp"},
			{Pass: "forward", Tier: "default", Policy: "gnp/a", Action: "Allow", Match: "tcp"},
			{Pass: "forward", Tier: "default", Rule: -1, Action: "Deny", Packets: 2, Bytes: 20},
			{Pass: "normal", Tier: "default", Policy: "gnp/a", Action: "Allow", Match: "tcp"},
			{Pass: "normal", Tier: "default", Rule: -1, Action: "Deny", Packets: 3, Bytes: 30},
			{Pass: "normal", Rule: -1, Action: "Deny"},
			{Pass: "normal", Egress: true, Rule: -1, Action: "Deny", Packets: 5, Bytes: 50},
		} {
			want = append(want, p.String())
		}
		assert.Equal(t, want, rows)
	}
}

func TestExplain(t *testing.T) {
	s := newWorld().server()
	resp, err := s.Explain(t.Context(), &felixv1.ExplainRequest{Section: "route", Key: "10.0.0.1/32"})
	require.NoError(t, err)
	assert.Equal(t, "pod shop/web has the address", resp.GetReasons()[0].GetBecause())
	_, err = s.Explain(t.Context(), &felixv1.ExplainRequest{Section: "fdb"})
	require.Error(t, err)
}
