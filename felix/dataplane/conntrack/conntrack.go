// Package conntrack reads, marks and deletes entries of the kernel's connection tracking, over ctnetlink
// (linux/netfilter/nfnetlink_conntrack.h). It knows nothing of policy: felix/judge says which connections are forbidden.
//
// What is relied on was tried with real packets (conntrack_lab_test.go):
//
//   - An entry's mark is the connection's, in both directions. A packet that a later rule drops because of it has already
//     refreshed the entry, so a marked entry lives as long as either end goes on sending, and no packet of the connection can
//     begin a new one (nf_conntrack_tcp_loose lets TCP do that from the middle, in either direction) that policy may allow the
//     other way round.
//   - When both ends are silent for longer than the entry lives (TCP established 5 days; 300 s while something is not
//     acknowledged, 120 s after a FIN, 10 s after a RST; UDP 120 s), it expires, and the mark with it. A packet that comes
//     afterwards begins a new connection, which policy judges in the direction of that packet: it passes only if policy allows
//     it as the first packet of one.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Tuple is one direction of a connection. Ports are 0 for protocols without.
type Tuple struct {
	Source, Destination         netip.Addr
	Protocol                    uint8
	SourcePort, DestinationPort uint16
	ICMPType, ICMPCode          uint8 // for ICMP and ICMPv6
}

// Flow is one tracked connection.
type Flow struct {
	// Original is the direction of the first packet, as it came in; Reply is how answers come in. So the connection's
	// destination after translation is Reply.Source.
	Original, Reply Tuple
	Mark            uint32
	Expected        bool // it was let in because another announced it (FTP data)
	// PickedUp tells that a TCP connection was there before it was tracked. Original is the direction of the first packet that was
	// seen then, whoever had opened it.
	PickedUp bool

	tuple []byte // Original as the kernel has it
	id    []byte
}

// Select says which connections are read. The zero value is all.
type Select struct {
	// Source, if valid, is the original source; Destination the destination after translation. One of them at most is given.
	Source, Destination netip.Addr
	// Marked, if not 0, is bits of the mark of which all must be set.
	Marked uint32
}

func (s Select) takes(f *Flow) bool {
	return (!s.Source.IsValid() || s.Source == f.Original.Source) &&
		(!s.Destination.IsValid() || s.Destination == f.Reply.Source) && f.Mark&s.Marked == s.Marked
}

// Table is the connection tracking of a network namespace. Its methods may be called from several goroutines.
type Table struct {
	route *netlink.Handle

	mu   sync.Mutex // guards conn
	conn *nlsock.Conn
}

// Open opens the table of the caller's namespace.
func Open() (*Table, error) {
	conn, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_INET_DIAG)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	return &Table{conn: conn, route: route}, nil
}

// Close releases the sockets.
func (t *Table) Close() error {
	t.route.Close()
	return t.conn.Close()
}

// Flows returns the connections that pick chooses among those selected. The kernel goes through its whole table in any
// case, some 20 ns an entry; only what is selected is copied out of it (by kernels since 5.8). pick must not keep its
// argument. A kernel without connection tracking has none.
func (t *Table) Flows(ctx context.Context, s Select, pick func(*Flow) bool) ([]Flow, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Flow
	var f Flow
	err := t.conn.Dump(ctx, s.request(), func() { out = nil }, func(_ uint16, body []byte) error {
		if f.read(body) && s.takes(&f) && pick(&f) {
			out = append(out, f.clone())
		}
		return nil
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) && s == (Select{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read connections: %w", err)
	}
	return out, nil
}

// Mark sets the bits of mask of the connections' marks to those of mark; other bits stay. What is gone meanwhile is no error.
func (t *Table) Mark(ctx context.Context, flows []Flow, mark, mask uint32) error {
	return t.change(ctx, "mark", flows, func(f *Flow) nlsock.Message { return f.markMessage(mark, mask) })
}

// Delete ends the tracking of connections: their next packet begins a new one. What is gone already is no error.
func (t *Table) Delete(ctx context.Context, flows []Flow) error {
	return t.change(ctx, "delete", flows, (*Flow).deleteMessage)
}

func (t *Table) change(ctx context.Context, what string, flows []Flow, message func(*Flow) nlsock.Message) error {
	if len(flows) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	msgs := make([]nlsock.Message, len(flows))
	for i := range flows {
		msgs[i] = message(&flows[i])
	}
	results, err := t.conn.Send(ctx, msgs)
	if err != nil {
		return fmt.Errorf("%s %d connections: %w", what, len(flows), err)
	}
	var errs []error
	for i, err := range results {
		// EBUSY: the kernel is just removing it.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("%s the connection %s: %w", what, &flows[i], err))
		}
	}
	return errors.Join(errs...)
}

// String is "proto 6 10.0.0.1:4000 > 10.96.0.1:80 (10.0.0.2:8080)"; what is in parentheses is where it was led to.
func (f *Flow) String() string {
	o := f.Original
	text := fmt.Sprintf("proto %d %s > %s", o.Protocol, netip.AddrPortFrom(o.Source, o.SourcePort), netip.AddrPortFrom(o.Destination, o.DestinationPort))
	if f.Reply.Source != o.Destination || f.Reply.SourcePort != o.DestinationPort {
		text += " (" + netip.AddrPortFrom(f.Reply.Source, f.Reply.SourcePort).String() + ")"
	}
	return text
}
