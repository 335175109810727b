package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-net/muslin/ipam/lease"
)

// Typha is what the simulated nodes talk to: the model of this package, or a real one with a real datastore.
type Typha interface {
	// Node is what a node may ask.
	Node(name string) Calls
	// Register makes the node known. Remove deletes it, and frees all its addresses.
	Register(node string)
	Remove(node string)
	// Forget makes the node anew, without a word on its epoch. Addresses stay as they are.
	Forget(node string)
	// SetFit tells whether pods may get addresses of the pool, SetCooldown how long addresses rest.
	SetFit(fit bool)
	SetCooldown(d time.Duration)
	// Collect frees a handle's addresses, as garbage collection does when it has proved them unused.
	Collect(handle string)
	// Holders are the handles of all addresses in use.
	Holders() map[netip.Addr]string
}

// Calls are a node's calls.
type Calls interface {
	lease.Authority
	// Assign gets an address for a handle without the node's reserve.
	Assign(ctx context.Context, handle string) (netip.Addr, error)
}

// errBusy is a compare-and-swap that was lost too often.
var errBusy = errors.New("others were always faster")

// errShort says that no address is left for a pod.
var errShort = errors.New("no address is left")

// model is typha and its datastore. Each access of the datastore is a step, between any two of which the scheduler may
// let others go on, or let this one die.
type model struct {
	now      func() time.Duration
	nodes    map[string]*object
	addrs    []address
	counts   map[string]int // addresses that handles count; too high at times, never too low
	blocks   []string       // owner of each four addresses
	sequence uint64
	fit      bool
	cooldown time.Duration
}

// object is a node as it is stored.
type object struct {
	epoch   uint64
	entered time.Duration
	fenced  []uint64 // epochs before, of which something may still be reserved
}

// settleTime is how long a call of an epoch that has ended may still be under way somewhere.
const settleTime = 5 * time.Minute

// address is one address as it is stored.
type address struct {
	handle   string
	node     string
	sequence uint64
	free     time.Duration // from when it may be taken
}

const blockSize = 4

func newModel(now func() time.Duration, blocks int) *model {
	return &model{
		now: now, nodes: map[string]*object{}, addrs: make([]address, blocks*blockSize), blocks: make([]string, blocks),
		counts: map[string]int{}, fit: true,
	}
}

func addrOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

func indexOf(a netip.Addr) int { return int(a.As4()[3]) }

func warmHandle(node string, epoch uint64) string {
	return "warm-" + node + "-" + strconv.FormatUint(epoch, 10)
}

func (m *model) Node(name string) Calls { return modelNode{m, name, func() {}} }

func (m *model) Register(node string) {
	if m.nodes[node] == nil {
		m.nodes[node] = &object{}
	}
}

func (m *model) Remove(node string) {
	delete(m.nodes, node)
	for i, a := range m.addrs {
		if a.node == node {
			m.counts[a.handle]--
			m.release(i)
		}
	}
}

func (m *model) Forget(node string) {
	if m.nodes[node] != nil {
		m.nodes[node] = &object{}
	}
}

func (m *model) SetFit(fit bool)             { m.fit = fit }
func (m *model) SetCooldown(d time.Duration) { m.cooldown = d }

func (m *model) Collect(handle string) {
	for i, a := range m.addrs {
		if a.handle == handle {
			m.release(i)
		}
	}
	delete(m.counts, handle)
}

func (m *model) Holders() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for i, a := range m.addrs {
		if a.handle != "" {
			out[addrOf(i)] = a.handle
		}
	}
	return out
}

func (m *model) release(i int) {
	m.addrs[i] = address{free: m.now() + m.cooldown}
}

func (m *model) put(i int, node, handle string) {
	m.sequence++
	m.addrs[i] = address{handle: handle, node: node, sequence: m.sequence}
}

// modelNode is the model as a node sees it.
type modelNode struct {
	*model
	name string
	step func() // waits for the scheduler
}

func (n modelNode) review(epoch uint64) lease.Review {
	n.step()
	r, handle := lease.Review{Epoch: epoch, Cooldown: n.cooldown}, warmHandle(n.name, epoch)
	for i, a := range n.addrs {
		if a.handle == handle {
			unfit := ""
			if !n.fit {
				unfit = "the pool is disabled"
			}
			r.Reserved = append(r.Reserved, lease.Reserved{Addr: addrOf(i), Sequence: a.sequence, Unfit: unfit})
		}
	}
	return r
}

func (n modelNode) Review(_ context.Context, epoch uint64) (lease.Review, error) {
	n.step()
	o := n.nodes[n.name]
	switch {
	case o == nil:
		return lease.Review{}, errors.New("not registered")
	case epoch == 0 || o.epoch != epoch:
		return lease.Review{Epoch: o.epoch}, nil
	}
	n.sweep(o)
	return n.review(epoch), nil
}

func (n modelNode) Enter(_ context.Context, present, before uint64, claims []lease.Claim) (lease.Review, error) {
	n.step()
	o := n.nodes[n.name]
	switch {
	case o == nil:
		return lease.Review{}, errors.New("not registered")
	case o.epoch != present:
		return lease.Review{}, lease.ErrStale
	}
	fresh := max(present, before, n.sequence) + 1 // like the wall clock: it never was an epoch before
	n.sequence = fresh
	ended := []uint64{present, before}
	for _, c := range claims { // what living pods have is found, whoever forgot the epoch
		if held := n.addrs[indexOf(c.Addr)]; isWarm(held.handle, n.name) {
			epoch, _ := strconv.ParseUint(held.handle[strings.LastIndexByte(held.handle, '-')+1:], 10, 64)
			ended = append(ended, epoch)
		}
	}
	for _, old := range ended {
		if old != 0 && !slices.Contains(o.fenced, old) {
			o.fenced = append(o.fenced, old)
		}
	}
	o.epoch, o.entered = fresh, n.now()
	fenced := slices.Clone(o.fenced)
	for _, c := range claims {
		n.step()
		i := indexOf(c.Addr)
		if held := n.addrs[i]; slices.ContainsFunc(fenced, func(e uint64) bool { return held.handle == warmHandle(n.name, e) }) {
			_ = n.move(i, held, c.Handle)
		}
	}
	for _, old := range fenced {
		n.free(warmHandle(n.name, old))
	}
	return n.review(fresh), nil
}

// sweep frees once more what ended epochs had, when no call of theirs can be under way any longer.
func (n modelNode) sweep(o *object) {
	if len(o.fenced) == 0 || n.now()-o.entered < settleTime {
		return
	}
	fenced := slices.Clone(o.fenced)
	for _, old := range fenced {
		n.free(warmHandle(n.name, old))
	}
	n.step()
	o.fenced = slices.DeleteFunc(o.fenced, func(e uint64) bool { return slices.Contains(fenced, e) })
}

// move gives an address, as it was read, to another handle. The handle is counted up before and down after, as alloc does.
func (n modelNode) move(i int, read address, to string) error {
	from := read.handle
	n.step()
	n.counts[to]++
	n.step()
	if n.addrs[i] != read {
		n.step()
		n.counts[to]--
		return errBusy
	}
	n.put(i, n.name, to)
	n.step()
	n.counts[from]--
	return nil
}

func (n modelNode) free(handle string) []netip.Addr {
	n.step()
	if n.counts[handle] <= 0 {
		return nil
	}
	var out []netip.Addr
	n.step()
	for i, a := range n.addrs {
		if a.handle == handle {
			n.release(i)
			out = append(out, addrOf(i))
		}
	}
	n.step()
	n.counts[handle] -= len(out)
	return out
}

// take takes free addresses, of the node's own blocks or of any, and one at least.
func (n modelNode) take(handle string, count int, borrow bool) ([]int, error) {
	n.step()
	n.counts[handle] += count // before the block is written
	n.step()
	var out []int
	if n.fit {
		for _, own := range []bool{true, false} {
			for i, a := range n.addrs {
				b := i / blockSize
				if len(out) == count || a.handle != "" || n.now() < a.free || own && n.blocks[b] != "" && n.blocks[b] != n.name || !own && !borrow {
					continue
				}
				if n.blocks[b] == "" {
					n.blocks[b] = n.name
				}
				n.put(i, n.name, handle)
				out = append(out, i)
			}
		}
	}
	if len(out) == count {
		return out, nil
	}
	for _, i := range out { // all or none; it was never written
		n.addrs[i] = address{}
	}
	n.step()
	n.counts[handle] -= count
	return nil, errShort
}

func (n modelNode) Reserve(_ context.Context, epoch uint64, _ lease.Class, count int) ([]lease.Reserved, error) {
	n.step()
	if o := n.nodes[n.name]; o == nil || o.epoch != epoch {
		return nil, lease.ErrStale
	}
	handle := warmHandle(n.name, epoch)
	got, err := n.take(handle, count, false)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", lease.ErrShort, err)
	}
	out := make([]lease.Reserved, len(got))
	for k, i := range got {
		out[k] = lease.Reserved{Addr: addrOf(i), Sequence: n.addrs[i].sequence}
	}
	n.step()
	if o := n.nodes[n.name]; o == nil || o.epoch != epoch { // it ended meanwhile, and whoever ended it may have been earlier
		n.giveBack(handle, out)
		return nil, lease.ErrStale
	}
	return out, nil
}

func (n modelNode) Settle(_ context.Context, epoch uint64, claims []lease.Claim) (map[netip.Addr]string, error) {
	n.step()
	if o := n.nodes[n.name]; o == nil || o.epoch != epoch {
		return nil, lease.ErrStale
	}
	refused := map[netip.Addr]string{}
	for _, c := range claims {
		i := indexOf(c.Addr)
		err := errBusy
		for errors.Is(err, errBusy) {
			n.step()
			held := n.addrs[i]
			switch {
			case held.handle == c.Handle:
				err = nil
			case held.handle != warmHandle(n.name, epoch) || c.Sequence != 0 && c.Sequence != held.sequence:
				refused[c.Addr], err = "held by "+cmp.Or(held.handle, "nobody"), nil
			default:
				err = n.move(i, held, c.Handle)
			}
		}
	}
	return refused, nil
}

func (n modelNode) Claim(_ context.Context, c lease.Claim) error {
	n.step()
	i := indexOf(c.Addr)
	n.counts[c.Handle]++
	n.step()
	if held := n.addrs[i]; held.handle != "" || n.now() < held.free {
		n.step()
		n.counts[c.Handle]--
		return fmt.Errorf("%w: %s", lease.ErrTaken, held.handle)
	}
	n.put(i, n.name, c.Handle)
	return nil
}

func (n modelNode) Return(_ context.Context, epoch uint64, addrs []lease.Reserved) error {
	n.giveBack(warmHandle(n.name, epoch), addrs)
	return nil
}

func (n modelNode) giveBack(handle string, addrs []lease.Reserved) {
	for _, r := range addrs {
		n.step()
		i := indexOf(r.Addr)
		if held := n.addrs[i]; held.handle == handle && held.sequence == r.Sequence {
			n.release(i)
			n.step()
			n.counts[handle]--
		}
	}
}

func (n modelNode) Free(_ context.Context, handles ...string) error {
	for _, h := range handles {
		n.free(h)
	}
	return nil
}

func (n modelNode) Assign(_ context.Context, handle string) (netip.Addr, error) {
	n.step()
	if n.nodes[n.name] == nil {
		return netip.Addr{}, errors.New("not registered")
	}
	got, err := n.take(handle, 1, true)
	if err != nil {
		return netip.Addr{}, err
	}
	return addrOf(got[0]), nil
}

// isWarm tells whether a handle is that of a node's reserve.
func isWarm(handle, node string) bool {
	rest, warm := strings.CutPrefix(handle, "warm-")
	rest, own := strings.CutPrefix(rest, node)
	return warm && own && strings.HasPrefix(rest, "-")
}
