package selector

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// optional parses a field: empty means not given.
func optional(t *testing.T, s string) *Selector {
	t.Helper()
	if s == "" {
		return nil
	}
	sel, err := Parse(s)
	require.NoError(t, err)
	return sel
}

func TestForNetworkPolicy(t *testing.T) {
	for _, tc := range []struct{ selector, accounts, want string }{
		{``, ``, `projectcalico.org/namespace == "shop"`},
		{`all()`, ``, `(all() && projectcalico.org/namespace == "shop")`},
		{`a == 'x' || b == 'y'`, ``, `((a == "x" || b == "y") && projectcalico.org/namespace == "shop")`},
		{`has(a)`, `role == 'db'`, `((has(a) && projectcalico.org/namespace == "shop") && pcsa.role == "db")`},
		{``, `all()`, `(projectcalico.org/namespace == "shop" && all())`},
	} {
		got := ForNetworkPolicy(optional(t, tc.selector), "shop", optional(t, tc.accounts))
		assert.Equal(t, tc.want, got.String())
	}
}

func TestForGlobalNetworkPolicy(t *testing.T) {
	for _, tc := range []struct{ selector, namespaces, accounts, want string }{
		{``, ``, ``, `all()`},
		{`all()`, ``, ``, `all()`},
		{`has(a)`, ``, ``, `has(a)`},
		{``, `env == 'prod'`, ``, `pcns.env == "prod"`},
		{`has(a)`, `env != 'prod'`, ``, `(has(a) && pcns.env != "prod")`},
		{`has(a)`, `all()`, ``, `(has(a) && has(projectcalico.org/namespace))`},
		{`has(a)`, `global()`, ``, `(has(a) && !has(projectcalico.org/namespace))`},
		{`has(a)`, ``, `all()`, `(has(a) && has(projectcalico.org/serviceaccount))`},
		{`has(a)`, `all()`, `all()`, `((has(a) && has(projectcalico.org/namespace)) && has(projectcalico.org/serviceaccount))`},
		// The quirk: an all() of the plain selector is rewritten with the first of the two that is given.
		{`all()`, `has(x)`, ``, `(has(projectcalico.org/namespace) && has(pcns.x))`},
		{`all()`, ``, `has(x)`, `(has(projectcalico.org/serviceaccount) && has(pcsa.x))`},
		{`all() || has(a)`, `has(x)`, `has(y)`, `(((has(projectcalico.org/namespace) || has(a)) && has(pcns.x)) && has(pcsa.y))`},
		{``, `has(x)`, `!has(y)`, `(has(pcns.x) && !has(pcsa.y))`},
	} {
		got := ForGlobalNetworkPolicy(optional(t, tc.selector), optional(t, tc.namespaces), optional(t, tc.accounts))
		assert.Equal(t, tc.want, got.String(), "%+v", tc)
	}
	hostEndpoint := map[string]string{"role": "edge"}
	assert.True(t, ForGlobalNetworkPolicy(nil, optional(t, `env != "prod"`), nil).Matches(hostEndpoint), "only all() and global() test for a namespace")
	assert.False(t, ForGlobalNetworkPolicy(nil, All(), nil).Matches(hostEndpoint))
}

func TestEntityEffective(t *testing.T) {
	for _, tc := range []struct {
		name                             string
		selector, not, namespaces, accts string
		names                            []string
		policyNamespace, want            string
	}{
		{name: "nothing", policyNamespace: "shop"},
		{name: "nothing, global"},
		{name: "own namespace", selector: `has(a)`, policyNamespace: "shop", want: `(projectcalico.org/namespace == "shop" && has(a))`},
		{name: "global policy", selector: `has(a)`, want: `has(a)`},
		{name: "not selector", not: `has(a)`, policyNamespace: "shop", want: `projectcalico.org/namespace == "shop"`},
		{name: "not selector, global", not: `has(a)`},
		{name: "namespaces", namespaces: `env == 'prod'`, policyNamespace: "shop", want: `pcns.env == "prod"`},
		{name: "all namespaces", selector: `all()`, namespaces: `all()`, policyNamespace: "shop", want: `(has(projectcalico.org/namespace) && all())`},
		{name: "no namespace", namespaces: `global()`, want: `!has(projectcalico.org/namespace)`},
		{name: "accounts", names: []string{"b", "a"}, accts: `has(x)`, want: `(has(pcsa.x) && projectcalico.org/serviceaccount in {"a", "b"})`},
		{name: "accounts in own namespace", names: []string{"a"}, policyNamespace: "shop", want: `(projectcalico.org/namespace == "shop" && projectcalico.org/serviceaccount in {"a"})`},
		{
			name: "everything", names: []string{"a"}, accts: `has(x)`, selector: `has(y)`, namespaces: `has(z)`,
			want: `(has(pcns.z) && ((has(pcsa.x) && projectcalico.org/serviceaccount in {"a"}) && has(y)))`,
		},
	} {
		got := Entity{
			Selector: optional(t, tc.selector), NotSelector: optional(t, tc.not), NamespaceSelector: optional(t, tc.namespaces),
			ServiceAccountSelector: optional(t, tc.accts), ServiceAccountNames: tc.names,
		}.Effective(tc.policyNamespace)
		if tc.want == "" {
			assert.Nil(t, got, tc.name)
			continue
		}
		require.NotNil(t, got, tc.name)
		assert.Equal(t, tc.want, got.String(), tc.name)
	}
}

func TestRewriteLeavesTheOriginalAlone(t *testing.T) {
	s := optional(t, `has(a) && !(b in {"x"} || all())`)
	before := s.String()
	assert.Equal(t, `(has(p.a) && !(p.b in {"x"} || all()))`, s.WithPrefix("p.").String())
	assert.Equal(t, `(has(a) && !(b in {"x"} || !has(n)))`, s.ReplaceAll(Not(Has("n"))).String())
	assert.Equal(t, before, s.String())
	assert.Equal(t, `has(n)`, optional(t, `!all()`).ReplaceAll(Not(Has("n"))).String(), "double negation stays collapsed")
	values := []string{"b", "a"}
	In("k", values...)
	assert.Equal(t, []string{"b", "a"}, values)
}
