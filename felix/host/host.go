// Package host watches the node's own network: its interfaces with their addresses, and how the kernel reaches the next
// hops that bird learned. It only reads.
package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// settle is how long changes are collected before the network is read again: interfaces change in bursts.
const settle = 20 * time.Millisecond

// audit is how often the network is read although nothing was heard.
const audit = 30 * time.Second

// Watcher reads the node's network and tells when it changed.
type Watcher struct {
	log *slog.Logger

	mu       sync.Mutex // guards nextHops and peers
	nextHops []netip.Addr
	peers    []netip.Addr
	poke     chan struct{}
}

// New returns a watcher that leaves workloads' and tunnels' interfaces out.
func New(log *slog.Logger) *Watcher { return &Watcher{log: log, poke: make(chan struct{}, 1)} }

// Resolve names the next hops whose reachability is to be watched. It does not block.
func (w *Watcher) Resolve(hops []netip.Addr) {
	w.mu.Lock()
	w.nextHops = slices.Clone(hops)
	w.mu.Unlock()
	w.again()
}

// Peers names the addresses of the other nodes, sorted: the links by which packets to them leave are the node's uplinks. It
// does not block.
func (w *Watcher) Peers(addrs []netip.Addr) {
	w.mu.Lock()
	same := slices.Equal(w.peers, addrs)
	w.peers = slices.Clone(addrs)
	w.mu.Unlock()
	if !same {
		w.again()
	}
}

// again has the network read again.
func (w *Watcher) again() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// Run tells the present state, and each later one, until ctx ends. A lost subscription is opened again.
func (w *Watcher) Run(ctx context.Context, tell func(state.Host)) error {
	for {
		err := w.follow(ctx, tell)
		if ctx.Err() != nil {
			return nil
		}
		w.log.Warn("lost track of the host's network, starting over", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (w *Watcher) follow(ctx context.Context, tell func(state.Host)) error {
	done := make(chan struct{})
	links, addrs, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan struct{}, 1)
	defer func() { // the subscriptions end when they are read to their end
		close(done)
		go drain(links)
		go drain(addrs)
	}()
	lost := make(chan error, 3)
	report := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	if err := errors.Join(
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: report}),
		netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: report}),
	); err != nil {
		return err
	}
	stop, err := subscribeToRoutes(func() {
		select {
		case routes <- struct{}{}:
		default:
		}
	}, report)
	if err != nil {
		return err
	}
	defer stop()
	check, timer := time.NewTicker(audit), time.NewTimer(0)
	defer check.Stop()
	defer timer.Stop()
	due := true // the timer runs; what changes on and on must not put it off for ever
	within := func(d time.Duration) {
		if !due || d == 0 {
			due = true
			timer.Reset(d)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return err
		case u, ok := <-links:
			if !ok {
				return errors.New("subscription to links ended")
			}
			if !ours(u.Attrs().Name) {
				within(settle)
			}
		case _, ok := <-addrs:
			if !ok {
				return errors.New("subscription to addresses ended")
			}
			within(settle)
		case <-routes:
			within(settle)
		case <-w.poke:
			within(0)
		case <-check.C:
			within(0)
		case <-timer.C:
			due = false
			h, err := w.read()
			if err != nil {
				return err
			}
			tell(h)
		}
	}
}

func drain[T any](ch <-chan T) {
	for range ch { //nolint:revive // only to let the sender end
	}
}

// ours tells whether an interface is not the host's own but made by felix, or the loopback.
func ours(name string) bool {
	return strings.HasPrefix(name, "cali") ||
		slices.Contains([]string{desired.IPIPDevice, desired.VXLANDevice4, desired.VXLANDevice6, "lo"}, name)
}

// read takes a snapshot.
func (w *Watcher) read() (state.Host, error) {
	h := state.Host{Interfaces: map[string]state.Interface{}, NextHops: map[netip.Addr]state.NextHop{}}
	links, err := netlink.LinkList()
	if err != nil {
		return h, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		at := l.Attrs()
		names[at.Index] = at.Name
		if ours(at.Name) {
			continue
		}
		i := state.Interface{Index: at.Index, MTU: at.MTU, Up: at.OperState == netlink.OperUp || at.OperState == netlink.OperUnknown && at.Flags&net.FlagUp != 0}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			continue // the interface went away meanwhile; its event follows
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
				ones, _ := a.Mask.Size()
				i.Addresses = append(i.Addresses, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
		slices.SortFunc(i.Addresses, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		h.Interfaces[at.Name] = i
	}
	w.mu.Lock()
	hops, peers := slices.Clone(w.nextHops), slices.Clone(w.peers)
	w.mu.Unlock()
	for _, hop := range hops {
		h.NextHops[hop] = lookup(hop, names)
	}
	h.Uplinks = uplinks(h, peers, names)
	return h, nil
}

// uplinks are the links by which packets to the peers leave. The kernel is not asked about peers that are in the subnet of
// just one interface: there may be thousands of them.
func uplinks(h state.Host, peers []netip.Addr, names map[int]string) []string {
	found := map[string]struct{}{}
	for _, peer := range peers {
		name, several := "", false
		for n, i := range h.Interfaces {
			if i.Up && slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Contains(peer) }) {
				name, several = n, name != ""
			}
		}
		if name == "" || several {
			name = lookup(peer, names).Link
		}
		if name != "" && !ours(name) {
			found[name] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// lookup asks the kernel for the way to an address: at a gateway on a link for one that is further away. The zero NextHop
// means that there is none.
func lookup(hop netip.Addr, names map[int]string) state.NextHop {
	routes, err := netlink.RouteGet(hop.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST {
		return state.NextHop{}
	}
	at := state.NextHop{Via: hop, Link: names[routes[0].LinkIndex], Metric: uint32(routes[0].Priority)}
	if gateway, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		at.Via = gateway.Unmap()
	}
	return at
}
