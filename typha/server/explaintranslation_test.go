package server_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/client"
)

// Policy of another node's host endpoint sees a pod's packets come from the pod's node, where its pool says so; the answer says
// it, and also that a service's address is none that policy sees.
func TestTranslationIsExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha()
	natted := pool("default", "192.168.0.0/16")
	natted.Spec.NATOutgoing = true
	w.create(natted)
	n1, n2 := w.node("n1", r.address), w.node("n2", r.address)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	register(t, n2, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.2/24")})
	web, db := reserve(t, n1, "web"), reserve(t, n2, "db")
	report(t, n1, "x", 1, pod("web", web))
	report(t, n2, "y", 1, pod("db", db))
	w.create(&api.HostEndpoint{ObjectMeta: metav1.ObjectMeta{Name: "all", Labels: map[string]string{"host": "n2"}}, Spec: api.HostEndpointSpec{Node: "n2", InterfaceName: "*"}})
	nodes := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "from-nodes"}}
	nodes.Spec.Selector, nodes.Spec.Types = "host == 'n2'", []api.PolicyType{api.Ingress}
	nodes.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Nets: []string{"10.0.0.1/32"}}}}
	w.create(nodes)
	ada := w.operator(r.address)
	// What the last of those decides who are asked, and the notes.
	ask := func(from, to string) string {
		e, err := ada.ExplainPolicy(t.Context(), client.Packet{From: from, To: to, Protocol: 6, Port: 80})
		if err != nil || len(e.Decisions) == 0 {
			return fmt.Sprint(e, err)
		}
		last := e.Decisions[len(e.Decisions)-1]
		return fmt.Sprint(last.Endpoint, " ", last.By, "; ", strings.Join(e.Notes, " "))
	}
	const beyond = "Beyond node n1 it comes from 10.0.0.1 (natOutgoing)."
	eventually(t, "all is known", func() bool {
		return strings.HasPrefix(ask("default/web", "n2"), "host/all gnp/from-nodes;") && strings.HasPrefix(ask("8.8.8.8", "default/db"), "cni/default/db/eth0 ")
	})
	assert.Equal(t, "host/all gnp/from-nodes; "+beyond, ask("default/web", "n2"))
	assert.Equal(t, "host/all end of tier default; ", ask("10.0.0.3", "n2"), "not from a pod")
	assert.NotContains(t, ask("default/db", "n2"), beyond, "it does not leave the node")
	assert.NotContains(t, ask("default/web", "default/db"), beyond, "within the pools")
	assert.Contains(t, ask("default/web", "10.96.0.80"), beyond+" 10.96.0.80 is the address of no endpoint and no node. If it is a service's")
}
