// Package selector is Calico's label selector language: parsing, a canonical text form, evaluation, composition of a
// policy's several selectors into one, and what an index needs to know about a selector without evaluating it.
//
//	selector := <empty> | or
//	or       := and ( "||" and )*
//	and      := unary ( "&&" unary )*
//	unary    := "!"* primary
//	primary  := "(" or ")" | "all(" ")" | "global(" ")" | "has(" LABEL ")"
//	          | LABEL "==" STR | LABEL "!=" STR
//	          | LABEL "contains" STR | LABEL "starts with" STR | LABEL "ends with" STR
//	          | LABEL "in" SET | LABEL "not in" SET
//	SET      := "{" [ STR ("," STR)* [","] ] "}"
//	STR      := '"' … '"' | "'" … "'"        (any bytes except the quote used, no escapes)
//	LABEL    := [A-Za-z0-9_./-]+             (at most 512)
//
// The package refuses nothing but bad syntax: where global() may stand, and how long a field may be, is its users' rule.
package selector

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"sync"
)

// Labels that carry an endpoint's namespace and service account.
const (
	LabelNamespace      = "projectcalico.org/namespace"
	LabelServiceAccount = "projectcalico.org/serviceaccount"
)

// Selector is a parsed selector. It is immutable and may be used by many goroutines at once. Selectors come from Parse,
// the constructors and the composing functions; where those take a nil *Selector it stands for a field that is not
// given. The zero value selects nothing.
type Selector struct {
	root node

	once     sync.Once // guards the two below
	text, id string
}

// Labels are an object's labels, for callers that keep them elsewhere than in one map.
type Labels interface {
	// Get returns the value of a label and whether the label is present.
	Get(key string) (value string, present bool)
}

// Map is a set of labels in one map.
type Map map[string]string

// Get implements Labels.
func (m Map) Get(key string) (string, bool) {
	v, ok := m[key]
	return v, ok
}

// Matches tells whether an object with these labels is selected.
func (s *Selector) Matches(labels map[string]string) bool { return s.MatchesLabels(Map(labels)) }

// MatchesLabels is Matches for labels that do not live in one map.
func (s *Selector) MatchesLabels(labels Labels) bool { return s.root != nil && s.root.eval(labels) }

// String returns the canonical form: equal texts mean equal selectors, and Parse(s.String()).String() == s.String().
func (s *Selector) String() string {
	s.render()
	return s.text
}

// ID is the name of the selector's IP set: "s:" and the unpadded base64url SHA-224 of "s:" + canonical form, as in
// Calico.
func (s *Selector) ID() string {
	s.render()
	return s.id
}

// render fills text and id, both only on demand: most selectors are parsed to be checked or combined, not printed.
func (s *Selector) render() {
	s.once.Do(func() {
		var b strings.Builder
		s.tree().render(&b)
		s.text = b.String()
		sum := sha256.Sum224([]byte("s:" + s.text))
		s.id = "s:" + base64.RawURLEncoding.EncodeToString(sum[:])
	})
}

// IsGlobal tells whether the selector is global() and nothing else, the only place where global() is allowed.
func (s *Selector) IsGlobal() bool {
	_, ok := s.root.(globalNode)
	return ok
}

// UsesGlobal tells whether global() stands anywhere in the selector.
func (s *Selector) UsesGlobal() bool {
	return anyNode(s.root, func(n node) bool { _, ok := n.(globalNode); return ok })
}
