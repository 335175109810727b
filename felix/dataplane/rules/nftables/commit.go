package nftables

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// compile brings the families' desired chains, sets and elements up to date with the model.
func (d *Driver) compile() {
	m := d.model
	for name := range m.Dirty.Workloads {
		d.judgeWorkload(name)
	}
	for _, f := range d.families {
		m := m.Of(f.Family == nft.IP6)
		c := compiler{
			family: f.Family, reject: m.Settings.RejectDenied, logs: m.Settings.LogLimit, hasChain: m.Has,
			setType: func(id string) (view.SetType, bool) { t, ok := m.Sets[id]; return t, ok },
		}
		for name := range m.Dirty.Chains {
			want, wanted := m.Chains[name]
			for _, c.layer = range model.Layers() {
				if !wanted || !want.In.Has(c.layer) {
					f.dropChain(layerChain(c.layer, name))
					continue
				}
				c.sets = map[string]contents{}
				f.wantChain(layerChain(c.layer, name), c.chain(want), c.sets)
			}
		}
		f.wantWorkloads(m, d.guarded)
		f.wantSenders(m)
		if m.Dirty.Once {
			b := bases{compiler: c, model: m, closed: len(d.closed) > 0, spoofing: len(d.spoofing) > 0, guarded: d.guarded}
			f.wantBases(b.chains())
			f.wantHosts(&b, d.whole)
		}
	}
	m.Compiled()
}

// judgeWorkload keeps up which workloads are closed and which may spoof; what exists once depends on whether any are.
func (d *Driver) judgeWorkload(name string) {
	m := d.model
	w, known := m.Workloads[name]
	keep := func(set names, in bool) {
		before := len(set) > 0
		if in {
			set[name] = struct{}{}
		} else {
			delete(set, name)
		}
		m.Dirty.Once = m.Dirty.Once || before != (len(set) > 0)
	}
	keep(d.closed, known && (!m.Has(w.Ingress, desired.Filter) || !m.Has(w.Egress, desired.Filter)))
	keep(d.spoofing, known && len(w.AllowedSources) > 0)
}

// wantWorkloads puts the changed workloads into the dispatch maps.
func (f *family) wantWorkloads(m *model.Model, guarded bool) {
	verdicts, plain := nft.SetSpec{Key: nft.IfName, Verdicts: true}, nft.SetSpec{Key: nft.IfName}
	ways := [2]struct{ open, closed *elements }{
		desired.Ingress: {f.wantSet(toMap, verdicts), f.wantSet(toClosed, plain)},
		desired.Egress:  {f.wantSet(fromMap, verdicts), f.wantSet(fromClosed, plain)},
	}
	skip := f.wantSet(rpfSkipMap, verdicts)
	var own *elements
	if f.Family == nft.IP6 {
		own = f.wantSet(ownSources, nft.SetSpec{Key: f.Family.IfNameAddress()})
	}
	for name := range m.Dirty.Workloads {
		w, known := m.Workloads[name]
		key := ifKey(name)
		for dir, chain := range [2]string{desired.Ingress: w.Ingress, desired.Egress: w.Egress} {
			way := ways[dir]
			way.open.DeleteDesired(key)
			way.closed.DeleteDesired(key)
			switch {
			case !known:
			case m.Has(chain, desired.Filter):
				way.open.SetDesired(key, nft.Verdict{Code: nft.Jump, Chain: kernelChain(chain)})
			default:
				way.closed.SetDesired(key, nft.Verdict{})
			}
		}
		if guarded {
			w.Addresses, w.AllowedSources = nil, nil // guards know
		}
		if own != nil {
			f.wantSources(own, name, w.Addresses)
		}
		if rules := f.spoofRules(w.AllowedSources); len(rules) > 0 {
			f.wantChain(rpfSkipChain(name), chain{rules: rules}, nil)
			skip.SetDesired(key, nft.Verdict{Code: nft.Jump, Chain: rpfSkipChain(name)})
		} else {
			f.dropChain(rpfSkipChain(name))
			skip.DeleteDesired(key)
		}
	}
}

// wantSources puts a workload's own addresses into the set that rules of IPv6 ask before the routes.
func (f *family) wantSources(set *elements, iface string, addresses []netip.Addr) {
	for _, key := range f.sources[iface] {
		set.DeleteDesired(key)
	}
	delete(f.sources, iface)
	for _, a := range addresses {
		if a.Is6() {
			key := ifKey(iface) + string(a.AsSlice())
			set.SetDesired(key, nft.Verdict{})
			f.sources[iface] = append(f.sources[iface], key)
		}
	}
}

func (f *family) spoofRules(sources []netip.Prefix) (out []rule) {
	c := compiler{family: f.Family}
	for _, p := range sources {
		if p.Addr().Is4() == (f.Family == nft.IP4) {
			e := c.net(nft.Expr{}, source, []netip.Prefix{p.Masked()}, false)
			out = append(out, newRule("allowed source "+p.String(), e.Verdict(accept)))
		}
	}
	return out
}

func (f *family) wantBases(chains map[string]chain) {
	for name := range f.bases {
		if _, still := chains[name]; !still {
			f.dropChain(name)
			f.bases[name] = false
		}
	}
	for name, c := range chains {
		f.wantChain(name, c, nil)
		f.bases[name] = true
	}
}

// unit is a part of a transaction that belongs to one object: done when it is in the kernel.
type unit struct {
	dataplane.Object
	msgs []nlsock.Message
	done func()
	// instead are tried if msgs are refused. With split they say the same in parts, so that only a refused part fails.
	instead []*unit
	split   bool
}

// commit writes what is due. surprised says that the kernel was not as believed.
func (d *Driver) commit(ctx context.Context, f *family) (failed map[dataplane.Object]error, surprised bool, err error) {
	units := f.plan(d.whole, d.mayGo)
	failed = map[dataplane.Object]error{}
	for len(units) > 0 {
		n, size := 0, 4*64 // begin and end of the batch
		for n < len(units) && (n == 0 || size+units[n].size() <= d.conn.Limit()) {
			size += units[n].size()
			n++
		}
		part := units[:n]
		units = units[n:]
		again, err := d.transact(ctx, part, failed)
		if err != nil {
			return failed, false, err
		}
		surprised = surprised || again
	}
	return failed, surprised, nil
}

func (u *unit) size() (n int) {
	for _, m := range u.msgs {
		n += m.Size()
	}
	return n
}

// transact commits units, without those that the kernel refuses.
func (d *Driver) transact(ctx context.Context, units []*unit, failed map[dataplane.Object]error) (surprised bool, err error) {
	for len(units) > 0 {
		var msgs []nlsock.Message
		var owner []*unit
		for _, u := range units {
			for _, m := range u.msgs {
				msgs = append(msgs, m)
				owner = append(owner, u)
			}
		}
		results, err := d.conn.Transact(ctx, unix.NFNL_SUBSYS_NFTABLES, msgs)
		if err != nil {
			return false, err
		}
		refused := map[*unit]bool{}
		looped := false
		for i, err := range results {
			if u := owner[i]; err != nil && !refused[u] {
				if errors.Is(err, unix.EMLINK) { // what follows the one that closes a loop is refused with it, and is tried without
					if looped {
						continue
					}
					looped = true
				}
				refused[u] = true
				if !u.split {
					failed[u.Object] = err
				}
				surprised = surprised || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST)
			}
		}
		if len(refused) == 0 {
			for _, u := range units {
				u.done()
			}
			return surprised, nil
		}
		left := units[:0:0]
		for _, u := range units {
			if refused[u] {
				left = append(left, u.instead...)
				continue
			}
			left = append(left, u)
		}
		units = left
	}
	return surprised, nil
}

// tableObject names a table in messages.
var tableObject = dataplane.Object{Kind: dataplane.KindRule, Key: "table " + tableName}

// mayGo tells whether what is there of an interface may be removed: it is known what there is to be of it.
func (d *Driver) mayGo(iface string) bool {
	_, workload := d.model.Workloads[iface]
	_, host := d.model.Hosts[iface]
	_, gone := d.gone[iface]
	return d.whole || workload || host || gone
}

// plan lists what is due, in an order in which nothing names what is not there. Nothing is removed before the desired
// state is whole, except what was told to be, and of interfaces of which mayGo says so.
func (f *family) plan(whole bool, mayGo func(iface string) bool) (units []*unit) {
	add := func(kind dataplane.Kind, key string, done func(), msgs ...nlsock.Message) *unit {
		u := &unit{Object: dataplane.Object{Kind: kind, Key: key}, msgs: msgs, done: done}
		units = append(units, u)
		return u
	}
	if f.exists && f.misfit() {
		add(tableObject.Kind, tableObject.Key, func() {}, f.Delete())
		f.take(nft.Contents{})
	}
	if !f.exists {
		add(tableObject.Kind, tableObject.Key, func() { f.exists = true }, f.Add())
	}
	var id uint32
	for name, spec := range ordered(f.sets.Updates()) {
		id++
		add(dataplane.KindSet, name, func() { f.sets.SetActual(name, spec) }, f.AddSet(name, spec, id))
	}
	// Elements of sets before the rules that use them; elements of verdict maps after the chains they name.
	var verdicts []*unit
	due := map[string]*elements{} // sorted are only those of which something is due: there may be thousands of others
	for name, e := range f.elements {
		if !e.InSync() {
			due[name] = e
		}
	}
	for name, e := range ordered(maps.All(due)) {
		spec, wanted := f.sets.Desired(name)
		if !wanted {
			continue
		}
		may := func(string) bool { return true }
		if spec.Key == nft.IfName || spec.Key == f.Family.IfNameAddress() {
			may = func(key string) bool { return mayGo(strings.TrimRight(key[:nft.IfName.Len], "\x00")) }
		}
		u := f.elementsUnit(name, spec, e, may)
		if spec.Verdicts {
			verdicts = append(verdicts, u)
			continue
		}
		units = append(units, u)
	}
	// Chains that packets may come to already get their rules last: what does not fit into one transaction is committed in parts, and
	// none is led to a chain that is still empty.
	var fresh, edited []*unit
	for name, c := range ordered(f.chains.Updates()) {
		if _, there := f.chains.Actual(name); there {
			edited = append(edited, f.chainUnit(name, c))
			continue
		}
		fresh = append(fresh, f.chainUnit(name, c))
		add(dataplane.KindRule, name, func() { f.chains.SetActual(name, chain{base: c.base}) }, f.AddChain(name, c.base))
	}
	units = slices.Concat(units, fresh, edited)
	units = append(units, verdicts...)
	var obsolete []string
	for name := range ordered(f.chains.Deletes()) {
		if _, told := f.bases[name]; whole || told {
			obsolete = append(obsolete, name)
		}
	}
	for _, name := range obsolete { // rules first, since chains may name each other
		add(dataplane.KindRule, name, func() {}, f.FlushChain(name))
	}
	// Verdict maps before the chains that they name.
	for name := range ordered(f.sets.Deletes()) {
		if !whole {
			break
		}
		add(dataplane.KindSet, name, func() {
			f.sets.DeleteActual(name)
			if _, wanted := f.sets.Desired(name); !wanted {
				delete(f.elements, name)
			}
		}, f.DeleteSet(name))
	}
	for _, name := range obsolete {
		add(dataplane.KindRule, name, func() { f.chains.DeleteActual(name) }, f.DeleteChain(name))
	}
	return units
}

// ordered yields by name, so that equal models give equal transactions.
func ordered[V any](in iter.Seq2[string, V]) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		all := maps.Collect(in)
		for _, k := range slices.Sorted(maps.Keys(all)) {
			if !yield(k, all[k]) {
				return
			}
		}
	}
}

// chainUnit rewrites a chain. If the kernel refuses, the chain drops: callers go on to find it, and nothing passes that
// it might have forbidden; one that decides nothing is empty. A base chain keeps what it has instead.
func (f *family) chainUnit(name string, c chain) *unit {
	_, there := f.chains.Actual(name)
	u := &unit{Object: dataplane.Object{Kind: dataplane.KindRule, Key: name}, done: func() { f.chains.SetActual(name, c) }}
	if there {
		u.msgs = append(u.msgs, f.FlushChain(name))
	}
	for _, r := range c.rules {
		u.msgs = append(u.msgs, f.AddRule(name, r.expr, r.comment))
	}
	if c.base != nil {
		return u
	}
	instead := &unit{Object: u.Object, msgs: []nlsock.Message{f.FlushChain(name)}}
	var left chain
	if !c.idle {
		closed := newRule("refused by the kernel", nft.Expr{}.Counter().Verdict(drop))
		instead.msgs = append(instead.msgs, f.AddRule(name, closed.expr, closed.comment))
		left.rules = []rule{closed}
	}
	instead.done = func() { f.chains.SetActual(name, left) }
	u.instead = []*unit{instead}
	return u
}

// elementsUnit brings the elements of one set up to date. If the kernel refuses that of a verdict map, each element is
// tried by itself, and one that is refused is removed: its interface is unknown then, and drops.
func (f *family) elementsUnit(name string, spec nft.SetSpec, e *elements, mayRemove func(key string) bool) *unit {
	var add, del []nft.Element
	for key, v := range ordered(e.Deletes()) {
		if mayRemove(key) {
			del = append(del, nft.Element{Key: key, Verdict: v})
		}
	}
	for key, v := range ordered(e.Updates()) {
		if old, there := e.Actual(key); there {
			del = append(del, nft.Element{Key: key, Verdict: old})
		}
		add = append(add, nft.Element{Key: key, Verdict: v})
	}
	o := dataplane.Object{Kind: dataplane.KindSet, Key: name}
	u := f.changeUnit(o, spec, e, name, add, del)
	if u.split = spec.Verdicts; !u.split {
		return u
	}
	for _, x := range del {
		u.instead = append(u.instead, f.changeUnit(o, spec, e, name, nil, []nft.Element{x}))
	}
	for _, x := range add {
		o.Key = name + " " + strings.TrimRight(x.Key, "\x00")
		u.instead = append(u.instead, f.changeUnit(o, spec, e, name, []nft.Element{x}, nil))
	}
	return u
}

// changeUnit removes and then adds elements; removals come first, since ranges must not overlap.
func (f *family) changeUnit(o dataplane.Object, spec nft.SetSpec, e *elements, name string, add, del []nft.Element) *unit {
	return &unit{
		Object: o,
		msgs:   append(f.DeleteElements(name, spec, del), f.AddElements(name, spec, add)...),
		done: func() {
			for _, x := range del {
				e.DeleteActual(x.Key)
			}
			for _, x := range add {
				e.SetActual(x.Key, x.Verdict)
			}
		},
	}
}

// String is the comments of the chain's rules.
func (c chain) String() string {
	var b strings.Builder
	if c.base != nil {
		fmt.Fprintf(&b, "%s hook %d priority %d; ", c.base.Type, c.base.Hook, c.base.Priority)
	}
	for i, r := range c.rules {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(r.comment)
	}
	return b.String()
}

// counts is how many elements a set should have and has.
func counts(e *elements) (want, have string) {
	var w, h int
	for range e.AllDesired() {
		w++
	}
	for range e.AllActual() {
		h++
	}
	return fmt.Sprintf("%d elements", w), fmt.Sprintf("%d elements", h)
}
