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
	"github.com/muslin-net/muslin/internal/dump"
)

// settle is how long changes are collected before the network is read again: interfaces change in bursts.
const settle = 20 * time.Millisecond

// audit is how often the network is read although nothing was heard.
const audit = 30 * time.Second

// Watcher reads the node's network and tells when it changed.
type Watcher struct {
	log *slog.Logger

	mu       sync.Mutex   // guards nextHops and peers
	nextHops []netip.Addr // sorted
	peers    []netip.Addr // sorted
	poke     chan struct{}
}

// New returns a watcher that leaves workloads' and tunnels' interfaces out.
func New(log *slog.Logger) *Watcher { return &Watcher{log: log, poke: make(chan struct{}, 1)} }

// Resolve names the next hops whose reachability is to be watched. It does not block.
func (w *Watcher) Resolve(hops []netip.Addr) {
	w.mu.Lock()
	w.nextHops = slices.SortedFunc(slices.Values(hops), netip.Addr.Compare)
	w.mu.Unlock()
	w.again()
}

// Peers names the addresses of the other nodes, sorted: the links by which packets to them leave are the node's uplinks. moved
// says that felix changed a route to one. It does not block.
func (w *Watcher) Peers(addrs []netip.Addr, moved bool) {
	w.mu.Lock()
	same := slices.Equal(w.peers, addrs)
	w.peers = slices.Clone(addrs)
	w.mu.Unlock()
	if moved || !same {
		w.again()
	}
}

// concerns tells whether a route to somewhere is of those that are asked for: that to a pod is of none as a rule, and comes and goes
// with it. An invalid destination is an unknown one.
func (w *Watcher) concerns(dst netip.Prefix) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !dst.IsValid() || leads(dst, w.nextHops) || leads(dst, w.peers)
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
	stop, err := subscribeToRoutes(func(dst netip.Prefix) {
		if !w.concerns(dst) {
			return
		}
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
		case u, ok := <-addrs:
			if !ok {
				return errors.New("subscription to addresses ended")
			}
			if !u.LinkAddress.IP.IsLinkLocalUnicast() { // as each pod's interface gets one
				within(settle)
			}
		case <-routes:
			within(settle)
		case <-w.poke:
			within(0)
		case <-check.C:
			within(0)
		case <-timer.C:
			due = false
			h, err := w.read()
			switch {
			case errors.Is(err, netlink.ErrDumpInterrupted):
				within(settle) // what is told is all there is, or nothing
			case err != nil:
				return err
			default:
				tell(h)
			}
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
		slices.Contains([]string{desired.IPIPDevice, desired.VXLANDevice4, desired.VXLANDevice6, desired.Loopback}, name)
}

// read takes a snapshot.
func (w *Watcher) read() (state.Host, error) {
	h := state.Host{Interfaces: map[string]state.Interface{}, NextHops: map[netip.Addr]state.NextHop{}}
	links, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return h, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := addresses()
	if err != nil {
		return h, fmt.Errorf("list addresses: %w", err)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return h, fmt.Errorf("ask for routes: %w", err)
	}
	defer handle.Close()
	ask := routes{Handle: handle, names: map[int]string{}}
	for _, l := range links {
		at := l.Attrs()
		ask.names[at.Index] = at.Name
		if ours(at.Name) && at.Name != desired.Loopback {
			continue
		}
		if at.Name == desired.Loopback {
			for _, a := range addrs[at.Index] {
				h.Loopback = append(h.Loopback, a.Addr())
			}
			continue
		}
		h.Interfaces[at.Name] = state.Interface{
			Index: at.Index, MTU: at.MTU, Addresses: addrs[at.Index],
			Up: at.OperState == netlink.OperUp || at.OperState == netlink.OperUnknown && at.Flags&net.FlagUp != 0,
		}
	}
	w.mu.Lock()
	hops, peers := slices.Clone(w.nextHops), slices.Clone(w.peers)
	w.mu.Unlock()
	for _, hop := range hops {
		h.NextHops[hop] = ask.lookup(hop)
	}
	h.Uplinks, h.Ways = uplinks(peers, ask)
	return h, nil
}

// addresses are those that hosts elsewhere may know an interface by, sorted, by the interface's index.
func addresses() (map[int][]netip.Prefix, error) {
	list, err := dump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	out := map[int][]netip.Prefix{}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLinkLocalUnicast() && !ip.Unmap().IsLoopback() {
			ones, _ := a.Mask.Size()
			out[a.LinkIndex] = append(out[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	for _, all := range out {
		slices.SortFunc(all, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	}
	return out, err
}

// uplinks are the links by which packets to the peers leave, and, if there are several, by which those to each peer do.
func uplinks(peers []netip.Addr, ask routes) (all []string, each map[netip.Addr]string) {
	found, each := map[string]struct{}{}, map[netip.Addr]string{}
	for _, peer := range peers {
		for _, name := range ask.links(peer) {
			if name != "" && !ours(name) {
				found[name] = struct{}{}
				if each[peer] == "" {
					each[peer] = name
				}
			}
		}
	}
	if len(found) < 2 {
		each = nil
	}
	return slices.Sorted(maps.Keys(found)), each
}

// routes asks the kernel for ways to addresses: by one socket, since there may be thousands of them.
type routes struct {
	*netlink.Handle
	names map[int]string // of interfaces
}

// links are those of the route to an address, the first one that by which the kernel sends a packet now. With several, that
// says nothing of the others.
func (r routes) links(peer netip.Addr) []string {
	found, err := r.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	switch {
	case err != nil || len(found) == 0 || found[0].Type != unix.RTN_UNICAST:
		return nil
	case len(found[0].MultiPath) == 0:
		return []string{r.names[found[0].LinkIndex]}
	}
	out := []string{r.lookup(peer).Link}
	for _, hop := range found[0].MultiPath {
		out = append(out, r.names[hop.LinkIndex])
	}
	return out
}

// lookup asks for the way to an address: at a gateway on a link for one that is further away. The zero NextHop means that there
// is none.
func (r routes) lookup(hop netip.Addr) state.NextHop {
	found, err := r.RouteGet(hop.AsSlice())
	if err != nil || len(found) == 0 || found[0].Type != unix.RTN_UNICAST {
		return state.NextHop{}
	}
	at := state.NextHop{Via: hop, Link: r.names[found[0].LinkIndex], Metric: uint32(found[0].Priority)}
	if gateway, ok := netip.AddrFromSlice(found[0].Gw); ok {
		at.Via = gateway.Unmap()
	}
	return at
}
