package server_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/client"
)

func TestPolicyIsExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, n2 := w.cluster()
	web, db := reserve(t, n1, "web"), reserve(t, n2, "db")
	report(t, n1, "x", 1, pod("web", web))
	report(t, n2, "y", 1, pod("db", db))
	port := func(n uint16) []api.Port { return []api.Port{api.SinglePort(n)} }
	tcp := api.ProtocolTCP
	w.create(&api.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
		Spec: api.NetworkPolicySpec{
			Selector: "app == 'db'", Types: []api.PolicyType{api.Ingress},
			Ingress: []api.Rule{
				{Action: api.Deny, Source: api.EntityRule{Nets: []string{"10.0.0.0/8"}}},
				{Action: api.Allow, Protocol: &tcp, Source: api.EntityRule{Selector: "app == 'web'"}, Destination: api.EntityRule{Ports: port(5432)}},
			},
		},
	})
	ada := w.operator(r.address)
	var decisions []client.Decision
	allowed := func(p client.Packet) bool {
		e, err := ada.ExplainPolicy(t.Context(), p)
		require.NoError(t, err)
		decisions = e.Decisions
		return e.Allowed
	}
	ask := client.Packet{From: "cni/default/web/eth0", To: "cni/default/db/eth0", Protocol: 6, Port: 5432}
	eventually(t, "both endpoints and the policy are known", func() bool {
		e, err := ada.ExplainPolicy(t.Context(), ask)
		return err == nil && e.Allowed && len(e.Decisions) == 2 && e.Decisions[1].By == "np/default/db"
	})
	require.True(t, allowed(ask))
	assert.Equal(t, []client.Decision{
		{Endpoint: "cni/default/web/eth0", Egress: true, Allowed: true, By: "pro/net", Rule: 0},
		{Endpoint: "cni/default/db/eth0", Allowed: true, By: "np/default/db", Rule: 1},
	}, decisions)

	require.True(t, allowed(client.Packet{From: web.String(), To: db.String(), Protocol: 6, Port: 5432}), "by address")
	require.True(t, allowed(client.Packet{From: "default/web", To: "default/db", Protocol: 6, Port: 5432}), "by workload")
	require.Len(t, decisions, 2)
	require.False(t, allowed(client.Packet{From: web.String(), To: db.String(), Protocol: 6, Port: 22}))
	assert.Equal(t, client.Decision{Endpoint: "cni/default/db/eth0", By: "end of tier default", Rule: -1}, decisions[1])
	require.False(t, allowed(client.Packet{From: "10.1.2.3", To: db.String(), Protocol: 6, Port: 5432}))
	assert.Equal(t, []client.Decision{{Endpoint: "cni/default/db/eth0", By: "np/default/db", Rule: 0}}, decisions)
	require.True(t, allowed(client.Packet{From: db.String(), To: "8.8.8.8", Protocol: 17, Port: 53}))
	assert.Equal(t, "pro/net", decisions[0].By, "no policy for this direction")

	// Of a packet whose type is not known, the rules that ask for it are named.
	icmp := api.ProtocolICMP
	w.create(&api.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: api.NetworkPolicySpec{
			Selector: "app == 'web'", Types: []api.PolicyType{api.Ingress},
			Ingress: []api.Rule{
				{Action: api.Deny, Protocol: &icmp, ICMP: &api.ICMPFields{Type: new(8)}},
				{Action: api.Deny, Protocol: &tcp, Source: api.EntityRule{Ports: port(22)}},
				{Action: api.Allow},
			},
		},
	})
	ping := client.Packet{From: "default/db", To: "default/web", Protocol: 1, ICMP: &view.ICMP{Type: 8}}
	eventually(t, "the policy is known", func() bool {
		e, err := ada.ExplainPolicy(t.Context(), ping)
		return err == nil && !e.Allowed
	})
	for _, c := range []struct {
		p       client.Packet
		allowed bool
		notes   []string
	}{
		{ping, false, nil},
		{client.Packet{Protocol: 1, ICMP: &view.ICMP{Type: 0}}, true, nil},
		{client.Packet{Protocol: 1}, true, []string{"Rule 0 of np/default/web (ingress of cni/default/web/eth0) asks for the type of ICMP, which was not given, and may decide otherwise."}},
		{client.Packet{Protocol: 6, Port: 80}, true, []string{"Rule 1 of np/default/web (ingress of cni/default/web/eth0) asks for the source port, which was not given, and may decide otherwise."}},
		{client.Packet{Protocol: 17, Port: 80}, true, nil},
	} {
		c.p.From, c.p.To = ping.From, ping.To
		e, err := ada.ExplainPolicy(t.Context(), c.p)
		require.NoError(t, err)
		assert.Equal(t, c.allowed, e.Allowed, "%+v", c.p)
		assert.Equal(t, c.notes, e.Notes, "%+v", c.p)
	}

	for _, c := range []struct {
		p  client.Packet
		is error
	}{
		{client.Packet{From: "nowhere", To: "8.8.8.8"}, client.ErrInvalid},
		{client.Packet{From: "cni/default/nobody/eth0", To: "8.8.8.8"}, client.ErrNotFound},
		{client.Packet{From: web.String(), To: "fd00::1"}, client.ErrStale},
	} {
		_, err := ada.ExplainPolicy(t.Context(), c.p)
		require.ErrorIs(t, err, c.is)
	}
	_, err := n1.ExplainPolicy(t.Context(), ask)
	require.ErrorIs(t, err, client.ErrDenied)
}
