// Package nftvm carries out nftables rules in memory, as the kernel's documentation says it does (nft(8), linux/netfilter/
// nf_tables.h): registers, sets, intervals, verdict maps, jumps and marks. It knows the expressions that a firewall is made
// of and refuses any other.
package nftvm

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
)

// VM is a table ready to be asked.
type VM struct {
	chains map[string][]rule
	sets   map[string]set
	bases  []base // by priority
}

type base struct {
	hook     int
	kind     string
	priority int32
	name     string
}

type rule struct {
	comment string
	ops     []op
}

// op is one expression. It returns false if the rule does not go on.
type op func(*run) bool

type set struct {
	keyLen   int
	exact    map[string]nftables.RulesetVerdict // unless of intervals
	interval []interval                         // by beginning; they do not overlap
}

type interval struct{ from, to string } // to is behind the end; "" if there is no end

// New makes a table ready.
func New(r nftables.Ruleset) (*VM, error) {
	vm := &VM{chains: map[string][]rule{}, sets: map[string]set{}}
	for name, s := range r.Sets {
		vm.sets[name] = newSet(s)
	}
	for name, c := range r.Chains {
		if c.Hook >= 0 {
			vm.bases = append(vm.bases, base{c.Hook, c.Type, c.Priority, name})
		}
		rules := make([]rule, 0, len(c.Rules))
		for _, r := range c.Rules {
			ops, err := vm.decode(r.Expressions)
			if err != nil {
				return nil, fmt.Errorf("chain %s, rule %q: %w", name, r.Comment, err)
			}
			rules = append(rules, rule{r.Comment, ops})
		}
		vm.chains[name] = rules
	}
	slices.SortFunc(vm.bases, func(a, b base) int { return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.name, b.name)) })
	return vm, nil
}

func newSet(s nftables.RulesetSet) set {
	out := set{keyLen: s.KeyLen}
	if !s.Interval {
		out.exact = s.Elements
		return out
	}
	for key := range s.Elements {
		out.interval = append(out.interval, interval{key[:s.KeyLen], key[s.KeyLen:]})
	}
	slices.SortFunc(out.interval, func(a, b interval) int { return cmp.Compare(a.from, b.from) })
	return out
}

func (s set) find(key string) (nftables.RulesetVerdict, bool) {
	if s.exact != nil {
		v, ok := s.exact[key]
		return v, ok
	}
	i, found := slices.BinarySearchFunc(s.interval, key, func(in interval, key string) int { return cmp.Compare(in.from, key) })
	if !found {
		i--
	}
	return nftables.RulesetVerdict{}, i >= 0 && (s.interval[i].to == "" || key < s.interval[i].to)
}

// Packet is a packet on its way.
type Packet struct {
	In, Out            string // names of interfaces; "" where there is none
	Network, Transport []byte // the headers, with some bytes behind
	Protocol           uint8
	State              uint32 // of connection tracking: a bit of NF_CT_STATE_BIT
	Mark, ConnMark     uint32
	// Fib answers a look-up of the source or destination in the routes: the index of an interface or a type of address.
	Fib func(result, flags uint32) uint32
}

// Verdict is how a packet left a hook.
type Verdict struct {
	Accepted bool
	By       string // the rule that ended it, or what was traced last
}

// Hook takes a packet through the base chains of a hook (NF_INET_…), in the order of their priorities. Chains of other types
// than filter are passed by.
func (vm *VM) Hook(hook int, p *Packet) (Verdict, error) {
	v := Verdict{Accepted: true, By: "policy accept"}
	for _, b := range vm.bases {
		if b.hook != hook || b.kind != "filter" {
			continue
		}
		r := &run{vm: vm, p: p}
		code, by := r.chain(b.name, 0)
		if r.err != nil {
			return v, r.err
		}
		switch code {
		case drop:
			return Verdict{false, by}, nil
		case accept:
			v.By = by
		}
	}
	return v, nil
}

// Verdict codes; goOn is of this package.
const (
	drop   = 0
	accept = 1
	goOn   = -100
)

// run is the evaluation of one base chain.
type run struct {
	vm     *VM
	p      *Packet
	regs   [256]byte // 16 bytes for each of the five old registers, numbered from 0; NFT_REG32_00 begins at NFT_REG_1
	code   int32     // set by a verdict
	target string
	err    error
}

// chain evaluates a chain: a verdict that ends everything, or goOn.
func (r *run) chain(name string, depth int) (int32, string) {
	rules, ok := r.vm.chains[name]
	if !ok || depth > 16 { // NFT_JUMP_STACK_SIZE
		r.err = fmt.Errorf("jump to %s at depth %d", name, depth)
		return drop, ""
	}
rules:
	for _, rule := range rules {
		r.code = goOn
		for _, op := range rule.ops {
			if !op(r) {
				continue rules
			}
			if r.code != goOn {
				break
			}
		}
		by := name + ": " + rule.comment
		switch r.code {
		case goOn:
		case drop, accept:
			return r.code, by
		case unix.NFT_RETURN:
			return goOn, by
		case unix.NFT_JUMP:
			if code, by := r.chain(r.target, depth+1); code != goOn || r.err != nil {
				return code, by
			}
		case unix.NFT_GOTO:
			return r.chain(r.target, depth) // what is behind is not come back to
		default:
			r.err = fmt.Errorf("verdict %d", r.code)
			return drop, by
		}
	}
	return goOn, name
}

// reg is where a register is.
func reg(number uint32) int {
	if number >= unix.NFT_REG32_00 {
		return 16 + 4*int(number-unix.NFT_REG32_00)
	}
	return 16 * int(number)
}

// store puts a value into a register and clears what is left of its last 4 bytes, as the kernel does.
func (r *run) store(at int, value []byte) {
	n := copy(r.regs[at:], value)
	for ; n%4 != 0; n++ {
		r.regs[at+n] = 0
	}
}

func (r *run) word(at int, v uint32) { binary.NativeEndian.PutUint32(r.regs[at:], v) }
