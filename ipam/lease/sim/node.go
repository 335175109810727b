package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/ipam/lease"
)

// errLost is the answer that did not come.
var errLost = errors.New("no answer")

// errDisk is a disk that takes no writes.
var errDisk = errors.New("no space left on device")

// pod is a pod of a node, in the eyes of those who watch: it has its addresses from the end of ADD to the begin of DEL.
type pod struct {
	handle string
	addrs  []netip.Addr
	local  bool // got from the reserve
}

// node is a node: its disk, its process if that runs, and its pods.
type node struct {
	*World
	name string
	boot int
	up   bool
	pods []*pod

	disk    []byte // the journal's file
	witness []byte
	images  [][]byte // of the disk, as it once was
	handles []string // of all pods that there ever were
	records []string // of pods whose DEL the journal did not take: their records are still there

	core    *lease.Core
	number  uint64
	buffer  []byte // records that are not written yet
	broken  bool   // a write failed: the file is to be made anew
	full    bool   // the disk takes no writes
	waiting []func(error)
	task    *message
	busy    map[string]bool // handles of calls under way
}

// start starts the node's process on what is on its disk.
func (n *node) start() {
	var living []lease.Claim
	for _, p := range n.pods {
		for _, a := range p.addrs {
			living = append(living, lease.Claim{Addr: a, Handle: p.handle})
		}
	}
	w := lease.DecodeWitness(n.witness)
	s, number, claims, fate := lease.Recover(n.disk, w, fmt.Sprint("boot-", n.boot), living)
	if fate != lease.Kept {
		w.Confirmed = 0
	}
	n.up, n.core, n.number = true, lease.NewCore(s, n.terms, n.now, w.Confirmed, claims), number
	n.buffer, n.broken, n.waiting, n.task, n.busy = nil, true, nil, nil, map[string]bool{}
	left := n.records
	n.records = nil
	for _, handle := range left { // a pod without an interface
		n.free(handle, func() { n.records = append(n.records, handle) })
	}
	n.log("%s starts, journal %s, epoch %d, %d slots, %d debts", n.name, fate, s.Epoch, len(s.Slots), len(s.Debts))
}

// stop ends the node's process. What it was about to write may have been written in part.
func (n *node) stop() {
	if !n.up {
		return
	}
	n.up, n.core = false, nil
	if len(n.buffer) > 0 && !n.broken {
		cut := n.chance.IntN(len(n.buffer) + 1)
		n.disk = append(slices.Clone(n.disk), n.buffer[:cut]...)
		if n.chance.IntN(4) == 0 {
			n.disk = append(n.disk, "torn"...)
		}
		n.log("%s stops, %d of %d bytes were written", n.name, cut, len(n.buffer))
	} else {
		n.log("%s stops", n.name)
	}
	for _, f := range n.waiting { // whoever called has no answer
		f(errLost)
	}
	n.waiting, n.buffer = nil, nil
}

// append puts records in line for the disk; then runs when they are there.
func (n *node) append(records []lease.Record, then func(error)) {
	for _, r := range records {
		n.number++
		n.buffer = lease.Encode(n.buffer, n.number, r)
		n.logRecord(r)
	}
	n.waiting = append(n.waiting, then)
}

// commit writes what is in line, all at once.
func (n *node) commit() {
	if !n.up || len(n.waiting) == 0 {
		return
	}
	var err error
	switch {
	case n.full:
		err, n.broken = errDisk, true
	case n.broken || len(n.disk) > 1<<13:
		n.disk, n.broken = lease.EncodeState(n.number, n.core.State), false
	default:
		n.disk = append(n.disk, n.buffer...)
	}
	if err == nil {
		n.witness = lease.Witness{Boot: fmt.Sprint("boot-", n.boot), Number: n.number, Confirmed: n.core.Confirmed()}.Encode()
	}
	n.log("%s commits: %v", n.name, err)
	n.buffer = nil
	waiting := n.waiting
	n.waiting = nil
	for _, f := range waiting {
		f(err)
	}
}

// add starts a pod.
func (n *node) add(handle string) {
	if !n.up || n.busy[handle] || n.core.Paying(handle) {
		return
	}
	if records := n.core.Clear(n.now, handle); len(records) > 0 {
		n.append(records, func(error) {})
	}
	if _, owes := n.core.Debts[handle]; owes {
		n.undone = append(n.undone, undone{node: n.name, handle: handle, add: true})
		return
	}
	n.busy[handle], n.handles = true, append(n.handles, handle)
	records := n.core.Reuse(handle)
	lend, addrs, miss := n.core.Lend(n.now, handle, nil, lease.ClassOf(4))
	records = append(records, lend...)
	n.log("%s ADD %s: %v %s", n.name, handle, addrs, miss)
	if strings.HasSuffix(handle, "5") { // one of two ways
		n.assign(handle, append(records, n.core.Remote(handle)...), addrs)
		return
	}
	if miss == "" {
		n.append(records, func(err error) {
			delete(n.busy, handle)
			if err != nil { // the disk refused, or the process is gone
				n.failed(handle, err)
				return
			}
			n.begin(n, &pod{handle, addrs, true})
		})
		return
	}
	n.assign(handle, append(records, n.core.Remote(handle)...), nil)
}

// assign gets an address from typha, for a pod that has others already or none.
func (n *node) assign(handle string, records []lease.Record, lent []netip.Addr) {
	boot := n.boot
	n.append(records, func(err error) {
		if err != nil {
			delete(n.busy, handle)
			n.failed(handle, err)
			return
		}
		n.send(n, &message{what: "assign " + handle, handle: handle, core: n.core}, func(ctx context.Context, calls Calls, m *message) {
			m.addr, m.answer.Err = calls.Assign(ctx, handle)
		}, func(m *message) {
			delete(n.busy, handle)
			switch {
			case m.answer.Err != nil || boot != n.boot:
				n.unwind(handle)
			case m.core != n.core:
				n.failed(handle, errLost)
			default:
				n.begin(n, &pod{handle, append(slices.Clone(lent), m.addr), len(lent) > 0})
			}
		})
	})
}

// unwind takes a failed ADD back: whatever it got, or may have got, is to be freed.
func (n *node) unwind(handle string) {
	if !n.up { // the runtime does it: a failed ADD is followed by a DEL
		n.undone = append(n.undone, undone{node: n.name, handle: handle})
		return
	}
	n.free(handle, func() { n.excused[handle] = true })
}

// failed ends an ADD. Of those that had no answer, since the process ended, some are given up; others are made again.
func (n *node) failed(handle string, err error) {
	if last := handle[len(handle)-1]; errors.Is(err, errLost) && last%2 == 0 {
		n.undone = append(n.undone, undone{node: n.name, handle: handle, add: true})
		return
	}
	n.unwind(handle)
}

// free ends a handle's use. What the disk does not take is in memory alone.
func (n *node) free(handle string, forgotten func()) {
	n.append(n.core.Free(n.now, handle), func(err error) {
		switch {
		case errors.Is(err, errLost): // the runtime repeats it
			n.undone = append(n.undone, undone{node: n.name, handle: handle})
		case err != nil:
			forgotten()
		}
	})
}

// del ends a pod.
func (n *node) del(p *pod) {
	if !n.up || n.busy[p.handle] {
		return
	}
	n.end(n, p)
	n.log("%s DEL %s %v", n.name, p.handle, p.addrs)
	n.free(p.handle, func() { n.records = append(n.records, p.handle) })
}

// work starts the node's next task.
func (n *node) work() {
	if !n.up || n.task != nil {
		return
	}
	t, records, _ := n.core.Next(n.now)
	if t == nil {
		return
	}
	n.run(t, records)
}

func (n *node) run(t *lease.Task, records []lease.Record) {
	m := &message{what: string(t.Kind), task: t, core: n.core}
	n.task = m
	n.log("%s wants to %s %v %v %v, epoch %d", n.name, t.Kind, t.Addrs, t.Claims, t.Handles, t.Epoch)
	n.append(records, func(err error) {
		if err != nil {
			n.answer(m, lease.Answer{Err: err})
			return
		}
		n.send(n, m, func(ctx context.Context, calls Calls, m *message) { m.answer = lease.Do(ctx, calls, t, 1) }, func(m *message) {
			n.answer(m, m.answer)
		})
	})
}

func (n *node) answer(m *message, answer lease.Answer) {
	if !n.up || n.core != m.core {
		return // of a process that is gone
	}
	n.task = nil
	if m.task.Kind == lease.DoEnter && answer.Err == nil && m.task.Epoch != 0 {
		n.Ended++
	}
	records, next, lost := n.core.Done(n.now, m.task, answer)
	n.log("%s was answered %s: %v", n.name, m.what, answer)
	for _, l := range lost {
		for _, p := range n.pods {
			if p.handle == l.Handle {
				n.log("%s loses %s", p.handle, l.Addr)
				n.Lost++
				n.end(n, p)
				records = append(records, n.core.Free(n.now, p.handle)...)
				break
			}
		}
	}
	if next != nil {
		n.run(next, records)
		return
	}
	if len(records) > 0 {
		n.append(records, func(error) {})
	}
}

// restart boots the node's host again, from its disk as it is, or once was: then nobody there knows of later pods. No
// pod lives through it.
func (n *node) restart(image []byte) {
	for _, p := range slices.Clone(n.pods) {
		n.end(n, p)
		n.undone = append(n.undone, undone{node: n.name, handle: p.handle})
	}
	for i, u := range n.undone { // no plugin lives through it either
		if u.node == n.name {
			n.undone[i].add = false
		}
	}
	if n.boot++; image != nil {
		n.replace(image)
	}
	n.witness = nil
	n.log("%s reboots, from an image: %v", n.name, image != nil)
}

// replace puts another journal in the place of what is on the disk. What was promised and is not in it only garbage
// collection can find.
func (n *node) replace(disk []byte) {
	n.disk = disk
	for _, h := range n.handles {
		n.excused[h] = true
	}
}

// undone is a DEL that the runtime has to repeat, or an ADD that a plugin does.
type undone struct {
	node, handle string
	add          bool
}

// quiet tells whether nothing is left to be done on the node.
func (n *node) quiet() bool {
	if n.task != nil || len(n.waiting) > 0 {
		return false
	}
	u := n.core.Usage(n.now)
	return u.Unsettled == 0 && u.Debts == 0
}

// cooldowns are what the pool's cool-down is set to.
var cooldowns = []time.Duration{0, 5 * time.Second, time.Minute}
