package selector

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	maxLabel = 512  // characters of a label key, as in Calico
	maxDepth = 1024 // nested parentheses: more than a field's 1024 characters can hold, so that bad input cannot eat the stack
)

// SyntaxError says where a selector stops making sense.
type SyntaxError struct {
	Selector string // the whole text
	Position int    // of the offending character, counted from 1
	Found    string // what stands there
	Expected string // what could have stood there
}

// Error names the selector, the position, what was found and what is expected.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("selector %q: at position %d: found %s, expected %s", e.Selector, e.Position, e.Found, e.Expected)
}

// Parse reads a selector; the empty text means all(). An error is always a *SyntaxError.
func Parse(s string) (*Selector, error) {
	p := parser{in: s}
	if p.blanks(); p.end() {
		return All(), nil
	}
	root, err := p.or()
	if err != nil {
		return nil, err
	}
	if !p.end() {
		return nil, p.errorf(p.found(), `"&&", "||" or the end of the selector`)
	}
	return &Selector{root: root}, nil
}

// parser walks the text once. Every method starts with the blanks skipped and leaves them skipped.
type parser struct {
	in    string
	pos   int
	depth int
}

func (p *parser) or() (node, error)  { return p.joined("||", p.and) }
func (p *parser) and() (node, error) { return p.joined("&&", p.unary) }

// joined parses term ( operator term )*.
func (p *parser) joined(operator string, term func() (node, error)) (node, error) {
	first, err := term()
	if err != nil {
		return nil, err
	}
	terms := []node{first}
	for p.take(operator) {
		t, err := term()
		if err != nil {
			return nil, err
		}
		terms = append(terms, t)
	}
	return group(operator == "&&", terms), nil
}

func (p *parser) unary() (node, error) {
	negated := false
	for p.take("!") {
		negated = !negated
	}
	n, err := p.primary()
	if err == nil && negated {
		n = not(n)
	}
	return n, err
}

const aTerm = `a label, "has(", "all()", "global()", "!" or "("`

func (p *parser) primary() (node, error) {
	if p.take("(") {
		if p.depth++; p.depth > maxDepth {
			return nil, p.errorf("one more level of parentheses", fmt.Sprintf("at most %d levels", maxDepth))
		}
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		p.depth--
		return n, p.expect(")", `"&&", "||" or ")"`)
	}
	if p.end() || !isLabel(p.in[p.pos]) {
		return nil, p.errorf(p.found(), aTerm)
	}
	// A function word and its parenthesis are one token; without the parenthesis the word is an ordinary label.
	switch word := p.word(); {
	case p.follows(word, '(') && word == "all":
		return allNode{}, p.call(word)
	case p.follows(word, '(') && word == "global":
		return globalNode{}, p.call(word)
	case p.follows(word, '(') && word == "has":
		return p.has()
	}
	key, err := p.label()
	if err != nil {
		return nil, err
	}
	return p.operation(key)
}

// call takes name "(" ")".
func (p *parser) call(name string) error {
	p.take(name + "(")
	return p.expect(")", `")"`)
}

func (p *parser) has() (node, error) {
	p.take("has(")
	key, err := p.label()
	if err != nil {
		return nil, err
	}
	return hasNode{key}, p.expect(")", `")"`)
}

// operation parses what follows a label.
func (p *parser) operation(key string) (node, error) {
	for op := equal; op <= endsWith; op++ {
		if first, second, _ := strings.Cut(op.String(), " "); p.operator(first, second) {
			value, err := p.value("a value in quotes")
			return &compareNode{key: key, op: op, value: value}, err
		}
	}
	if p.operator("in", "") {
		return p.set(key, false)
	}
	if p.operator("not", "in") {
		return p.set(key, true)
	}
	return nil, p.errorf(p.found(), `"==", "!=", "in", "not in", "contains", "starts with" or "ends with" after label "`+key+`"`)
}

func (p *parser) set(key string, absent bool) (node, error) {
	if err := p.expect("{", `"{"`); err != nil {
		return nil, err
	}
	var values []string
	for !p.take("}") {
		v, err := p.value(`a value in quotes or "}"`)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
		if !p.take(",") {
			if err := p.expect("}", `"," or "}"`); err != nil {
				return nil, err
			}
			break
		}
	}
	return newSet(key, absent, values), nil
}

// value takes a quoted string.
func (p *parser) value(expected string) (string, error) {
	if p.end() || (p.in[p.pos] != '"' && p.in[p.pos] != '\'') {
		return "", p.errorf(p.found(), expected)
	}
	quote, rest := p.in[p.pos], p.in[p.pos+1:]
	n := strings.IndexByte(rest, quote)
	if n < 0 {
		return "", p.errorf("a value that never ends", fmt.Sprintf("a closing %c", quote))
	}
	p.pos += n + 2
	p.blanks()
	return rest[:n], nil
}

func (p *parser) label() (string, error) {
	key := p.word()
	switch {
	case key == "":
		return "", p.errorf(p.found(), "a label")
	case len(key) > maxLabel:
		return "", p.errorf(fmt.Sprintf("a label of %d characters", len(key)), fmt.Sprintf("at most %d", maxLabel))
	}
	p.pos += len(key)
	p.blanks()
	return key, nil
}

// operator takes an operator of one or two words if it stands here. Blanks between the words are optional; a word must
// not run on into further label characters.
func (p *parser) operator(first, second string) bool {
	if !strings.HasPrefix(p.in[p.pos:], first) {
		return false
	}
	pos := p.pos + len(first)
	if second != "" {
		pos = skipBlanks(p.in, pos)
		if !strings.HasPrefix(p.in[pos:], second) {
			return false
		}
		pos += len(second)
	}
	if isLabel(first[0]) && pos < len(p.in) && isLabel(p.in[pos]) {
		return false
	}
	p.pos = pos
	p.blanks()
	return true
}

// take takes a token of punctuation if it stands here.
func (p *parser) take(token string) bool {
	if !strings.HasPrefix(p.in[p.pos:], token) {
		return false
	}
	p.pos += len(token)
	p.blanks()
	return true
}

func (p *parser) expect(token, expected string) error {
	if !p.take(token) {
		return p.errorf(p.found(), expected)
	}
	return nil
}

func (p *parser) end() bool { return p.pos == len(p.in) }

func (p *parser) blanks() { p.pos = skipBlanks(p.in, p.pos) }

// word is the run of label characters that starts here.
func (p *parser) word() string {
	end := p.pos
	for end < len(p.in) && isLabel(p.in[end]) {
		end++
	}
	return p.in[p.pos:end]
}

// follows tells whether c comes right after the word that starts here.
func (p *parser) follows(word string, c byte) bool {
	at := p.pos + len(word)
	return at < len(p.in) && p.in[at] == c
}

// found describes what stands here for an error message.
func (p *parser) found() string {
	if p.end() {
		return "the end"
	}
	if w := p.word(); w != "" {
		if len(w) > 40 {
			w = w[:40] + "…"
		}
		return fmt.Sprintf("%q", w)
	}
	switch rest := p.in[p.pos:]; rest[0] {
	case '\n', '\r', '\v', '\f':
		return fmt.Sprintf("%q (only spaces and tabs may separate)", rest[:1])
	case '"', '\'':
		return "a value in quotes"
	case '=', '&', '|':
		if len(rest) > 1 && rest[1] == rest[0] {
			return fmt.Sprintf("%q", rest[:2])
		}
		return fmt.Sprintf("a single %q", rest[:1])
	default:
		_, n := utf8.DecodeRuneInString(rest)
		return fmt.Sprintf("%q", rest[:n])
	}
}

func (p *parser) errorf(found, expected string) error {
	return &SyntaxError{
		Selector: p.in,
		Position: utf8.RuneCountInString(p.in[:p.pos]) + 1,
		Found:    found,
		Expected: expected,
	}
}

func skipBlanks(s string, pos int) int {
	for pos < len(s) && (s[pos] == ' ' || s[pos] == '\t') {
		pos++
	}
	return pos
}

func isLabel(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '_' || c == '.' || c == '/' || c == '-'
}
