package selector

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSemantics has at least one row for each row of the language's description.
func TestSemantics(t *testing.T) {
	type labels = map[string]string
	for _, tc := range []struct {
		selector string
		yes      []labels
		no       []labels
	}{
		// Empty, all(), global().
		{``, []labels{nil, {"a": "b"}}, nil},
		{" \t ", []labels{nil, {"a": "b"}}, nil},
		{`all()`, []labels{nil, {"a": "b"}}, nil},
		{` all( ) `, []labels{nil}, nil},
		{`!all()`, nil, []labels{nil, {"a": "b"}}},
		{`global()`, []labels{nil, {"a": "b"}}, []labels{{LabelNamespace: "x"}, {LabelNamespace: ""}}},
		{`!global( )`, []labels{{LabelNamespace: "x"}}, []labels{nil}},
		// Equality.
		{`a == "x"`, []labels{{"a": "x"}, {"a": "x", "b": "y"}}, []labels{nil, {"a": "y"}, {"b": "x"}, {"a": "X"}}},
		{`a=='x'`, []labels{{"a": "x"}}, []labels{{"a": ""}}},
		{`a == ""`, []labels{{"a": ""}}, []labels{nil, {"a": "x"}}},
		{`a != "x"`, []labels{nil, {"a": "y"}, {"b": "x"}}, []labels{{"a": "x"}}},
		{`a!="x"`, []labels{nil}, []labels{{"a": "x"}}},
		{`!(a == "x")`, []labels{nil, {"a": "y"}}, []labels{{"a": "x"}}},
		{`!a == "x"`, []labels{nil, {"a": "y"}}, []labels{{"a": "x"}}},
		{`!a != "x"`, []labels{{"a": "x"}}, []labels{nil, {"a": "y"}}},
		// Sets.
		{`a in {"x", 'y'}`, []labels{{"a": "x"}, {"a": "y"}}, []labels{nil, {"a": "z"}, {"b": "x"}}},
		{`a in{"x",}`, []labels{{"a": "x"}}, []labels{{"a": ""}}},
		{`a in {}`, nil, []labels{nil, {"a": ""}, {"a": "x"}}},
		{`a in { }`, nil, []labels{{"a": ""}}},
		{`a not in {"x","y"}`, []labels{nil, {"a": "z"}}, []labels{{"a": "x"}, {"a": "y"}}},
		{`a notin {"x"}`, []labels{nil}, []labels{{"a": "x"}}},
		{`a not in {}`, []labels{nil, {"a": "x"}}, nil},
		{`a in {"'", '"'}`, []labels{{"a": "'"}, {"a": `"`}}, []labels{{"a": "x"}}},
		// Substrings.
		{`a contains "b"`, []labels{{"a": "b"}, {"a": "abc"}}, []labels{nil, {"a": "B"}, {"b": "b"}}},
		{`a contains"b"`, []labels{{"a": "b"}}, []labels{{"a": "c"}}},
		{`a contains ""`, []labels{{"a": ""}, {"a": "x"}}, []labels{nil}},
		{`a starts with "ab"`, []labels{{"a": "ab"}, {"a": "abc"}}, []labels{nil, {"a": "xab"}, {"a": "Abc"}}},
		{`a startswith "ab"`, []labels{{"a": "abc"}}, []labels{{"a": "a"}}},
		{"a starts \t with 'ab'", []labels{{"a": "abc"}}, []labels{{"a": "a"}}},
		{`a ends with "bc"`, []labels{{"a": "bc"}, {"a": "abc"}}, []labels{nil, {"a": "bcx"}}},
		{`a endswith'bc'`, []labels{{"a": "abc"}}, []labels{{"a": "bC"}}},
		// has().
		{`has(a)`, []labels{{"a": "x"}, {"a": ""}}, []labels{nil, {"b": "x"}}},
		{`has( a	)`, []labels{{"a": "x"}}, []labels{nil}},
		{`!has(a)`, []labels{nil, {"b": "x"}}, []labels{{"a": ""}}},
		{`!!has(a)`, []labels{{"a": ""}}, []labels{nil}},
		{`! !!has(a)`, []labels{nil}, []labels{{"a": ""}}},
		// Precedence and grouping.
		{`has(a) || has(b) && has(c)`, []labels{{"a": ""}, {"b": "", "c": ""}}, []labels{{"b": ""}, {"c": ""}}},
		{`(has(a) || has(b)) && has(c)`, []labels{{"a": "", "c": ""}}, []labels{{"a": ""}, {"c": ""}}},
		{`!has(a) && has(b)`, []labels{{"b": ""}}, []labels{nil, {"a": "", "b": ""}}},
		{`!(has(a)&&has(b))`, []labels{nil, {"a": ""}}, []labels{{"a": "", "b": ""}}},
		{`((has(a)))`, []labels{{"a": ""}}, []labels{nil}},
		// Words are only special where they are expected, and labels hold dots, slashes, dashes and underscores.
		{`in in {"in"}`, []labels{{"in": "in"}}, []labels{nil}},
		{`has == "has" && has(has)`, []labels{{"has": "has"}}, []labels{nil}},
		{`all == "x"`, []labels{{"all": "x"}}, []labels{nil}},
		{`contains contains "x"`, []labels{{"contains": "x"}}, []labels{nil}},
		{`not not in {"x"}`, []labels{nil}, []labels{{"not": "x"}}},
		{`example.com/a_b-c == "x"`, []labels{{"example.com/a_b-c": "x"}}, []labels{nil}},
		{`a == "what ever: {}() && \é"`, []labels{{"a": `what ever: {}() && \é`}}, []labels{nil}},
		{"a == 'two\nlines'", []labels{{"a": "two\nlines"}}, []labels{nil}},
		{"a == '\xff\x00'", []labels{{"a": "\xff\x00"}}, []labels{nil}},
	} {
		s, err := Parse(tc.selector)
		require.NoError(t, err)
		for _, l := range tc.yes {
			assert.True(t, s.Matches(l), "%s should match %v", tc.selector, l)
		}
		for _, l := range tc.no {
			assert.False(t, s.Matches(l), "%s should not match %v", tc.selector, l)
		}
	}
}

func TestSyntaxErrors(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`a = "x"`, `at position 3: found a single "=", expected "==", "!=", "in", "not in", "contains", "starts with" or "ends with" after label "a"`},
		{`a == x`, `at position 6: found "x", expected a value in quotes`},
		{`a == "x`, `at position 6: found a value that never ends, expected a closing "`},
		{`a == 'x"`, `at position 6: found a value that never ends, expected a closing '`},
		{`a`, `at position 2: found the end, expected "=="`},
		{`a b`, `at position 3: found "b", expected "=="`},
		{`a inx {}`, `at position 3: found "inx", expected "=="`},
		{`a containsx "x"`, `at position 3: found "containsx"`},
		{`a starts "x"`, `at position 3: found "starts"`},
		{`a not {"x"}`, `at position 3: found "not"`},
		{`a in "x"`, `at position 6: found a value in quotes, expected "{"`},
		{`a in {"x"`, `at position 10: found the end, expected "," or "}"`},
		{`a in {"x" "y"}`, `at position 11: found a value in quotes, expected "," or "}"`},
		{`a in {,}`, `at position 7: found ",", expected a value in quotes or "}"`},
		{`a in {"x",,}`, `at position 11: found ",", expected a value in quotes or "}"`},
		{`has(a) & has(b)`, `at position 8: found a single "&", expected "&&", "||" or the end`},
		{`has(a) | has(b)`, `at position 8: found a single "|"`},
		{`has(a) &&`, `at position 10: found the end, expected a label, "has(", "all()", "global()", "!" or "("`},
		{`|| has(a)`, `at position 1: found "||", expected a label`},
		{`!`, `at position 2: found the end, expected a label`},
		{`(has(a)`, `at position 8: found the end, expected "&&", "||" or ")"`},
		{`has(a))`, `at position 7: found ")", expected "&&", "||" or the end`},
		{`()`, `at position 2: found ")", expected a label`},
		{`has (a)`, `at position 5: found "(", expected "==`},
		{`all ()`, `at position 5: found "("`},
		{`has()`, `at position 5: found ")", expected a label`},
		{`has(a b)`, `at position 7: found "b", expected ")"`},
		{`all(a)`, `at position 5: found "a", expected ")"`},
		{`global(`, `at position 8: found the end, expected ")"`},
		{`%`, `at position 1: found "%"`},
		{`"x" == a`, `at position 1: found a value in quotes, expected a label`},
		{"has(a)\n", `at position 7: found "\n" (only spaces and tabs may separate)`},
		{`a == 'é' é`, `at position 10: found "é"`},
		{strings.Repeat("a", 513) + ` == "x"`, `found a label of 513 characters, expected at most 512`},
		{`has(` + strings.Repeat("a", 513) + `)`, `at position 5: found a label of 513 characters`},
		{strings.Repeat("(", 2000), `found one more level of parentheses, expected at most 1024 levels`},
	} {
		s, err := Parse(tc.in)
		require.Error(t, err, tc.in)
		assert.Nil(t, s)
		assert.ErrorContains(t, err, tc.want)
		var syntax *SyntaxError
		require.ErrorAs(t, err, &syntax)
		assert.Equal(t, tc.in, syntax.Selector)
	}
	_, err := Parse(strings.Repeat("a", 512) + ` == "x"`)
	assert.NoError(t, err)
}

func TestCanonicalForm(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{``, `all()`},
		{` (all( ) )`, `all()`},
		{`global( )`, `global()`},
		{`! (has( b)||! has(a ))`, `!(has(b) || !has(a))`},
		{`! (a == "b"&&! c != "d")`, `!(a == "b" && !c != "d")`},
		{`!(a=='b')`, `!a == "b"`},
		{`a&&b`, ``},
		{`a=='1'&&b=='2'||c=='3'`, `((a == "1" && b == "2") || c == "3")`},
		{`(a=='1'&&b=='2')&&c=='3'`, `((a == "1" && b == "2") && c == "3")`},
		{`a=='1'&&(((b=='2')))&&c=='3'`, `(a == "1" && b == "2" && c == "3")`},
		{`a == "'"`, `a == "'"`},
		{`a == '"'`, `a == '"'`},
		{`a startswith '"'`, `a starts with '"'`},
		{`a endswith "'"`, `a ends with "'"`},
		{`a	contains'x'`, `a contains "x"`},
		{`a in {"z", "z", 'x', "y",}`, `a in {"x", "y", "z"}`},
		{`a notin{'b','a'}`, `a not in {"a", "b"}`},
		{`a in { }`, `a in {}`},
		{`!!has(a)`, `has(a)`},
		{`!!!has(a)`, `!has(a)`},
		{`!(!has(a))`, `has(a)`},
		{`!(!(!has(a)))`, `!has(a)`},
	} {
		s, err := Parse(tc.in)
		if tc.want == "" {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err, tc.in)
		assert.Equal(t, tc.want, s.String())
		again, err := Parse(s.String())
		require.NoError(t, err)
		assert.Equal(t, s.String(), again.String())
		assert.Equal(t, s.ID(), again.ID())
	}
}

// TestID pins identities that a Calico cluster computes for the same selectors.
func TestID(t *testing.T) {
	for in, want := range map[string]string{
		``:                         "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug",
		` all() `:                  "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug",
		`! (has( b)||! has(a ))`:   "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q",
		`! (a == "b"&&! c != "d")`: "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w",
	} {
		s, err := Parse(in)
		require.NoError(t, err)
		assert.Equal(t, want, s.ID(), in)
	}
}

func TestGlobalInspection(t *testing.T) {
	for in, want := range map[string][2]bool{
		`global()`:           {true, true},
		`(global())`:         {true, true},
		`!global()`:          {false, true},
		`has(a) || global()`: {false, true},
		`has(global)`:        {false, false},
		`all()`:              {false, false},
		`a == "global()"`:    {false, false},
	} {
		s, err := Parse(in)
		require.NoError(t, err)
		assert.Equal(t, want, [2]bool{s.IsGlobal(), s.UsesGlobal()}, in)
	}
}

func TestZeroValueSelectsNothing(t *testing.T) {
	var s Selector
	assert.False(t, s.Matches(nil))
	assert.Equal(t, "!all()", s.String())
	assert.False(t, And(&s, All()).Matches(nil))
	assert.False(t, s.IsGlobal() || s.UsesGlobal())
}

func TestConcurrentUse(t *testing.T) {
	s, err := Parse(`a in {"x"} && !has(b)`)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			assert.True(t, s.Matches(map[string]string{"a": "x"}))
			assert.Equal(t, `(a in {"x"} && !has(b))`, s.String())
			assert.NotEmpty(t, s.ID())
			assert.Equal(t, `has(p.b)`, Has("b").WithPrefix("p.").String())
			s.WithPrefix("p.").Required()
		})
	}
	wg.Wait()
}

func TestMatchesDoesNotAllocate(t *testing.T) {
	s, err := Parse(benchSelector)
	require.NoError(t, err)
	assert.Zero(t, testing.AllocsPerRun(100, func() { s.Matches(benchLabels) }))
}

const benchSelector = `(app == "shop" && tier in {"web", "api", "db"}) && !has(retired) && env != "dev" || role starts with "sys"`

var benchLabels = map[string]string{"app": "shop", "tier": "api", "env": "prod", "pod-template-hash": "5d9c7b"}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(benchSelector); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseAndID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s, err := Parse(benchSelector)
		if err != nil {
			b.Fatal(err)
		}
		s.ID()
	}
}

func BenchmarkMatches(b *testing.B) {
	s, err := Parse(benchSelector)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		s.Matches(benchLabels)
	}
}
