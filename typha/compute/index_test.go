package compute

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/typha/cache"
)

// TestIndexTriesFew asserts what the index is for: a subject is not tried against selectors that its labels rule out.
func TestIndexTriesFew(t *testing.T) {
	x := newIndex(func(*selection, *subject) {}, func(*selection, *subject) {})
	parse := func(text string) *selector.Selector {
		s, err := selector.Parse(text)
		require.NoError(t, err)
		return s
	}
	// All require the same orchestrator; half tell namespaces apart, half apps.
	for n := range 1000 {
		x.selection(parse(fmt.Sprintf("orchestrator == 'k8s' && namespace == 'ns%d' && has(app)", n)))
		x.selection(parse(fmt.Sprintf("orchestrator == 'k8s' && app in {'a%d', 'b%d'} && namespace == 'shop'", n, n)))
	}
	require.Same(t, x.selection(parse("has(a)")), x.selection(parse(" ( has( a ) )")), "equal selectors are one")
	never := x.selection(parse("a in {}"))
	x.selection(parse("!has(a)"))

	tried := 0
	s := &subject{traits: &cache.Traits{Labels: map[string]string{"orchestrator": "k8s", "namespace": "ns7", "app": "a7"}}}
	s.each(func(key, value string) {
		if k := x.keys[key]; k != nil {
			tried += len(k.any)
			if vi := k.values[value]; vi != nil {
				tried += len(vi.selections)
			}
		}
	})
	tried += len(x.loose)
	require.Less(t, tried, 10)

	x.enter(s)
	x.add(s)
	require.Len(t, s.matches, 2, "the selector of its namespace, and !has(a)")
	late := x.selection(parse("app == 'a7'"))
	require.Contains(t, late.subjects, s.number, "a selector that comes later finds what is there")
	require.Len(t, s.matches, 3)
	postings := x.postings(s)
	s.traits = &cache.Traits{Labels: map[string]string{"a": "1"}}
	x.relabelled(s, postings)
	require.Len(t, s.matches, 1)
	require.Empty(t, never.subjects)
	x.remove(s)
	for _, sel := range x.selections {
		require.Empty(t, sel.subjects)
		x.release(sel)
	}
	require.Empty(t, x.keys)
	require.Empty(t, x.selections)
	require.Empty(t, x.loose)
}

// TestLabels has the labels of a subject win in their order: of the system, own, of the profiles as they are listed.
func TestLabels(t *testing.T) {
	s := &subject{
		traits: &cache.Traits{
			Namespace: "shop", Orchestrator: "k8s",
			Labels: map[string]string{"app": "web", "pcns.env": "forged", selector.LabelNamespace: "bank", "own": "1"},
		},
		inherits: []*profile{
			{labels: map[string]string{"pcns.env": "prod", "app": "default", "first": "1"}},
			{labels: map[string]string{"pcns.env": "test", "first": "2", "second": "2", labelOrchestrator: "none"}},
		},
	}
	want := map[string]string{
		selector.LabelNamespace: "shop", labelOrchestrator: "k8s", "app": "web", "own": "1",
		"pcns.env": "prod", "first": "1", "second": "2",
	}
	got := map[string]string{}
	s.each(func(k, v string) {
		require.NotContains(t, got, k, "each label once")
		got[k] = v
	})
	require.Equal(t, want, got)
	for k, v := range want {
		value, ok := s.Get(k)
		require.True(t, ok)
		require.Equal(t, v, value)
	}
	_, ok := s.Get(selector.LabelServiceAccount)
	require.False(t, ok)
}
