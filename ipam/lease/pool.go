package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Config is what a Pool needs.
type Config struct {
	Dir     string // of the journal
	Witness string // a file in a directory that a reboot clears
	Terms   Terms
	Typha   Authority
	// Living are the addresses of pods that run on the node, as far as that is known without the journal.
	Living []Claim
	// Lost is told of addresses that pods have and that are others' now: these pods must lose their network.
	Lost func(Lost)
	Log  *slog.Logger

	boot string               // for tests; the host's
	now  func() time.Duration // for tests; BootTime
}

// Pool is a node's reserve of addresses and its queue of handles to be freed. Its methods may be called from many
// goroutines.
type Pool struct {
	cfg     Config
	journal *Journal
	poke    chan struct{}
	rush    chan struct{}  // like poke, and somebody waits
	syncing sync.WaitGroup // loans on their way to the disk

	mu      sync.Mutex // guards the following
	core    *Core
	fate    Fate
	hits    uint64
	misses  map[Miss]uint64
	changed chan struct{} // closed when a debt is no longer being paid
	filled  chan struct{} // closed when addresses were reserved, or were not to be had
}

// Open takes up the journal that an earlier process left. It fails only if there is no using the directory; a journal that
// cannot be used is begun anew.
func Open(cfg Config) (*Pool, error) {
	if cfg.now == nil {
		cfg.now = BootTime
	}
	if cfg.boot == "" {
		var err error
		if cfg.boot, err = BootID(); err != nil {
			return nil, err
		}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(Lost) {}
	}
	j, data, w, err := openJournal(cfg.Dir, cfg.Witness, cfg.boot)
	if err != nil {
		return nil, err
	}
	s, number, claims, fate := Recover(data, w, cfg.boot, cfg.Living)
	confirmed := time.Duration(0)
	if fate == Kept {
		confirmed = w.Confirmed
	}
	p := &Pool{
		cfg: cfg, journal: j, poke: make(chan struct{}, 1), rush: make(chan struct{}, 1), fate: fate, misses: map[Miss]uint64{},
		changed: make(chan struct{}), filled: make(chan struct{}),
		core: NewCore(s, cfg.Terms, cfg.now(), confirmed, claims),
	}
	j.owner, j.appended = p, number
	level := slog.LevelInfo
	if fate == Damaged {
		level = slog.LevelError
	}
	cfg.Log.Log(context.Background(), level, "journal of addresses", "fate", fate, "epoch", s.Epoch, "addresses", len(s.Slots), "to be freed", len(s.Debts), "bytes", len(data))
	return p, nil
}

// Close lets go of the journal. Calls under way must have ended.
func (p *Pool) Close() error {
	p.syncing.Wait()
	return p.journal.Close()
}

// snapshot is for the journal.
func (p *Pool) snapshot() (uint64, []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	number := p.journal.take()
	return number, EncodeState(number, p.core.State)
}

func (p *Pool) confirmed() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.Confirmed()
}

// change lets do change the core, and returns when what it did is on the disk.
func (p *Pool) change(do func(*Core, time.Duration) []Record) error {
	number, changed := p.note(do)
	if !changed {
		return nil
	}
	return p.journal.Wait(number)
}

// note lets do change the core, and returns the number of its last record.
func (p *Pool) note(do func(*Core, time.Duration) []Record) (number uint64, changed bool) {
	p.mu.Lock()
	records := do(p.core, p.cfg.now())
	number = p.journal.Append(records)
	p.mu.Unlock()
	p.wake()
	return number, len(records) > 0
}

// wake has Run look what there is to do.
func (p *Pool) wake() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// hurry is wake for somebody who waits.
func (p *Pool) hurry() {
	select {
	case p.rush <- struct{}{}:
	default:
	}
}

// Lend gives a handle an address of each class, without asking anybody. When it returns another process would know of it, when sure
// does another boot of the host as well; until then nothing may come of it that a reboot would not end. After an error of sure the
// handle is to be freed. Without an error and without addresses there is none to be had, and the caller has to ask typha.
func (p *Pool) Lend(handle string, attributes map[string]string, classes ...Class) (addrs []netip.Addr, sure func() error, err error) {
	number, changed := p.note(func(c *Core, now time.Duration) (records []Record) {
		var miss Miss
		records, addrs, miss = c.Lend(now, handle, attributes, classes...)
		if miss == "" {
			p.hits++
		} else {
			p.misses[miss]++
		}
		return records
	})
	if !changed {
		return addrs, func() error { return nil }, nil
	}
	// If the disk does not take it, it was not handed out, whatever the disk says later.
	if err := p.journal.Write(number); err != nil {
		return nil, nil, errors.Join(err, p.Free(handle))
	}
	outcome := make(chan error, 1)
	p.syncing.Go(func() { outcome <- p.journal.Wait(number) })
	return addrs, sync.OnceValue(func() error { return <-outcome }), nil
}

// Refill waits until the classes of which there is no address have been filled up, and tells whether it is worth another Lend: a
// burst of pods makes one request of typha, not one each. It does not wait where nothing is to be expected.
func (p *Pool) Refill(ctx context.Context, classes ...Class) bool {
	p.mu.Lock()
	now, filled, empty := p.cfg.now(), p.filled, false
	for _, class := range classes {
		if p.core.count(class, now) > 0 {
			continue
		}
		empty = true
		if !p.core.fills(class, now) {
			p.mu.Unlock()
			return false
		}
	}
	p.mu.Unlock()
	if !empty {
		return true
	}
	p.hurry()
	select {
	case <-filled:
		return true
	case <-ctx.Done():
		return false
	}
}

// Free ends a handle's use of its addresses. It is done in any case; the error tells that the disk did not take it, so
// that it would be forgotten if the process ended now.
func (p *Pool) Free(handle string) error {
	return p.change(func(c *Core, now time.Duration) []Record { return c.Free(now, handle) })
}

// clearWait is how long Clear waits for typha.
const clearWait = time.Second

// Clear ends an earlier use of a handle, of which the end was never told since the process ended before, perhaps. It waits a while
// for typha to be told; if that is in vain, what the handle has there stays with it until its next use ends. The caller knows that
// nobody has these addresses.
func (p *Pool) Clear(ctx context.Context, handle string) error {
	if err := p.change(func(c *Core, now time.Duration) []Record { return c.Clear(now, handle) }); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, clearWait)
	defer cancel()
	for {
		p.mu.Lock()
		clearing, changed := p.core.Clearing(p.cfg.now(), handle), p.changed
		p.mu.Unlock()
		if !clearing {
			return nil
		}
		p.hurry()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Reuse takes back what Free put off, as the handle is used again. If its addresses are being freed at this moment, that
// is waited for; if ctx ends before, the handle stays to be freed.
func (p *Pool) Reuse(ctx context.Context, handle string) error {
	for {
		p.mu.Lock()
		paying, changed := p.core.Paying(handle), p.changed
		p.mu.Unlock()
		if !paying {
			return p.change(func(c *Core, _ time.Duration) []Record { return c.Reuse(handle) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the addresses of %s are still being freed: %w", handle, ctx.Err())
		}
	}
}

// Remote notes that a handle is about to get addresses from typha directly, and returns when that is on the disk.
func (p *Pool) Remote(handle string) error {
	return p.change(func(c *Core, _ time.Duration) []Record { return c.Remote(handle) })
}

// Ask has Run ask typha what it has for the node, soon: the connection came back, or pools have changed.
func (p *Pool) Ask() {
	p.mu.Lock()
	p.core.Ask()
	p.mu.Unlock()
	p.wake()
}

// Slots are the addresses that the node has reserved, as they are now.
func (p *Pool) Slots() map[netip.Addr]Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.Clone().Slots
}
