package oracle

import (
	"fmt"
	"slices"
	"strings"
)

// Labels that say what an endpoint is.
const (
	labelNamespace      = "projectcalico.org/namespace"
	labelOrchestrator   = "projectcalico.org/orchestrator"
	labelServiceAccount = "projectcalico.org/serviceaccount"

	ofNamespace      = "pcns." // before the labels that come from the namespace
	ofServiceAccount = "pcsa." // before those of the service account
)

// field is where a selector stands, which says what its words mean there.
type field struct {
	prefix string // before each label that it names
	all    string // the label that all() asks for; "" if all() is all
}

// selector tells whether something with these labels is selected.
type selector func(labels map[string]string, at field) bool

// parseSelector reads a selector (spec §2).
func parseSelector(text string) (selector, error) {
	p := &parser{rest: text}
	p.blanks()
	if p.rest == "" {
		return all, nil
	}
	s := p.or()
	if p.rest != "" && !p.failed {
		p.failed = true
	}
	if p.failed {
		return nil, fmt.Errorf("selector %q cannot be read at %q", text, p.rest)
	}
	return s, nil
}

// all is all().
func all(l map[string]string, at field) bool { return at.all == "" || has(l, at.all) }

type parser struct {
	rest   string
	failed bool
}

func (p *parser) fail() selector {
	p.failed = true
	return all
}

func (p *parser) blanks() { p.rest = strings.TrimLeft(p.rest, " \t") }

// take takes a token and the blanks behind it.
func (p *parser) take(token string) bool {
	rest, ok := strings.CutPrefix(p.rest, token)
	if ok && !p.failed {
		p.rest = rest
		p.blanks()
	}
	return ok && !p.failed
}

func (p *parser) or() selector {
	s := p.and()
	for p.take("||") {
		a, b := s, p.and()
		s = func(l map[string]string, at field) bool { return a(l, at) || b(l, at) }
	}
	return s
}

func (p *parser) and() selector {
	s := p.unary()
	for p.take("&&") {
		a, b := s, p.unary()
		s = func(l map[string]string, at field) bool { return a(l, at) && b(l, at) }
	}
	return s
}

func (p *parser) unary() selector {
	if p.take("!") {
		s := p.unary()
		return func(l map[string]string, at field) bool { return !s(l, at) }
	}
	switch {
	case p.take("("):
		s := p.or()
		return p.closed(s)
	case p.take("all("):
		return p.closed(all)
	case p.take("global("):
		return p.closed(func(l map[string]string, _ field) bool { return !has(l, labelNamespace) })
	case p.take("has("):
		k := p.label()
		return p.closed(func(l map[string]string, at field) bool { return has(l, at.prefix+k) })
	}
	return p.comparison()
}

func (p *parser) closed(s selector) selector {
	if !p.take(")") {
		return p.fail()
	}
	return s
}

func has(labels map[string]string, key string) bool { _, ok := labels[key]; return ok }

const labelLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-"

func (p *parser) label() string {
	n := len(p.rest) - len(strings.TrimLeft(p.rest, labelLetters))
	k := p.rest[:n]
	p.rest = p.rest[n:]
	p.blanks()
	p.failed = p.failed || n == 0 || n > 512
	return k
}

func (p *parser) comparison() selector {
	k := p.label()
	if p.failed {
		return p.fail()
	}
	// compare is of a label that is there; absent is the answer for one that is not.
	compare := func(absent bool, compare func(value string) bool) selector {
		return func(l map[string]string, at field) bool {
			v, ok := l[at.prefix+k]
			if !ok {
				return absent
			}
			return compare(v)
		}
	}
	switch {
	case p.take("=="):
		want := p.value()
		return compare(false, func(v string) bool { return v == want })
	case p.take("!="):
		want := p.value()
		return compare(true, func(v string) bool { return v != want })
	case p.words("contains"):
		part := p.value()
		return compare(false, func(v string) bool { return strings.Contains(v, part) })
	case p.words("starts", "with"):
		part := p.value()
		return compare(false, func(v string) bool { return strings.HasPrefix(v, part) })
	case p.words("ends", "with"):
		part := p.value()
		return compare(false, func(v string) bool { return strings.HasSuffix(v, part) })
	case p.words("not", "in"):
		set := p.set()
		return compare(true, func(v string) bool { return !slices.Contains(set, v) })
	case p.words("in"):
		set := p.set()
		return compare(false, func(v string) bool { return slices.Contains(set, v) })
	}
	return p.fail()
}

// words takes an operator of words, between which blanks may stand, and behind which no letter of a label may.
func (p *parser) words(words ...string) bool {
	before := p.rest
	for _, w := range words {
		if !p.take(w) {
			p.rest = before
			return false
		}
	}
	end := before[:len(before)-len(p.rest)]
	if p.rest != "" && strings.ContainsRune(labelLetters, rune(p.rest[0])) && strings.TrimRight(end, " \t") == end {
		p.rest = before
		return false
	}
	return true
}

func (p *parser) value() string {
	if p.failed || p.rest == "" || p.rest[0] != '"' && p.rest[0] != '\'' {
		p.fail()
		return ""
	}
	v, rest, ok := strings.Cut(p.rest[1:], p.rest[:1])
	if !ok {
		p.fail()
		return ""
	}
	p.rest = rest
	p.blanks()
	return v
}

func (p *parser) set() (values []string) {
	if !p.take("{") {
		p.fail()
	}
	for !p.failed && !p.take("}") {
		values = append(values, p.value())
		if p.take("}") {
			break
		}
		if !p.take(",") {
			p.fail()
		}
	}
	return values
}
