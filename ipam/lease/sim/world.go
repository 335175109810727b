// Package sim is a deterministic simulator of nodes with leases, their disks, typha, its datastore, and what can go wrong
// between and within them. Each access of the datastore, each write to a disk and each message is a step; a seeded
// scheduler chooses what goes on next, who dies, and what gets lost. Nodes decide by the core of package lease, and write
// and read its journal; typha is a model of this package, or a real one on a real datastore (Typha).
//
// After every step no address may be in use twice, none in use may be free or another's at typha, and none may be used
// before its cool-down is over. When all is settled, each address is a living pod's or in its node's reserve, and typha
// and the nodes say the same.
package sim

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/ipam/lease"
)

// World is one course of events.
type World struct {
	random *rand.Rand // draws the events, and nothing else
	chance *rand.Rand // draws what depends on the state: how much of a write is done
	typha  Typha
	model  *model // if typha is the one of this package
	die    func(steps int) (heal func())
	terms  lease.Terms

	now      time.Duration
	nodes    []*node
	net      []*message
	undone   []undone
	excused  map[string]bool // handles that only garbage collection can free
	deleted  map[string]bool // nodes that were: of their ended epochs too
	uses     map[netip.Addr]*pod
	ended    map[netip.Addr]time.Duration // when an address was used last
	cooldown time.Duration                // the longest that was ever set
	made     int                          // pods
	trace    *[]string
	failure  error

	// Counts of what happened, so that a test can see that a run is worth its name.
	Lent, Assigned, Lost int // addresses
	Ended                int // epochs

	Events []Event // in order: the same with any typha
}

// message is a call on its way, from the moment it is sent until its last effect.
type message struct {
	what   string
	task   *lease.Task
	core   *lease.Core
	handle string
	addr   netip.Addr
	answer lease.Answer

	from    *node
	sent    time.Duration
	next    func() (struct{}, bool) // carries out one more step; false: it is done
	kill    func()
	waiting bool // somebody waits for the answer
	reply   func(*message)
}

// Steps is how many events a course has, with any typha.
const Steps = 120

// Options say what is simulated.
type Options struct {
	Seed  uint64
	Steps int
	Trace *[]string // where to write what happens; nil: nowhere
	// Typha is the one to talk to; nil: the model. Die, with it, lets it die after so many writes of the next call; heal
	// makes it well again.
	Typha Typha
	Die   func(steps int) (heal func())
}

// Run runs a course of events, lets all settle, and tells what is wrong.
func Run(o Options) (*World, error) {
	w := &World{
		random: rand.New(rand.NewPCG(o.Seed, 0)), chance: rand.New(rand.NewPCG(o.Seed, 1)), trace: o.Trace,
		typha: o.Typha, die: o.Die, excused: map[string]bool{}, deleted: map[string]bool{},
		uses: map[netip.Addr]*pod{}, ended: map[netip.Addr]time.Duration{}, terms: lease.Terms{Max: 4, Trust: time.Hour}, now: time.Minute,
	}
	if w.typha == nil {
		w.model = newModel(func() time.Duration { return w.now }, 6)
		w.typha = w.model
	}
	for i := range 3 {
		n := &node{World: w, name: fmt.Sprint("n", i)}
		w.nodes = append(w.nodes, n)
		w.typha.Register(n.name)
		n.start()
	}
	w.prime()
	for i := range o.Steps {
		w.event()
		if i%lookEvery == 0 {
			w.look()
		}
		if w.failure != nil {
			return w, w.failure
		}
	}
	w.settle()
	return w, w.failure
}

// prime has each node start a pod and fill its reserve, so that trouble meets nodes that have something to lose.
func (w *World) prime() {
	for _, n := range w.nodes {
		w.made++
		n.add(fmt.Sprint("pod-", w.made))
		for range 6 {
			n.work()
			n.commit()
			for len(w.net) > 0 {
				w.carry(w.net[0])
			}
		}
	}
}

func (w *World) log(format string, args ...any) {
	if w.trace != nil {
		*w.trace = append(*w.trace, fmt.Sprintf("%8s ", w.now)+fmt.Sprintf(format, args...))
	}
}

func (w *World) logRecord(r lease.Record) {
	if w.trace != nil {
		w.log("  record %s %v %s", r.Op, r.Addrs, r.Handle)
	}
}

func (w *World) fail(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf(format, args...)
		w.log("FAILURE: %v", w.failure)
	}
}

// send puts a call on its way.
func (w *World) send(from *node, m *message, call func(context.Context, Calls, *message), reply func(*message)) {
	m.from, m.sent, m.waiting, m.reply = from, w.now, true, reply
	calls := w.typha.Node(from.name)
	m.next, m.kill = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != errLost { //nolint:errorlint // the very value that was thrown below
				panic(r)
			}
		}()
		step := func() {
			if !yield(struct{}{}) {
				panic(errLost) // typha died: nothing more of the call is carried out
			}
		}
		if n, ok := calls.(modelNode); ok {
			n.step = step
			calls = n
		}
		call(context.Background(), calls, m)
	})
	w.net = append(w.net, m)
}

// carry lets a call go on by a step. When it is done and somebody waits, the answer arrives.
func (w *World) carry(m *message) {
	if _, more := m.next(); more {
		return
	}
	w.forget(m)
	w.log("typha has done %s of %s", m.what, m.from.name)
	if m.waiting {
		m.waiting = false
		m.reply(m)
	} else {
		w.excuse(m)
	}
}

// excuse lets garbage collection free what a call gave to a pod after everybody had given up on it.
func (w *World) excuse(m *message) {
	if m.handle != "" {
		w.excused[m.handle] = true
		return
	}
	if m.task.Kind == lease.DoClaim || m.task.Kind == lease.DoEnter {
		for _, c := range m.task.Claims {
			w.excused[c.Handle] = true
		}
	}
}

func (w *World) forget(m *message) {
	w.net = slices.DeleteFunc(w.net, func(x *message) bool { return x == m })
}

// abandon lets a call die where it is.
func (w *World) abandon(m *message) {
	if w.die != nil { // a real one is carried out up to some write
		heal := w.die(w.chance.IntN(8))
		m.next()
		heal()
	}
	m.kill()
	w.forget(m)
	if !m.waiting {
		w.excuse(m)
	}
	w.log("typha dies in %s of %s", m.what, m.from.name)
	w.giveUp(m)
}

// giveUp has the caller wait no longer.
func (w *World) giveUp(m *message) {
	if !m.waiting {
		return
	}
	m.waiting = false
	m.answer = lease.Answer{Err: errLost}
	m.addr = netip.Addr{}
	m.reply(m)
}

// begin gives a pod its addresses.
func (w *World) begin(n *node, p *pod) {
	n.pods = append(n.pods, p)
	for _, a := range p.addrs {
		if other := w.uses[a]; other != nil {
			w.fail("%s is given to %s while %s has it", a, p.handle, other.handle)
		}
		if last, used := w.ended[a]; used && w.model != nil && w.now-last < w.cooldown {
			w.fail("%s is given to %s %s after its last use, and is to rest for %s", a, p.handle, w.now-last, w.cooldown)
		}
		w.uses[a] = p
	}
	if p.local {
		w.Lent++
	} else {
		w.Assigned++
	}
}

// end takes them away again.
func (w *World) end(n *node, p *pod) {
	n.pods = slices.DeleteFunc(n.pods, func(x *pod) bool { return x == p })
	for _, a := range p.addrs {
		delete(w.uses, a)
		w.ended[a] = w.now
	}
}

// check says what must be true after every step.
func (w *World) check() {
	if w.model == nil {
		return // look asks a real typha
	}
	for a, p := range w.uses {
		if held := w.model.addrs[indexOf(a)]; held.handle != p.handle && !isWarm(held.handle, held.node) {
			w.fail("%s is used by %s, and at typha by %q of %s", a, p.handle, held.handle, held.node)
		}
	}
	for i, held := range w.model.addrs {
		if held.handle == "" {
			continue
		}
		n := 0
		for _, other := range w.model.addrs[i:] {
			if other.handle == held.handle {
				n++
			}
		}
		if w.model.counts[held.handle] < n {
			w.fail("handle %s counts %d addresses and has %d", held.handle, w.model.counts[held.handle], n)
		}
	}
}

// lookEvery is after how many events a real typha is asked what it holds.
const lookEvery = 5

// look says of a real typha what check says of the model's addresses.
func (w *World) look() {
	if w.model != nil {
		return
	}
	holders := w.typha.Holders()
	for _, n := range w.nodes {
		for _, p := range n.pods {
			for _, a := range p.addrs {
				if held := holders[a]; held != p.handle && !isWarm(held, n.name) {
					w.fail("%s is used by %s on %s, and at typha by %q", a, p.handle, n.name, held)
				}
			}
		}
	}
}

// settle ends all trouble, lets everybody finish, and compares what they say.
func (w *World) settle() {
	w.log("-- settling")
	for len(w.net) > 0 && w.failure == nil {
		w.carry(w.net[0])
		w.check()
	}
	w.typha.SetFit(true)
	for _, n := range w.nodes {
		w.typha.Register(n.name)
		if n.full = false; !n.up {
			n.start()
		}
	}
	for round, quiet := 0, 0; w.failure == nil; round++ {
		if round > 400 {
			w.fail("it does not settle: %d calls, %d DELs left", len(w.net), len(w.undone))
			return
		}
		w.repeat()
		for _, n := range w.nodes {
			n.work()
			n.commit()
		}
		for len(w.net) > 0 && w.failure == nil {
			w.carry(w.net[0])
			w.check()
		}
		w.now += 20 * time.Second
		if len(w.undone) > 0 || slices.ContainsFunc(w.nodes, func(n *node) bool { return !n.quiet() }) {
			continue
		}
		if quiet++; quiet == 4 {
			w.now += 10 * time.Minute // nothing of ended epochs is under way any more: a review frees what they left
		}
		if quiet == 12 {
			break
		}
	}
	if w.failure == nil {
		w.compare()
	}
}

// repeat has runtimes repeat what had no answer.
func (w *World) repeat() {
	again := w.undone
	w.undone = nil
	for _, u := range again {
		i := slices.IndexFunc(w.nodes, func(n *node) bool { return n.name == u.node })
		n := w.nodes[i]
		switch {
		case !n.up || n.busy[u.handle]:
			w.undone = append(w.undone, u)
			continue
		case u.add:
			n.add(u.handle)
			continue
		}
		n.free(u.handle, func() { w.excused[u.handle] = true })
	}
}

// compare finds what nobody accounts for.
func (w *World) compare() {
	for h := range w.excused {
		if !slices.ContainsFunc(w.nodes, func(n *node) bool { return n.has(h) }) {
			w.typha.Collect(h)
		}
	}
	for _, n := range w.nodes {
		for _, h := range w.typha.Holders() {
			if (w.deleted[n.name] || w.die != nil) && isWarm(h, n.name) && h != warmHandle(n.name, n.core.Epoch) {
				w.typha.Collect(h)
			}
		}
	}
	holders := w.typha.Holders()
	for a, p := range w.uses {
		if holders[a] != p.handle {
			w.fail("%s is used by %s, and settled for %q", a, p.handle, holders[a])
		}
	}
	for _, n := range w.nodes {
		for a, slot := range n.core.Slots {
			if slot.Phase != lease.Warm && slot.Phase != lease.Cooling || !strings.HasPrefix(holders[a], "warm-"+n.name+"-") {
				w.fail("%s is %s on %s, and at typha %q's", a, slot.Phase, n.name, holders[a])
			}
		}
	}
	for a, h := range holders {
		p := w.uses[a]
		reserved := slices.ContainsFunc(w.nodes, func(n *node) bool {
			_, is := n.core.Slots[a]
			return is && h == warmHandle(n.name, n.core.Epoch)
		})
		if (p == nil || p.handle != h) && !reserved && !w.excused[h] { // what a living pod has too many is collected as well
			w.fail("%s is %s's, of which nobody knows", a, h)
		}
	}
}

func (n *node) has(handle string) bool {
	return slices.ContainsFunc(n.pods, func(p *pod) bool { return p.handle == handle })
}
