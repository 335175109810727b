package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/judge"
)

const (
	// secondLook is when connections are judged once more after a change: a packet that was just passing the former rules may
	// have confirmed its connection after the table was read.
	secondLook = time.Second
	// staleMarks is how often it is asked whether marked connections are left.
	staleMarks = 30 * time.Second
	// Judging takes a share of a core at most: after some time of it there is a pause of idleShare times that, of longestPause
	// at most.
	idleShare    = 9
	longestPause = 500 * time.Millisecond
)

// Connections is the kernel's connection tracking.
type Connections interface {
	Flows(ctx context.Context, s conntrack.Select, pick func(*conntrack.Flow) bool) ([]conntrack.Flow, error)
	Mark(ctx context.Context, flows []conntrack.Flow, mark, mask uint32) error
	Delete(ctx context.Context, flows []conntrack.Flow) error
	HostAddresses() ([]netip.Addr, error)
	ListeningPorts() (map[uint16]struct{}, error)
}

// cuts ends the connections that policy has come to forbid, both ways and for good, and only those (design §5.7). Rules let
// established connections pass without asking policy; so when rules have changed, the connections concerned are judged by
// the new ones, and those that would not be let in now are marked in the kernel. A rule before the one for established
// connections drops what is marked. It is there before the first mark, and goes when no marked connection is left.
//
// A marked connection that policy allows again is forgotten by the kernel and begins anew.
type cuts struct {
	table Connections
	log   *slog.Logger
	wake  func() // asks for an Apply

	mu        sync.Mutex // guards the following
	told      []desired.FirewallDelta
	committed []desired.FirewallDelta // in the kernel, and not judged by yet
	wanted    bool                    // the rule shall be there
	there     bool                    // the rule is in the kernel
	changed   chan struct{}           // something of the above has
	addresses map[string][]netip.Addr // of workloads, by interface
	gone      map[netip.Addr]uint64   // that workloads had, and whose connections are not deleted yet: with which change they left
	noted     uint64                  // changes so far
	inKernel  uint64                  // so many of them
	forgot    chan struct{}           // closed when some of gone are no more, and then another
	cut       uint64                  // connections cut so far
}

// newCuts looks whether an earlier felix left marked connections: then the rule must be there from the first Apply on.
func newCuts(ctx context.Context, table Connections, log *slog.Logger) (*cuts, error) {
	c := &cuts{
		table: table, log: log, wake: func() {}, changed: make(chan struct{}, 1),
		addresses: map[string][]netip.Addr{}, gone: map[netip.Addr]uint64{}, forgot: make(chan struct{}),
	}
	marked, err := c.marked(ctx)
	c.wanted = len(marked) > 0
	return c, err
}

func (c *cuts) marked(ctx context.Context) ([]conntrack.Flow, error) {
	return c.table.Flows(ctx, conntrack.Select{Marked: desired.ConnMarkCut}, func(*conntrack.Flow) bool { return true })
}

// note takes a change of the desired firewall.
func (c *cuts) note(d desired.FirewallDelta) {
	if d.Empty() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, d)
	c.noted++
	for name := range d.Workloads.Removed {
		c.lose(name, nil)
		delete(c.addresses, name)
	}
	for name, w := range d.Workloads.Set {
		c.lose(name, w.Addresses)
		c.addresses[name] = w.Addresses
	}
}

func (c *cuts) lose(name string, kept []netip.Addr) {
	for _, a := range c.addresses[name] {
		if !slices.Contains(kept, a) {
			c.gone[a] = c.noted
		}
	}
}

// total is how many connections were cut.
func (c *cuts) total() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

// wakes sets who asks for an Apply.
func (c *cuts) wakes(wake func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake = wake
}

// wants tells whether the rule shall be there.
func (c *cuts) wants() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wanted
}

// applied tells that everything that was noted is in the kernel, and whether the rule is.
func (c *cuts) applied(rule bool) {
	c.mu.Lock()
	c.committed = append(c.committed, c.told...)
	news := len(c.told) > 0 || c.there != rule
	c.told, c.there, c.inKernel = nil, rule, c.noted
	c.mu.Unlock()
	if news {
		c.signal()
	}
}

func (c *cuts) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// forget deletes the connections of addresses that left their workloads, once the rules let none of them pass any more, so that
// whoever gets an address next has none of the former owner's. Addresses that a workload has again are not put off: that is done
// before a route leads there. For the others it is, since each look goes through all connections: taken tells to leave them.
func (c *cuts) forget(ctx context.Context, taken bool) error {
	gone, until := c.left(taken)
	if len(gone) == 0 {
		return nil
	}
	flows, err := c.with(ctx, false, gone, func(*conntrack.Flow) bool { return true })
	if err == nil {
		err = c.table.Delete(ctx, flows)
	}
	if err != nil {
		return fmt.Errorf("connections of addresses that left: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.gone, func(a netip.Addr, change uint64) bool {
		_, done := gone[a]
		return done && change <= until
	})
	close(c.forgot)
	c.forgot = make(chan struct{})
	return nil
}

// forgotten waits until no connection of some addresses is left of what left their workloads.
func (c *cuts) forgotten(ctx context.Context, addrs []netip.Addr) error {
	for {
		c.mu.Lock()
		left := slices.ContainsFunc(addrs, func(a netip.Addr) bool { _, gone := c.gone[a]; return gone })
		forgot := c.forgot
		c.mu.Unlock()
		if !left {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connections of addresses that left are not deleted yet: %w", context.Cause(ctx))
		case <-forgot:
		}
	}
}

// left are the addresses that left with the changes that are in the kernel, and how many changes these are; with taken only those
// that a workload has now.
func (c *cuts) left(taken bool) (out map[netip.Addr]struct{}, until uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out = map[netip.Addr]struct{}{}
	for a, change := range c.gone {
		if change <= c.inKernel && (!taken || c.has(a)) {
			out[a] = struct{}{}
		}
	}
	return out, c.inKernel
}

// has tells whether a workload has an address.
func (c *cuts) has(a netip.Addr) bool {
	for _, list := range c.addresses {
		if slices.Contains(list, a) {
			return true
		}
	}
	return false
}

// with reads the connections in which addresses have part, or all; pick chooses among them.
func (c *cuts) with(ctx context.Context, all bool, addrs map[netip.Addr]struct{}, pick func(*conntrack.Flow) bool) ([]conntrack.Flow, error) {
	if all {
		return c.table.Flows(ctx, conntrack.Select{}, pick)
	}
	if conntrack.WholeIsCheaper(2 * len(addrs)) { // each address would be looked for at both ends
		return c.table.Flows(ctx, conntrack.Select{}, func(f *conntrack.Flow) bool {
			_, from := addrs[f.Original.Source]
			_, to := addrs[f.Reply.Source]
			return (from || to) && pick(f)
		})
	}
	var out []conntrack.Flow
	for a := range addrs {
		from, err := c.table.Flows(ctx, conntrack.Select{Source: a}, pick)
		if err != nil {
			return nil, err
		}
		to, err := c.table.Flows(ctx, conntrack.Select{Destination: a}, pick)
		if err != nil {
			return nil, err
		}
		out = append(append(out, from...), to...)
	}
	return out, nil
}

// run judges until ctx ends.
func (c *cuts) run(ctx context.Context) error {
	s := sweeper{cuts: c, model: judge.New()}
	again, marks := time.NewTimer(0), time.NewTicker(staleMarks)
	again.Stop()
	defer again.Stop()
	defer marks.Stop()
	wait := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
		case <-again.C:
		case <-marks.C:
			s.look = true
		}
		began := time.Now()
		worked, err := s.turn(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.log.Warn("connections that policy may have come to forbid could not be judged, trying again", "within", wait, "error", err)
			again.Reset(wait)
			wait = min(2*wait, retryLast)
			continue
		case worked:
			wait = retryFirst
			again.Reset(secondLook)
		case !s.due.Empty():
			continue // only the rule is missing, and has been asked for
		}
		pause := time.NewTimer(min(idleShare*time.Since(began), longestPause))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}
