package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
)

// Driver is a rule driver.
type Driver interface {
	Update(c desired.FirewallDelta)
	// Desired is all that Update was told.
	Desired() desired.FirewallDelta
	Apply(ctx context.Context) error
	Whole()
	Resync()
	InSync() bool
	Closed(iface string) string
	Entries() []dataplane.Entry
	// ToldAs is what Update called a chain of the kernel's, "" if nothing.
	ToldAs(kernel string) string
	Watch(ctx context.Context, wake dataplane.Wake) error
	dataplane.Counters
	Writes() uint64
	Close() error
}

// Config is what the chooser needs to know at start.
type Config struct {
	// In runs what starts programs or opens sockets, in the network namespace that the firewall is for; nil: where the
	// process is.
	In  func(func() error) error
	Log *slog.Logger
}

// Rules is the firewall by whichever driver. Its methods may be called from several goroutines.
type Rules struct {
	cfg     Config
	probe   func(context.Context, desired.Rules) Reading
	changed chan struct{} // there is another driver to watch

	mu       sync.Mutex // guards the following
	found    readings
	settings desired.Rules
	choice   choice // what driver is
	driver   Driver
	coming   choice // what next is
	next     Driver // takes over
	refused  error  // why what is wanted is not used
	whole    bool
	swept    bool // what others left is gone
}

// New looks at the node and returns a firewall that was told nothing yet.
func New(cfg Config) (*Rules, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.In == nil {
		cfg.In = func(f func() error) error { return f() }
	}
	r := &Rules{cfg: cfg, changed: make(chan struct{}, 1), probe: func(ctx context.Context, s desired.Rules) Reading { return look(ctx, cfg.In, s) }}
	r.found.counts = r.probe(context.Background(), r.settings)
	r.choice = choose(r.settings, r.found.counts)
	var err error
	if r.driver, err = r.open(r.choice); err != nil {
		return nil, err
	}
	return r, nil
}

// Close releases the drivers; the firewall stays.
func (r *Rules) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.driver.Close()
	if r.next != nil {
		err = errors.Join(err, r.next.Close())
	}
	return err
}

// Kind is which driver programs the firewall; while it moves, that which it moves from.
func (r *Rules) Kind() Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.choice.Kind
}

// Driver is the driver that programs the firewall.
func (r *Rules) Driver() Driver {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.driver
}

// Update takes a change of the desired firewall.
func (r *Rules) Update(c desired.FirewallDelta) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Settings != nil && c.Settings.Rules != r.settings {
		r.settings, r.refused = c.Settings.Rules, nil
	}
	r.driver.Update(c)
	if r.next != nil {
		r.next.Update(c)
	}
}

// Whole says that Update was told everything.
func (r *Rules) Whole() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whole = true
	r.driver.Whole()
	if r.next != nil {
		r.next.Whole()
	}
}

// Resync makes the next Apply read the kernel again.
func (r *Rules) Resync() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.driver.Resync()
	if r.next != nil {
		r.next.Resync()
	}
}

// Guard writes what of the firewall must be there before workloads' devices are set up, where the driver has such a thing.
func (r *Rules) Guard(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, driver := range []Driver{r.driver, r.next} {
		if g, ok := driver.(interface{ Guard(context.Context) }); ok {
			g.Guard(ctx)
		}
	}
}

// Apply makes the kernel agree, by the driver that is wanted. What failed stays due and is in the error.
func (r *Rules) Apply(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.follow(ctx)
	if r.next != nil {
		return r.takeOver(ctx)
	}
	if err := r.driver.Apply(ctx); err != nil {
		return err
	}
	return r.sweep(ctx)
}

// follow begins to move to the driver that is wanted.
func (r *Rules) follow(ctx context.Context) {
	if r.found.counts.Host == "" && asksHost(r.settings, r.found.counts.Proxy) {
		r.found.counts = r.probe(ctx, r.settings)
	}
	want := choose(r.settings, r.found.counts)
	if r.next != nil && r.coming != want {
		_ = r.next.Close() // what it wrote goes with what others left
		r.next, r.swept = nil, false
	}
	if want == r.choice || r.next != nil || r.refused != nil {
		return
	}
	next, err := r.open(want)
	if err != nil {
		r.refused = err
		r.cfg.Log.Warn("the firewall stays where it is: the driver that is wanted cannot be used", "wanted", want.Kind, "driver", r.choice.Kind, "error", err)
		return
	}
	next.Update(r.driver.Desired())
	if r.whole {
		next.Whole()
	}
	r.next, r.coming = next, want
}

// takeOver has the next driver commit, and then removes what the former did. If the next is of the same kind, its rules have taken
// the place of the former's, whatever of them failed.
func (r *Rules) takeOver(ctx context.Context) error {
	failed := r.next.Apply(ctx)
	if failed != nil && r.choice.Kind != r.coming.Kind { // the former goes on to say what is allowed, too
		return errors.Join(fmt.Errorf("move the firewall from %s to %s: %w", r.choice.Kind, r.coming.Kind, failed), r.driver.Apply(ctx))
	}
	if !r.whole { // the former may know what the next was not told yet
		return errors.Join(failed, r.driver.Apply(ctx))
	}
	if r.choice.Kind != r.coming.Kind {
		if err := r.remove(ctx, r.choice.Kind, r.coming.Kind); err != nil {
			return errors.Join(err, r.driver.Apply(ctx))
		}
		r.cfg.Log.Info("the firewall has moved", "from", r.choice.Kind, "to", r.coming.Kind)
	}
	err := r.driver.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil // its watch ends at this moment, and closes what it reads
	}
	r.driver, r.choice, r.next, r.swept = r.next, r.coming, nil, false
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return errors.Join(failed, err, r.sweep(ctx))
}

// sweep removes, once, what a former felix or a move that was given up left by other drivers.
func (r *Rules) sweep(ctx context.Context) error {
	if r.swept || !r.whole {
		return nil
	}
	var errs []error
	for _, k := range []Kind{NFTables, IPTablesLegacy, IPTablesNFT} {
		if k != r.choice.Kind {
			errs = append(errs, r.remove(ctx, k, r.choice.Kind))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.swept = true
	return nil
}

// InSync tells whether the kernel agrees with everything Update was told.
func (r *Rules) InSync() bool { return r.Driver().InSync() }

// Closed tells why a workload is closed, as far as the driver knows; "" if it is open in both directions.
func (r *Rules) Closed(iface string) string { return r.Driver().Closed(iface) }

// Counters reads what the present driver's rules counted.
func (r *Rules) Counters(ctx context.Context) ([]dataplane.Counter, error) {
	return r.Driver().Counters(ctx)
}

// Writes counts what the present driver wrote to the kernel.
func (r *Rules) Writes() uint64 { return r.Driver().Writes() }

// ToldAs is what Update called a chain that Entries names, "" if nothing.
func (r *Rules) ToldAs(key string) string {
	return r.Driver().ToldAs(key[strings.LastIndexByte(key, ' ')+1:])
}

// Entries lists chains and sets, desired beside actual, and which driver it is.
func (r *Rules) Entries() []dataplane.Entry {
	r.mu.Lock()
	driver := r.driver
	choice := dataplane.Entry{
		Object:  dataplane.Object{Kind: dataplane.KindRule, Key: "driver"},
		Desired: string(choose(r.settings, r.found.counts).Kind), Actual: string(r.choice.Kind), Err: r.refused,
	}
	r.mu.Unlock()
	return append([]dataplane.Entry{choice}, driver.Entries()...)
}
