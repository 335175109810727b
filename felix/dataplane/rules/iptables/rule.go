package iptables

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
)

// rule is a rule as it is written, in the words of iptables-restore, and what it comes from.
type rule struct {
	match   string // criteria, each with a blank behind
	target  string // "-j …" or "-g …"
	comment string
}

// chain is a chain's rules with their hashes; the hash of a rule is over the chain's name and all rules up to it, so that
// the last one stands for all.
type chain struct {
	rules  []rule
	hashes []string
	idle   bool // it decides nothing
}

const (
	hashMark = "cali:"
	hashLen  = 16
	// maxComment is the longest comment (XT_MAX_COMMENT_LEN) without the zero.
	maxComment = 255
)

func newChain(name string, rules []rule) chain {
	c := chain{rules: rules, hashes: make([]string, len(rules))}
	sum := sha256.Sum224([]byte(name))
	for i, r := range rules {
		sum = sha256.Sum224(append(sum[:], r.match+r.target+"\x00"+r.comment...))
		c.hashes[i] = base64.RawURLEncoding.EncodeToString(sum[:])[:hashLen]
	}
	return c
}

func (c chain) equal(o chain) bool { return slices.Equal(c.hashes, o.hashes) }

// spec is rule i as iptables-restore takes it, behind "-A chain". The comment comes last: matches are tried in order, and
// this one costs the packet too.
func (c chain) spec(i int) string {
	r := c.rules[i]
	text := hashMark + c.hashes[i] + " " + r.comment
	return r.match + `-m comment --comment "` + printable(text[:min(len(text), maxComment)]) + `" ` + r.target
}

// String is the hashes and comments of the chain's rules.
func (c chain) String() string {
	var b strings.Builder
	for i, h := range c.hashes {
		if i > 0 {
			b.WriteString("; ")
		}
		if i < len(c.rules) && c.rules[i].comment != "" {
			b.WriteString(c.rules[i].comment + " ")
		}
		b.WriteString("#" + h)
	}
	return b.String()
}

// printable replaces what could end a quoted text of iptables-restore, or a line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' || r == '\'' || r == '`' {
			return '_'
		}
		return r
	}, s)
}
