package scale

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/rpc"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/daemon"
	muslinrpc "github.com/muslin-net/muslin/internal/rpc"
)

// Serve is a worker's life: it does what comes in by standard input, until that ends.
func Serve() error {
	daemon.Thrifty(daemon.NodeShare) // as felix: what one of its clients takes is measured here too
	server := rpc.NewServer()
	if err := server.RegisterName("Worker", &Worker{}); err != nil {
		return err
	}
	server.ServeConn(pipes{in: os.Stdin, out: os.Stdout})
	return nil
}

// Worker holds clients. Its methods are called by the process that started it, one at a time.
type Worker struct {
	clients []member
	stop    context.CancelFunc
	running *errgroup.Group
}

// member is one client of a crowd.
type member interface {
	// run follows the view until ctx ends.
	run(ctx context.Context) error
	notes() *notes
}

// None is no argument and no answer.
type None struct{}

// PrepareArgs are what clients are made of.
type PrepareArgs struct {
	Address string // of typha
	PKI     string // directory of certificates
	Clients []ClientSpec
}

// Prepare makes clients, in the place of those that are there. One of the same node and kind takes over what that has seen.
func (w *Worker) Prepare(args PrepareArgs, _ *None) error {
	before := w.clients
	w.clients = nil
	for i, s := range args.Clients {
		dir := certificate(args.PKI, s.Node)
		files := muslinrpc.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
		var old member
		if i < len(before) {
			old = before[i]
		}
		m, err := newMember(args.Address, files, s, old)
		if err != nil {
			return fmt.Errorf("client of node %s: %w", s.Node, err)
		}
		w.clients = append(w.clients, m)
	}
	return nil
}

func newMember(address string, files muslinrpc.Files, s ClientSpec, old member) (member, error) {
	switch s.Kind {
	case Whole, Felix:
		return newWhole(address, files, s)
	case Lean:
		before, _ := old.(*lean)
		return newLean(address, files, s.Node, before)
	}
	return nil, fmt.Errorf("there is no kind of client %q", s.Kind)
}

// Run has all clients connect, and returns when each was in sync.
func (w *Worker) Run(_ None, times *[]time.Duration) error {
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.running, ctx = errgroup.WithContext(ctx)
	for _, c := range w.clients {
		w.running.Go(func() error { return c.run(ctx) })
	}
	for _, c := range w.clients {
		at, err := c.notes().whole(ctx)
		if err != nil {
			return errors.Join(err, w.Leave(None{}, nil))
		}
		*times = append(*times, at)
	}
	return nil
}

// Leave has all clients go.
func (w *Worker) Leave(None, *None) error {
	if w.stop == nil {
		return nil
	}
	w.stop()
	w.stop = nil
	return w.running.Wait()
}

// Await waits until each client was told something, and returns when.
func (w *Worker) Await(tells string, times *[]time.Duration) error {
	for _, c := range w.clients {
		*times = append(*times, <-c.notes().await(tells))
	}
	return nil
}

// Record has clients take notes.
func (w *Worker) Record(None, *None) error {
	for _, c := range w.clients {
		c.notes().record(true)
	}
	return nil
}

// Heap writes a profile of what the process holds to a file, garbage not included.
func (w *Worker) Heap(path string, _ *None) error {
	runtime.GC()
	runtime.GC() // what has a finalizer goes with the second one
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}

// Latencies are how long it took from writes until they were delivered, and until they were programmed.
type Latencies struct {
	Delivered, Desired Histogram
	Batches            int
}

// Latencies ends the notes of all clients, and compares them with what was written: what a client was told is by the last write
// before that tells the same.
func (w *Worker) Latencies(stamps []Stamp, out *Latencies) error {
	written := map[uint64][]time.Duration{}
	for _, s := range stamps {
		k := hashOf(s.Tells)
		written[k] = append(written[k], s.At)
	}
	for _, times := range written {
		slices.Sort(times)
	}
	*out = Latencies{Delivered: Histogram{}, Desired: Histogram{}}
	count := func(h Histogram, told []told) {
		for _, t := range told {
			times := written[t.key]
			if i, exact := slices.BinarySearch(times, t.at); exact || i > 0 {
				h.Add(t.at - times[max(i-1, 0)])
			}
		}
	}
	for _, c := range w.clients {
		delivered, desired, batches := c.notes().record(false)
		count(out.Delivered, delivered)
		count(out.Desired, desired)
		out.Batches += batches
	}
	return nil
}

func hashOf(tells string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, tells) // a hash takes everything
	return h.Sum64()
}

// told is that a client was told something.
type told struct {
	key uint64
	at  time.Duration
}

// notes are what a client notes.
type notes struct {
	synced *gate
	blind  bool // of its first view it knows nothing: of a set that comes whole for the first time, all may be new

	mu        sync.Mutex // guards all below
	at        time.Duration
	recording bool
	batches   int
	delivered []told
	desired   []told
	sets      map[string][]view.Member // as the client was given them last
	seen      map[string]chan time.Duration
}

func newNotes() *notes {
	return &notes{synced: newGate(), sets: map[string][]view.Member{}, seen: map[string]chan time.Duration{}}
}

// inSync notes that the view is whole.
func (n *notes) inSync() {
	n.synced.once.Do(func() {
		n.mu.Lock()
		n.at = now()
		n.mu.Unlock()
		close(n.synced.open)
	})
}

// whole waits until the view is whole, and returns when it was.
func (n *notes) whole(ctx context.Context) (time.Duration, error) {
	select {
	case <-n.synced.open:
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.at, nil
	case <-ctx.Done():
		return 0, errors.New("a client ended before its view was whole")
	}
}

// await returns a channel that gets when something was told.
func (n *notes) await(tells string) <-chan time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan time.Duration, 1)
	for _, members := range n.sets {
		if slices.ContainsFunc(members, func(m view.Member) bool { return m.Prefix.Addr().String() == tells }) {
			c <- now()
			return c
		}
	}
	n.seen[tells] = c
	return c
}

// record begins or ends the notes, and returns what was noted.
func (n *notes) record(on bool) (delivered, desired []told, batches int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delivered, desired, batches = n.delivered, n.desired, n.batches
	n.recording, n.delivered, n.desired, n.batches = on, nil, nil, 0
	return delivered, desired, batches
}

// take notes what a batch tells, and returns it for programmed.
func (n *notes) take(b view.Batch) (tells []uint64) {
	at := now()
	n.mu.Lock()
	defer n.mu.Unlock()
	once := map[string]struct{}{}
	say := func(tell string) { once[tell] = struct{}{} }
	for _, it := range b.Updates {
		switch it := it.(type) {
		case view.IPSetDelta:
			n.sets[it.ID] = changedMembers(n.sets[it.ID], it)
			for _, m := range append(slices.Clip(it.Added), it.Removed...) {
				say(m.Prefix.Addr().String())
			}
		case view.IPSet:
			if old, had := n.sets[it.ID]; had || n.blind {
				differ(old, it.Members, func(m view.Member) { say(m.Prefix.Addr().String()) })
			}
			n.sets[it.ID] = it.Members
		case view.WorkloadEndpoint:
			for _, a := range it.Addresses {
				say(a.String())
			}
		case view.Policy:
			say(it.ID)
		case view.Node:
			say(it.Name)
		}
	}
	for _, k := range b.Removes {
		if k.Kind == view.KindIPSet {
			delete(n.sets, k.ID)
		}
	}
	n.batches++
	for tell := range once {
		if c := n.seen[tell]; c != nil {
			c <- at
			delete(n.seen, tell)
		}
		if n.recording {
			k := hashOf(tell)
			tells = append(tells, k)
			n.delivered = append(n.delivered, told{k, at})
		}
	}
	return tells
}

// programmed notes that what a batch told is where the kernel would be.
func (n *notes) programmed(tells []uint64) {
	at := now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.recording {
		return
	}
	for _, k := range tells {
		n.desired = append(n.desired, told{k, at})
	}
}

// quiet is for what would say the same a thousand times.
var quiet = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
