// Package iptvm carries out iptables rules in memory, as iptables(8) and iptables-extensions(8) say they work: what
// iptables-restore is told, with its sets, chains, jumps, gotos and marks. It knows the words that a firewall is made of and
// refuses any other.
package iptvm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/integration/oracle"
)

// VM is the tables of one family, ready to be asked.
type VM struct {
	tables map[string]map[string][]rule // by table and chain
	sets   map[string][]view.Member
}

// Packet is a packet on its way.
type Packet struct {
	oracle.Packet
	In, Out  string // names of interfaces; "" where there is none
	State    string // of connection tracking: NEW, ESTABLISHED, …
	ToLocal  bool   // the destination is an address of the host
	Mark     uint32
	ConnMark uint32
}

// Verdict is how a packet left a chain of the kernel's.
type Verdict struct {
	Accepted bool
	By       string // the rule that ended it
}

type rule struct {
	text     string
	criteria []func(*Packet) bool
	target   string // of -j or -g
	isGoto   bool
	mark     func(uint32) uint32 // of MARK
}

// New makes tables ready.
func New(r iptables.Ruleset) (*VM, error) {
	vm := &VM{tables: map[string]map[string][]rule{}, sets: r.Sets}
	for table, text := range r.Tables {
		chains := map[string][]rule{}
		for line := range strings.Lines(text) {
			words, err := split(line)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%s: %w", line, err)
			case len(words) == 0 || words[0][0] == '*' || words[0] == "COMMIT" || words[0][0] == '#':
				continue
			case words[0][0] == ':':
				chains[words[0][1:]] = nil
				continue
			}
			at, rest := len(chains[words[1]]), words[2:]
			switch words[0] {
			case "-A":
			case "-I": // at the top, or in front of a rule given by its number
				at = 0
				if len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
					if _, err := fmt.Sscan(rest[0], &at); err != nil {
						return nil, fmt.Errorf("%s: %w", line, err)
					}
					at, rest = at-1, rest[1:]
				}
			default:
				return nil, fmt.Errorf("%s: %q is not known here", line, words[0])
			}
			parsed, err := vm.rule(rest)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
			parsed.text = strings.TrimSpace(line)
			chains[words[1]] = slices.Insert(chains[words[1]], at, parsed)
		}
		vm.tables[table] = chains
	}
	return vm, nil
}

// split takes a line of iptables-restore apart.
func split(line string) (words []string, err error) {
	line = strings.TrimSpace(line)
	for line != "" {
		if line[0] == '"' {
			word, rest, ok := strings.Cut(line[1:], `"`)
			if !ok {
				return nil, fmt.Errorf("a quote without end")
			}
			words, line = append(words, word), strings.TrimLeft(rest, " ")
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		words, line = append(words, word), strings.TrimLeft(rest, " ")
	}
	return words, nil
}

// Chain takes a packet through a chain of the kernel's, whose policy is to accept.
func (vm *VM) Chain(table, chain string, p *Packet) (Verdict, error) {
	e := &evaluation{chains: vm.tables[table], p: p}
	if done := e.chain(chain, 0); !done {
		e.verdict = Verdict{true, "policy of " + chain}
	}
	return e.verdict, e.err
}

type evaluation struct {
	chains  map[string][]rule
	p       *Packet
	verdict Verdict
	err     error
}

// chain evaluates a chain; false if it ended without a verdict.
func (e *evaluation) chain(name string, depth int) bool {
	if depth > 50 {
		e.err = fmt.Errorf("jumps too deep at %s", name)
		return true
	}
	for _, r := range e.chains[name] {
		if slices.ContainsFunc(r.criteria, func(holds func(*Packet) bool) bool { return !holds(e.p) }) {
			continue
		}
		switch r.target {
		case "ACCEPT":
			e.verdict = Verdict{true, r.text}
			return true
		case "DROP", "REJECT":
			e.verdict = Verdict{false, r.text}
			return true
		case "RETURN":
			return false
		case "MARK":
			e.p.Mark = r.mark(e.p.Mark)
			continue
		case "CT": // --notrack
			e.p.State = "UNTRACKED"
			continue
		case "LOG", "MASQUERADE", "SNAT", "":
			continue
		}
		if _, known := e.chains[r.target]; !known {
			e.err = fmt.Errorf("chain %s is not there: %s", r.target, r.text)
			return true
		}
		if e.chain(r.target, depth+1) {
			return true
		}
		if r.isGoto { // its end is the end of this one
			return false
		}
	}
	return false
}
