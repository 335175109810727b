package oracle

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/require"

	product "github.com/muslin-net/muslin/api/selector"
)

var selectorTexts = []string{
	"", " \t", "all()", "all( )", "all ()", "!all()", "global()", "has(a)", "has( a )", "has (a)", "!!has(a)", "! ! has(a)", "a == 'x'", `a=="x"`,
	`a != "it's"`, "a == 'x' && b == 'y' || !has(c)", "a in {'x', 'y',}", "a in {}", "a in { }", "a in {,}", "a not in {'x'}", "a notin {'x'}",
	"a contains 'x'", "a starts with 'x'", "a startswith 'x'", "a ends  with 'x'", "in in {'in'}", "has(has)", "not not in {'x'}", "all == 'x'",
	"has == 'x'", "containsx contains 'x'", "a contains'x'", "a containsb 'x'", "a in{'x'}", "a = 'x'", "a == x", "a == 'x", "(a == 'x')", "((all())",
	"a && b", "a == 'x' & b == 'y'", "a/b.c-d_e == ''", "a == 'x'\n", "a\t==\t'x'", "a starts with", "a == 'x' b == 'y'", "!(a == 'x')", "not a == 'x'",
	"a starts with'x'||a ends with\"y\"", "pcns.projectcalico.org/name == 'red'", "has(a", "{", "a in {'x' 'y'}", "a not  in{'x'}", "has()",
}

// TestSelectorsAreReadAlike has the oracle's reading of selectors, and that of package selector, which the product uses, agree.
func TestSelectorsAreReadAlike(t *testing.T) {
	for _, text := range selectorTexts {
		readAlike(t, text, "x", "xy")
	}
}

// FuzzSelectors looks for selectors that the two read differently.
func FuzzSelectors(f *testing.F) {
	for _, text := range selectorTexts {
		f.Add(text, "x", "y")
	}
	f.Fuzz(readAlike)
}

func readAlike(t *testing.T, text, v, u string) {
	mine, err := parseSelector(text)
	theirs, other := product.Parse(text)
	require.Equal(t, err == nil, other == nil, "%q: %v; %v", text, err, other)
	if err != nil {
		return
	}
	for _, labels := range []map[string]string{
		nil,
		{"a": v},
		{"a": u, "b": v},
		{"a": "", "b": u, "c": v},
		{"in": "in", "has": "x", "not": u, labelNamespace: "n"},
		{"all": "x", "a/b.c-d_e": ""},
		{"pcns.a": v, "pcns.b": u},
		{labelServiceAccount: "s", "pcns.in": u},
	} {
		before := maps.Clone(labels)
		require.Equal(t, mine(labels, field{}), theirs.Matches(labels), "%q of %v", text, labels)
		prefixed := theirs.WithPrefix(ofNamespace).ReplaceAll(product.Has(labelNamespace))
		require.Equal(t, mine(labels, field{prefix: ofNamespace, all: labelNamespace}), prefixed.Matches(labels), "%q of namespaces of %v", text, labels)
		require.Equal(t, before, labels)
	}
}
