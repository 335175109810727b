package iptables

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/internal/delta"
)

// kernelTable is a table of the kernel's, ours of it desired beside actual.
type kernelTable struct {
	name   string
	chains *delta.Tracker[string, chain]
	texts  map[string][sha256.Size]byte // what iptables-save said of a chain that we wrote, once it was asked
	hooks  map[string]*kernelHook       // by chain of the kernel's
	once   map[string]bool              // chains that exist once: true if desired, false if to be removed
}

// kernelHook is our rules in a chain of the kernel's.
type kernelHook struct {
	name     string
	top, end chain
	wanted   bool
	told     bool     // it was wanted once: it may go before all is known
	ours     []string // the rules that are there, as -D takes them
	inPlace  bool     // they are what is wanted, where it is wanted
}

func newTable(name string) *kernelTable {
	return &kernelTable{
		name: name, chains: delta.New[string](chain.equal), texts: map[string][sha256.Size]byte{},
		hooks: map[string]*kernelHook{}, once: map[string]bool{},
	}
}

// want makes what exists once desired.
func (t *kernelTable) want(w table) {
	for name := range t.once {
		if _, still := w.chains[name]; !still {
			t.chains.DeleteDesired(name)
			t.once[name] = false
		}
	}
	for name, rules := range w.chains {
		t.chains.SetDesired(name, newChain(name, rules))
		t.once[name] = true
	}
	for name, h := range t.hooks {
		if _, still := w.hooks[name]; !still && h.wanted {
			h.wanted, h.inPlace, h.top, h.end = false, len(h.ours) == 0, chain{}, chain{}
		}
	}
	for name, rules := range w.hooks {
		h := t.hook(name)
		top, end := newChain(name, rules.top), newChain(name+" end", rules.end)
		if !h.wanted || !h.top.equal(top) || !h.end.equal(end) {
			h.wanted, h.told, h.inPlace, h.top, h.end = true, true, false, top, end
		}
	}
}

func (t *kernelTable) hook(name string) *kernelHook {
	h := t.hooks[name]
	if h == nil {
		h = &kernelHook{name: name, inPlace: true}
		t.hooks[name] = h
	}
	return h
}

// take makes what was read the actual state. Chains in touched were changed by others, perhaps under the same hashes.
func (t *kernelTable) take(got saved, touched map[string]struct{}, atEnd bool) {
	chains := make(map[string]chain, len(got.chains))
	for name, c := range got.chains {
		_, changed := touched[name]
		if had, known := t.texts[name]; known && had != c.text {
			changed = true
		}
		have := chain{hashes: c.hashes}
		if changed {
			have.hashes = append(slices.Clone(have.hashes), "changed by others")
		} else if want, wanted := t.chains.Desired(name); wanted && want.equal(have) {
			t.texts[name] = c.text
			have = want
		}
		chains[name] = have
	}
	t.chains.ReplaceActual(chains)
	for name := range t.texts {
		if _, there := chains[name]; !there {
			delete(t.texts, name)
		}
	}
	for name, h := range t.hooks {
		if _, there := got.hooks[name]; !there {
			h.ours, h.inPlace = nil, !h.wanted
		}
	}
	for name, rules := range got.hooks {
		t.hook(name).take(rules, atEnd)
	}
}

// take judges our rules in a chain of the kernel's.
func (h *kernelHook) take(rules []savedRule, atEnd bool) {
	h.ours = nil
	var hashes []string
	before := 0 // of ours at the top
	for i, r := range rules {
		if !r.ours {
			continue
		}
		if before == i {
			before++
		}
		h.ours = append(h.ours, r.args)
		hashes = append(hashes, r.hash)
	}
	want := append(slices.Clone(h.top.hashes), h.end.hashes...)
	// Where they shall come behind others', what others append later is none of our business; but once they are moved there.
	place := before >= len(h.top.hashes)
	if atEnd {
		place = before == 0 || len(h.ours) == len(rules)
	}
	h.inPlace = slices.Equal(hashes, want) && place
}

// unit is a part of a table's transaction that belongs to one object.
type unit struct {
	dataplane.Object
	makes   string // a chain that must be there before the lines of any unit
	hooks   bool   // it is our rules in a chain of the kernel's
	lines   []string
	done    func()
	instead *unit // tried if the kernel refuses
}

// plan lists what is due, in an order in which nothing names what is not there. Nothing is removed before the desired state
// is whole.
func (t *kernelTable) plan(whole, atEnd bool) (units []*unit) {
	for _, name := range sorted(t.chains.Updates()) {
		want, _ := t.chains.Desired(name)
		units = append(units, t.chainUnit(name, want))
	}
	for _, name := range slices.Sorted(maps.Keys(t.hooks)) {
		if h := t.hooks[name]; !h.inPlace && (h.told || whole) {
			units = append(units, h.unit(t.name, atEnd))
		}
	}
	var obsolete []string
	for _, name := range sorted(t.chains.Deletes()) {
		if _, told := t.once[name]; whole || told {
			obsolete = append(obsolete, name)
		}
	}
	if len(obsolete) == 0 {
		return units
	}
	u := &unit{Object: dataplane.Object{Kind: dataplane.KindRule, Key: t.name + " " + obsolete[0]}}
	for _, name := range obsolete { // rules first, since chains may name each other; with -F, iptables-nft-restore looks through all else
		u.lines = append(u.lines, declared(name))
	}
	for _, name := range obsolete {
		u.lines = append(u.lines, "-X "+name)
	}
	u.done = func() {
		for _, name := range obsolete {
			t.chains.DeleteActual(name)
			delete(t.texts, name)
		}
	}
	return append(units, u)
}

// chainUnit rewrites a chain. If the kernel refuses, the chain drops: callers go on to find it, and nothing passes that it
// might have forbidden. One that decides nothing is empty, as are those of address translation, where nothing may be dropped.
func (t *kernelTable) chainUnit(name string, c chain) *unit {
	u := t.writeChain(name, c)
	closed := newChain(name, nil)
	if t.name != tableNAT && !c.idle {
		closed = newChain(name, []rule{{"", drop, "refused by the kernel"}})
	}
	u.instead = t.writeChain(name, closed)
	return u
}

func (t *kernelTable) writeChain(name string, c chain) *unit {
	u := &unit{
		Object: dataplane.Object{Kind: dataplane.KindRule, Key: t.name + " " + name}, makes: name,
		done: func() {
			t.chains.SetActual(name, c)
			delete(t.texts, name)
		},
	}
	for i := range c.rules {
		u.lines = append(u.lines, "-A "+name+" "+c.spec(i))
	}
	return u
}

func (h *kernelHook) unit(table string, atEnd bool) *unit {
	u := &unit{Object: dataplane.Object{Kind: dataplane.KindRule, Key: table + " " + h.name}, hooks: true}
	for _, args := range h.ours {
		u.lines = append(u.lines, "-D "+h.name+" "+args)
	}
	var specs []string
	for i := range h.top.rules {
		spec := h.top.spec(i)
		specs = append(specs, spec)
		if atEnd {
			u.lines = append(u.lines, "-A "+h.name+" "+spec)
			continue
		}
		u.lines = append(u.lines, fmt.Sprintf("-I %s %d %s", h.name, i+1, spec))
	}
	for i := range h.end.rules {
		spec := h.end.spec(i)
		specs = append(specs, spec)
		u.lines = append(u.lines, "-A "+h.name+" "+spec)
	}
	u.done = func() { h.ours, h.inPlace = specs, true }
	return u
}

// declared is the line that makes a chain, or empties it.
func declared(chain string) string { return ":" + chain + " - [0:0]" }

// piece is how many new chains are written at a time, if there are more. For each line iptables-nft-restore looks through the names
// of chains that it has met.
const piece = 200

// pieces parts what plan lists, if much of it are chains that are not there yet: such come first, each behind those that it
// leads to. No packet comes to them before the last piece, which is all that changes what there is.
func (t *kernelTable) pieces(units []*unit) (out [][]*unit) {
	fresh := map[string]*unit{}
	for _, u := range units {
		if _, there := t.chains.Actual(u.makes); u.makes != "" && !there {
			fresh[u.makes] = u
		}
	}
	if len(fresh) <= piece {
		return [][]*unit{units}
	}
	var inOrder []*unit
	met := map[*unit]bool{}
	var add func(u *unit)
	add = func(u *unit) {
		if u == nil || met[u] {
			return
		}
		met[u] = true
		c, _ := t.chains.Desired(u.makes)
		for _, r := range c.rules {
			add(fresh[r.target[len("-j "):]])
		}
		inOrder = append(inOrder, u)
	}
	for _, u := range units {
		add(fresh[u.makes])
	}
	rest := slices.DeleteFunc(units, func(u *unit) bool { return met[u] })
	return append(slices.Collect(slices.Chunk(inOrder, piece)), rest)
}

// input is the text that iptables-restore takes for units, with the unit of each line.
func input(table string, units []*unit) (text string, owner []*unit) {
	var b strings.Builder
	write := func(u *unit, line string) {
		b.WriteString(line + "\n")
		owner = append(owner, u)
	}
	write(nil, "*"+table)
	for _, u := range units {
		if u.makes != "" {
			write(u, declared(u.makes))
		}
	}
	for _, u := range units {
		for _, line := range u.lines {
			write(u, line)
		}
	}
	write(nil, "COMMIT")
	return b.String(), owner
}

// empty tells whether nothing in the table is ours, as far as is known.
func (t *kernelTable) empty() bool {
	for _, h := range t.hooks {
		if len(h.ours) > 0 {
			return false
		}
	}
	for range t.chains.AllActual() {
		return false
	}
	return true
}

// inSync tells whether nothing is due, as far as is known.
func (t *kernelTable) inSync() bool {
	for _, h := range t.hooks {
		if !h.inPlace {
			return false
		}
	}
	return t.chains.InSync()
}
