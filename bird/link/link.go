// Package link watches the links by which peers are reached: a peer on a link that goes down, or loses its carrier, is lost
// in that moment, not when BGP's hold time is over. A peer behind gateways is lost if no other way to it is left.
//
// What a link's loss means for sessions is the speaker's to say. Routes that go without a link going are no business of this
// package: BGP sessions survive those, and BFD tells if they matter.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// Events is who is told.
type Events interface {
	// PeerLost says that the link to a peer is down.
	PeerLost(peer netip.Addr, by speaker.Evidence, reason string)
	// PeerFound says that there is a working link to it again.
	PeerFound(peer netip.Addr, by speaker.Evidence)
}

// How often the kernel is asked for routes to peers: while all is well, while a peer is lost, and while one is lost and a link
// has just changed, since routes through gateways come back a moment after their link.
const (
	lookSeldom = 5 * time.Second
	lookOften  = time.Second
	lookSoon   = 20 * time.Millisecond
	justNow    = 2 * time.Second
)

// subscribeAgain is the wait after the kernel's messages could not be read.
const subscribeAgain = time.Second

// Monitor watches links. It is made by New and works while Run does.
type Monitor struct {
	log    *slog.Logger
	events Events
	kernel *netlink.Handle
	wake   chan struct{}

	mu      sync.Mutex // guards the following
	targets []target
	renewed bool // targets are new
	tracker *tracker
}

// New returns a monitor of the network namespace that the caller is in.
func New(log *slog.Logger, events Events) (*Monitor, error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("links: opening netlink: %w", err)
	}
	m := &Monitor{log: log, events: events, kernel: kernel, wake: make(chan struct{}, 1)}
	m.tracker = newTracker(m.resolve)
	return m, nil
}

// Watch says which peers there are.
func (m *Monitor) Watch(peers []policy.Peer) {
	targets := make([]target, 0, len(peers))
	for i := range peers {
		targets = append(targets, target{peers[i].Address, peers[i].SourceAddress})
	}
	m.mu.Lock()
	m.targets, m.renewed = targets, true
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// State says why a peer is lost; empty while it is not.
func (m *Monitor) State(peer netip.Addr) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tracker.state(peer)
}

// resolve asks the kernel for its route to a peer.
func (m *Monitor) resolve(t target) (path, bool) {
	options := &netlink.RouteGetOptions{}
	if t.source.IsValid() {
		options.SrcAddr = t.source.AsSlice()
	}
	routes, err := m.kernel.RouteGetWithOptions(t.peer.AsSlice(), options)
	if err != nil || len(routes) == 0 {
		return path{}, false
	}
	r := routes[0]
	return path{link: r.LinkIndex, direct: r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0}, r.LinkIndex > 0
}

// Run watches until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.kernel.Close()
	for ctx.Err() == nil {
		if err := m.follow(ctx); err != nil {
			m.log.Warn("links are not watched; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(subscribeAgain):
		}
	}
	return nil
}

// follow reads the kernel's messages until ctx ends or some are lost.
func (m *Monitor) follow(ctx context.Context) error {
	updates, failed, done := make(chan netlink.LinkUpdate, 256), make(chan error, 1), make(chan struct{})
	defer close(done)
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		// Not ListExisting: its request goes to all who subscribe to links in this namespace, felix for one, as a message that
		// is not the kernel's.
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("subscribing to links: %w", err)
	}
	if err := m.list(ctx); err != nil {
		return err
	}
	look := time.NewTimer(lookSeldom)
	defer look.Stop()
	var changed time.Time // a link
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("reading about links: %w", err)
		case u, ok := <-updates:
			if !ok {
				return fmt.Errorf("reading about links: the kernel's messages ended")
			}
			if u.Family != unix.AF_UNSPEC {
				continue // of a bridge about its ports
			}
			changed = time.Now()
			if err := m.told(u); err != nil {
				return err
			}
		case <-m.wake:
			m.judge(func(*tracker) []verdict { return nil })
		case <-look.C:
			m.judge((*tracker).refresh)
		}
		switch {
		case !m.lost():
			look.Reset(lookSeldom)
		case time.Since(changed) < justNow:
			look.Reset(lookSoon)
		default:
			look.Reset(lookOften)
		}
	}
}

// list asks for all links, after the subscription, so that nothing falls between.
func (m *Monitor) list(ctx context.Context) error {
	links, err := m.kernel.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) && ctx.Err() == nil {
		links, err = m.kernel.LinkList()
	}
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	now := make(map[int]state, len(links))
	for _, l := range links {
		now[l.Attrs().Index] = stateOf(l)
	}
	m.judge(func(t *tracker) []verdict { return t.are(now) })
	return nil
}

// told takes a message about a link. One on which something depends is asked for, since the message may be older than what list has
// found; of the others, which come and go with each pod, it will do.
func (m *Monitor) told(u netlink.LinkUpdate) error {
	index, gone := int(u.Index), u.Header.Type == unix.RTM_DELLINK
	m.mu.Lock()
	matters := m.renewed || m.tracker.matters(index)
	if !matters {
		m.tracker.changed(index, stateOf(u.Link), gone)
	}
	m.mu.Unlock()
	if !matters {
		return nil
	}
	return m.ask(index)
}

// ask asks for a link.
func (m *Monitor) ask(index int) error {
	l, err := m.kernel.LinkByIndex(index)
	_, gone := errors.AsType[netlink.LinkNotFoundError](err)
	if err != nil && !gone {
		return fmt.Errorf("asking for link %d: %w", index, err)
	}
	var s state
	if !gone {
		s = stateOf(l)
	}
	m.judge(func(t *tracker) []verdict { return t.changed(index, s, gone) })
	return nil
}

func stateOf(l netlink.Link) state {
	const running = unix.IFF_UP | unix.IFF_RUNNING
	return state{name: l.Attrs().Name, up: l.Attrs().RawFlags&running == running}
}

func (m *Monitor) lost() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tracker.anyLost()
}

// judge passes on what a look at the links shows.
func (m *Monitor) judge(look func(*tracker) []verdict) {
	m.mu.Lock()
	var news []verdict
	if m.renewed {
		m.renewed = false
		news = m.tracker.watch(m.targets)
	}
	news = append(news, look(m.tracker)...)
	m.mu.Unlock()
	for _, v := range news {
		if v.reason != "" {
			m.events.PeerLost(v.peer, speaker.ByLink, v.reason)
		} else {
			m.events.PeerFound(v.peer, speaker.ByLink)
		}
	}
}
