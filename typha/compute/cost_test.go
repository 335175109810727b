package compute

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// TestCostsWhatItConcerns asserts that a change is work for the endpoints that it concerns and no others: how many are computed anew,
// how many policy lists are, and how much is said to nodes. There are 4,000 pods in 10 namespaces on 80 nodes, of 50 apps.
func TestCostsWhatItConcerns(t *testing.T) {
	e := New()
	profile := func(n int, labels map[string]string) *api.Profile {
		o := &api.Profile{}
		o.Name = fmt.Sprintf("kns.ns%d", n)
		o.Spec.LabelsToApply = labels
		return o
	}
	for n := range 10 {
		put(e, profile(n, map[string]string{"pcns.name": fmt.Sprintf("ns%d", n)}))
	}
	for n := range 4000 {
		o := pod(fmt.Sprintf("node%d", n/50), fmt.Sprintf("ns%d", n%10), fmt.Sprintf("pod%d", n), fmt.Sprintf("10.0.%d.%d", n/250, n%250), map[string]string{
			"app": fmt.Sprintf("app%d", n%50), "hash": fmt.Sprint(n / 10),
		})
		o.Spec.Profiles = []string{fmt.Sprintf("kns.ns%d", n%10)}
		put(e, o)
	}
	spec := func(selector string) api.NetworkPolicySpec {
		return api.NetworkPolicySpec{Tier: "some", Selector: selector, Types: []api.PolicyType{api.Ingress}}
	}
	local := func(name, selector string) *api.NetworkPolicy {
		o := &api.NetworkPolicy{Spec: spec(selector)}
		o.Namespace, o.Name = "ns3", name
		return o
	}
	global := func(selector, namespaces string) *api.GlobalNetworkPolicy {
		o := &api.GlobalNetworkPolicy{Spec: api.GlobalNetworkPolicySpec{NetworkPolicySpec: spec(selector), NamespaceSelector: namespaces}}
		o.Name = "more"
		return o
	}
	tier := func(name string, order float64) *api.Tier {
		o := &api.Tier{}
		o.Name, o.Spec.Order = name, &order
		return o
	}
	set := &api.GlobalNetworkSet{}
	set.Name, set.Labels, set.Spec.Nets = "set", map[string]string{"app": "app3"}, []string{"192.0.2.0/24"}
	from := local("from", "app == 'app13'") // on 80 pods of 80 nodes
	from.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Selector: "app == 'app3'", NamespaceSelector: "all() || global()"}}}
	put(e, from)
	for n := range 50 {
		put(e, local(fmt.Sprintf("p%d", n), fmt.Sprintf("app == 'app%d'", n)))
	}
	e.Flush()

	for name, c := range map[string]struct {
		came, went       api.Object // nil went: it is deleted
		endpoints, lists int
		said             int // to all nodes together
	}{
		"a policy, of what all have, in one namespace": {came: local("more", "has(app)"), endpoints: 400, lists: 5, said: 400 + 2*400 + 80},
		"a policy of a whole namespace":                {came: local("more", "all()"), lists: 5, said: 400 + 80},
		"a policy that asks what another does":         {came: local("more", "app == 'app13'"), lists: 1, said: 80 + 80},
		"a policy of a namespace's label":              {came: global("", "name == 'ns3'"), lists: 5, said: 400 + 80},
		"a policy of a label that nobody asks for":     {came: global("hash == '7'", ""), endpoints: 10, lists: 10, said: 2*10 + 2},
		"a policy of a common and a rare label":        {came: global("has(app) && hash == '7'", ""), endpoints: 10, lists: 10, said: 2*10 + 2},
		"a policy of nobody, for what all have":        {came: global("!has(app)", "")},
		"a policy of everybody":                        {came: global("", ""), lists: 14, said: 80*14 + 80},
		"a namespace's label that nobody asks for":     {came: profile(3, map[string]string{"pcns.name": "ns3", "pcns.more": "1"}), went: profile(3, map[string]string{"pcns.name": "ns3"})},
		"a tier's order":                               {came: tier("some", 3), went: tier("some", 4), lists: 5},
		"a tier of no policies":                        {came: tier("other", 3)},
		"a network set":                                {came: set, said: 80},
		"a profile of nobody":                          {came: profile(77, map[string]string{"app": "app3"})},
	} {
		t.Run(name, func(t *testing.T) {
			for _, change := range []func(){
				func() { put(e, c.came) },
				func() {
					if c.went != nil {
						put(e, c.went)
					} else {
						remove(e, c.came)
					}
				},
			} {
				change()
				require.Len(t, e.dirtyEndpoints, c.endpoints, "endpoints")
				require.Len(t, e.groups.dirty, c.lists, "lists")
				said := 0
				for _, delta := range e.Flush().Scopes {
					said += len(delta.Put) + len(delta.Drop)
				}
				require.Equal(t, c.said, said, "said")
			}
		})
	}
}
