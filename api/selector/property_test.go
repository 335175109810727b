package selector

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/thorough"
)

// expr is a selector written down and evaluated a second time, as plainly as can be.
type expr struct {
	text string
	eval func(map[string]string) bool
}

var (
	someKeys   = []string{"a", "b", "in", "has", LabelNamespace}
	someValues = []string{"", "x", "xy", "yx", "x'", `x"`}
)

func randomExpr(r *rand.Rand, depth int) expr {
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	sp := func() string { return pick([]string{"", " ", "\t", "  "}) }
	str := func(v string) string {
		if strings.Contains(v, `"`) || (!strings.Contains(v, "'") && r.IntN(2) == 0) {
			return "'" + v + "'"
		}
		return `"` + v + `"`
	}
	key, value := pick(someKeys), pick(someValues)
	if depth > 0 && r.IntN(3) > 0 {
		x, y, z := randomExpr(r, depth-1), randomExpr(r, depth-1), randomExpr(r, depth-1)
		switch r.IntN(4) {
		case 0:
			return expr{sp() + "!" + sp() + "(" + x.text + ")" + sp(), func(l map[string]string) bool { return !x.eval(l) }}
		case 1:
			return expr{
				"(" + x.text + ")" + sp() + "&&" + sp() + "(" + y.text + ")&&(" + z.text + ")",
				func(l map[string]string) bool { return x.eval(l) && y.eval(l) && z.eval(l) },
			}
		case 2:
			return expr{
				sp() + "(" + x.text + ")" + sp() + "||" + sp() + "(" + y.text + ")",
				func(l map[string]string) bool { return x.eval(l) || y.eval(l) },
			}
		default: // without parentheses: precedence must do it
			a, b, c := randomExpr(r, 0), randomExpr(r, 0), randomExpr(r, 0)
			return expr{
				a.text + "||!" + b.text + " && " + c.text,
				func(l map[string]string) bool { return a.eval(l) || (!b.eval(l) && c.eval(l)) },
			}
		}
	}
	get := func(l map[string]string) (string, bool) { v, ok := l[key]; return v, ok }
	switch r.IntN(9) {
	case 0:
		return expr{"all(" + sp() + ")", func(map[string]string) bool { return true }}
	case 1:
		return expr{"global()", func(l map[string]string) bool { _, ok := l[LabelNamespace]; return !ok }}
	case 2:
		return expr{"has(" + sp() + key + sp() + ")", func(l map[string]string) bool { _, ok := get(l); return ok }}
	case 3:
		return expr{key + sp() + "==" + sp() + str(value), func(l map[string]string) bool { v, ok := get(l); return ok && v == value }}
	case 4:
		return expr{key + sp() + "!=" + sp() + str(value), func(l map[string]string) bool { v, ok := get(l); return !ok || v != value }}
	case 5:
		return expr{key + " contains" + sp() + str(value), func(l map[string]string) bool { v, ok := get(l); return ok && strings.Contains(v, value) }}
	case 6:
		return expr{key + " starts" + sp() + "with" + sp() + str(value), func(l map[string]string) bool { v, ok := get(l); return ok && strings.HasPrefix(v, value) }}
	case 7:
		return expr{key + " ends" + sp() + "with" + sp() + str(value), func(l map[string]string) bool { v, ok := get(l); return ok && strings.HasSuffix(v, value) }}
	}
	var members, texts []string
	for range r.IntN(4) {
		v := pick(someValues)
		members, texts = append(members, v), append(texts, str(v))
	}
	set := "{" + sp() + strings.Join(texts, sp()+","+sp())
	if len(texts) > 0 && r.IntN(2) == 0 {
		set += ","
	}
	set += sp() + "}"
	in := func(l map[string]string) bool {
		v, ok := get(l)
		for _, m := range members {
			if ok && m == v {
				return true
			}
		}
		return false
	}
	if r.IntN(2) == 0 {
		return expr{key + " in" + sp() + set, in}
	}
	return expr{key + " not" + sp() + "in" + set, func(l map[string]string) bool { return !in(l) }}
}

// everyLabels is every combination of two absent or present labels and some others.
func everyLabels() []map[string]string {
	all := []map[string]string{{}}
	for _, k := range someKeys {
		values := someValues
		if k != "a" && k != "b" {
			values = []string{"x"}
		}
		for _, l := range slices.Clip(all) {
			for _, v := range values {
				more := map[string]string{k: v}
				maps.Copy(more, l)
				all = append(all, more)
			}
		}
	}
	return all
}

func meets(l map[string]string, required []Requirement) bool {
	for _, r := range required {
		v, ok := l[r.Key]
		found := r.AnyValue
		for _, want := range r.Values {
			found = found || want == v
		}
		if !ok || !found {
			return false
		}
	}
	return true
}

// TestAgainstOracle compares evaluation, canonical form, rewriting and requirements with the plain evaluator.
func TestAgainstOracle(t *testing.T) {
	universe := everyLabels()
	prefixed := make([]map[string]string, len(universe))
	for i, l := range universe {
		prefixed[i] = map[string]string{}
		for k, v := range l {
			prefixed[i]["p."+k] = v
		}
	}
	for seed := range thorough.Rounds(300, 2000) {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		x, y := randomExpr(r, 4), randomExpr(r, 2)
		what := fmt.Sprintf("seed %d: %s", seed, x.text)
		s, err := Parse(x.text)
		require.NoError(t, err, what)
		other, err := Parse(y.text)
		require.NoError(t, err, y.text)

		again, err := Parse(s.String())
		require.NoError(t, err, what)
		require.Equal(t, s.String(), again.String(), what)
		require.NotContains(t, s.String(), "!!")

		pre := s.ReplaceGlobal(Not(Has(LabelNamespace))).WithPrefix("p.")
		joined, negated := And(s, nil, other), Not(s)
		required := s.Required()
		requireRest(t, what, s, universe)
		for i, l := range universe {
			want := x.eval(l)
			if s.Matches(l) != want || again.Matches(l) != want || negated.Matches(l) == want ||
				pre.Matches(prefixed[i]) != want || joined.Matches(l) != (want && y.eval(l)) {
				t.Fatalf("%s\ncanonical %s\nother %s\nlabels %v want %v", what, s, other, l, want)
			}
			if want && !meets(l, required) {
				t.Fatalf("%s\nlabels %v match but do not meet %v", what, l, required)
			}
		}
	}
}

// requireRest has a selector leave what it should when some labels are given.
func requireRest(t *testing.T, what string, s *Selector, universe []map[string]string) {
	given := func(label string) bool { return label == "a" || label == LabelNamespace }
	rest := s.Rest(given)
	alike := map[string][]map[string]string{} // by the labels that are given
	for _, l := range universe {
		same := maps.Clone(l)
		maps.DeleteFunc(same, func(label, _ string) bool { return !given(label) })
		alike[fmt.Sprint(same)] = append(alike[fmt.Sprint(same)], l)
	}
	for same, objects := range alike {
		if slices.ContainsFunc(objects, s.Matches) {
			for _, l := range objects {
				require.Equal(t, s.Matches(l), rest == nil || rest.Matches(l), "%s: of those with %s, %v; the rest is %v", what, same, l, rest)
			}
		}
	}
}

func TestRest(t *testing.T) {
	for in, want := range map[string]string{
		`all()`:                 "",
		`!all()`:                "",
		`a == "x" && !global()`: "",
		`a == "x" && b == "x"`:  `b == "x"`,
		`b == "x" && (a == "x" && has(c) && all())`: `(b == "x" && has(c))`,
		`a == "x" || b == "x"`:                      `(a == "x" || b == "x")`,
		`!(a == "x" || b == "x")`:                   `!(a == "x" || b == "x")`,
		`(a == "x" || has(a)) && !has(b)`:           `!has(b)`,
	} {
		s, err := Parse(in)
		require.NoError(t, err)
		text := ""
		if rest := s.Rest(func(label string) bool { return label == "a" || label == LabelNamespace }); rest != nil {
			text = rest.String()
		}
		require.Equal(t, want, text, in)
	}
}

func TestRequired(t *testing.T) {
	none := []Requirement{}
	one := func(key string, values ...string) []Requirement { return []Requirement{{Key: key, Values: values}} }
	has := func(key string) []Requirement { return []Requirement{{Key: key, AnyValue: true}} }
	for in, want := range map[string][]Requirement{
		`all()`:            none,
		`!all()`:           none,
		`global()`:         none,
		`!global()`:        has(LabelNamespace),
		`a == "x"`:         one("a", "x"),
		`a != "x"`:         none,
		`!a != "x"`:        one("a", "x"),
		`!a == "x"`:        none,
		`a in {"y", "x"}`:  one("a", "x", "y"),
		`!a in {"x"}`:      none,
		`!a not in {"x"}`:  one("a", "x"),
		`a not in {"x"}`:   none,
		`has(a)`:           has("a"),
		`!has(a)`:          none,
		`a contains "x"`:   has("a"),
		`a starts with ""`: has("a"),
		`!a ends with "x"`: none,
		`a == "x" && has(b)`: {
			{Key: "a", Values: []string{"x"}}, {Key: "b", AnyValue: true},
		},
		`has(a) && a in {"x", "y"} && a in {"y", "z"}`: one("a", "y"),
		`a == "x" || a == "y"`:                         one("a", "x", "y"),
		`a == "x" || has(a)`:                           has("a"),
		`a == "x" || has(b)`:                           none,
		`(a == "x" && has(b)) || (a == "y" && has(c))`: one("a", "x", "y"),
		`!(a != "x" || !has(b))`: {
			{Key: "a", Values: []string{"x"}}, {Key: "b", AnyValue: true},
		},
		`!(a != "x" && a != "y")`:                      one("a", "x", "y"),
		`(a == "x" && a == "y" && has(b)) || c == "z"`: one("c", "z"),
		`c == "z" || a in {}`:                          one("c", "z"),
	} {
		s, err := Parse(in)
		require.NoError(t, err)
		assert.Equal(t, want, s.Required(), in)
	}
	s, err := Parse(`a == "x" && a == "y"`)
	require.NoError(t, err)
	require.Len(t, s.Required(), 1)
	assert.Empty(t, s.Required()[0].Values)
	assert.False(t, s.Required()[0].AnyValue)
}

func FuzzParse(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(randomExpr(rand.New(rand.NewPCG(seed, 2)), 3).text)
	}
	for _, s := range []string{"", "a = 'x'", "((((", "!!!!", "has(", "a in {'x',,}", "a starts", "\xff", benchSelector} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			var syntax *SyntaxError
			require.ErrorAs(t, err, &syntax)
			require.NotEmpty(t, syntax.Found)
			return
		}
		again, err := Parse(s.String())
		require.NoError(t, err, "canonical form of %q", in)
		require.Equal(t, s.String(), again.String())
		for _, l := range []map[string]string{nil, {"a": "x"}, {"a": "", LabelNamespace: "n"}} {
			require.Equal(t, s.Matches(l), again.Matches(l))
			require.True(t, !s.Matches(l) || meets(l, s.Required()))
		}
	})
}
