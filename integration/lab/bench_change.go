package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// modeChanges is how often a pool's mode is changed between direct and a tunnel, there and back in turns.
const modeChanges = 6

// gapPace is the time between two bytes of the conversation that goes on meanwhile.
const gapPace = time.Millisecond

// changes measures how long clusters of 4 and 20 nodes take to follow a change: of the pool's mode, from the start of the
// user's command until the last node has its last route, and the longest gap in a conversation of two pods meanwhile; and a
// node that joins, from the start of its calico-node until a pod on it was reached from a pod on each other node.
func (b *bench) changes(ctx context.Context) error {
	for _, nodes := range []int{4, 20} {
		if err := b.changesOf(ctx, nodes); err != nil {
			return fmt.Errorf("%d nodes: %w", nodes, err)
		}
	}
	return nil
}

func (b *bench) changesOf(ctx context.Context, nodes int) (err error) {
	t, err := wideTopology(nodes)
	if err != nil {
		return err
	}
	l, err := Up(ctx, Options{
		Name: fmt.Sprintf("bench-%d", nodes), StateDir: filepath.Join(b.dir, fmt.Sprintf("wide-%d", nodes)), BinDir: b.BinDir,
		Topology: t, Attached: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := b.changeModes(ctx, l, t); err != nil {
		return err
	}
	if nodes > 4 {
		return nil
	}
	d, err := nodeAdd(ctx, l, t)
	if err != nil {
		return err
	}
	b.figure("dataplane.nodeadd", d.Seconds(), "s", 0, "")
	return nil
}

// changeModes changes the pool's mode to each tunnel and back to direct, while two pods talk.
func (b *bench) changeModes(ctx context.Context, l *Lab, t Topology) error {
	waiting, cancel := context.WithTimeout(ctx, convergeDeadline)
	err := l.AwaitRoutes(waiting, t, ModeDirect)
	cancel()
	if err != nil {
		return err
	}
	end, err := converse(ctx, l)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("dataplane.modechange%d", len(t.Nodes))
	err = b.toAndFro(ctx, l, t, name, ModeVXLAN)
	if err == nil {
		err = b.toAndFro(ctx, l, t, name+".ipip", ModeIPIP)
	}
	gap, broken := end()
	if err := errors.Join(err, broken); err != nil {
		return err
	}
	b.figure(name+".gap", float64(gap.Microseconds())/1000, "ms", 0, "")
	return nil
}

func (b *bench) toAndFro(ctx context.Context, l *Lab, t Topology, name string, tunnel Mode) error {
	var took []float64
	for i := range modeChanges {
		d, err := modeChange(ctx, l, t, []Mode{tunnel, ModeDirect}[i%2])
		if err != nil {
			return err
		}
		took = append(took, d.Seconds())
	}
	b.figure(name, median(took), "s", 0, "")
	return nil
}

// converse has pod-1 send a byte to pod-2 and wait for it to come back, again and again on one connection, until end is called.
// That tells how long it waited at the longest, or how the connection broke. Both sides go before other programs of the machine,
// which has much to do meanwhile: a processor that is late is no gap in traffic.
func converse(ctx context.Context, l *Lab) (end func() (longest time.Duration, err error), err error) {
	talks, err := connect(ctx, l, 1)
	if err != nil {
		return nil, err
	}
	client, server := int(talks[0].client.Fd()), int(talks[0].server.Fd())
	over := make(chan struct{})
	var longest time.Duration
	var g errgroup.Group
	g.Go(func() error { return onOwnThread(func() error { return answerBytes(server) }) })
	g.Go(func() error {
		err := onOwnThread(func() (err error) { longest, err = longestWait(client, over); return err })
		return errors.Join(err, unix.Shutdown(client, unix.SHUT_WR)) // the end for the other side
	})
	return func() (time.Duration, error) {
		close(over)
		defer hangUp(talks)
		if err := g.Wait(); err != nil {
			return 0, fmt.Errorf("a conversation of two pods: %w", err)
		}
		return longest, nil
	}, nil
}

func longestWait(fd int, over <-chan struct{}) (longest time.Duration, err error) {
	if err := pin(0); err != nil {
		return 0, err
	}
	undisturbed()
	tick := time.NewTicker(gapPace)
	defer tick.Stop()
	b := []byte{1}
	for {
		began := time.Now()
		if err := ping(fd, b); err != nil {
			return 0, err
		}
		longest = max(longest, time.Since(began))
		select {
		case <-over:
			return longest, nil
		case <-tick.C:
		}
	}
}

// wideTopology is a cluster in one subnet with a pod on each node, and a pool without encapsulation.
func wideTopology(nodes int) (Topology, error) {
	var y strings.Builder
	fmt.Fprintln(&y, "subnets: [{name: flat, prefixes: [10.40.0.0/24]}]\nnodes:")
	for i := range nodes {
		fmt.Fprintf(&y, "- {name: node-%d, addresses: [10.40.0.%d]}\n", i, i+10)
	}
	fmt.Fprintln(&y, "pods:")
	for i := range nodes {
		fmt.Fprintf(&y, "- {name: pod-%d, node: node-%d}\n", i, i)
	}
	fmt.Fprintln(&y, "pools: [{cidr: 192.168.0.0/16}]")
	return ParseTopology("a flat cluster", []byte(y.String()))
}

// modeChange changes the pool's mode and returns how long it took until the last route of any node was written.
func modeChange(ctx context.Context, l *Lab, t Topology, mode Mode) (time.Duration, error) {
	w, err := watchRoutes(ctx, l, t)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = l.SetMode(ctx, t.Pools[0].Name, mode)
	if err == nil {
		waiting, cancel := context.WithTimeout(ctx, convergeDeadline)
		err = l.AwaitRoutes(waiting, t, mode)
		cancel()
	}
	_, last, watchErr := w.end()
	if err := errors.Join(err, watchErr); err != nil {
		return 0, fmt.Errorf("change to %s: %w", mode, err)
	}
	if last.Before(began) {
		return 0, fmt.Errorf("change to %s: no route changed", mode)
	}
	return last.Sub(began), nil
}

// kernelWatch hears of each change to what nodes' kernels hold.
type kernelWatch struct {
	sockets []*os.File
	group   errgroup.Group

	mu          sync.Mutex
	first, last time.Time
}

func watchRoutes(ctx context.Context, l *Lab, t Topology) (*kernelWatch, error) {
	w := &kernelWatch{}
	for _, n := range t.Nodes {
		if err := w.listen(ctx, l, n.Name, unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE); err != nil {
			closeAll(w.sockets)
			return nil, err
		}
	}
	w.start()
	return w, nil
}

// listen subscribes to groups of a netlink protocol on a node.
func (w *kernelWatch) listen(ctx context.Context, l *Lab, node string, protocol int, groups ...int) error {
	f, err := l.socket(ctx, node, unix.AF_NETLINK, unix.SOCK_RAW, protocol)
	if err != nil {
		return err
	}
	w.sockets = append(w.sockets, f)
	at := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		at.Groups |= 1 << (g - 1)
	}
	fd, err := rawFD(f)
	if err == nil {
		err = unix.Bind(fd, at)
	}
	if err != nil {
		return fmt.Errorf("watch the kernel of %s: %w", node, err)
	}
	return nil
}

func (w *kernelWatch) start() {
	for _, f := range w.sockets {
		w.group.Go(func() error { return w.follow(f) })
	}
}

func (w *kernelWatch) follow(f *os.File) error {
	b := make([]byte, 64<<10)
	for {
		n, err := f.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, unix.ENOBUFS): // lost messages are changes too
		case err != nil:
			return err
		case !slices.ContainsFunc(messages(b[:n]), isChange):
			continue
		}
		w.mu.Lock()
		w.last = time.Now()
		if w.first.IsZero() {
			w.first = w.last
		}
		w.mu.Unlock()
	}
}

func messages(b []byte) []syscall.NetlinkMessage {
	all, _ := syscall.ParseNetlinkMessage(b) // the kernel's own are well formed
	return all
}

// isChange tells whether somebody did something: what the kernel learns and forgets of its neighbours by itself is nobody's doing.
func isChange(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH {
		return true
	}
	const family, state = 0, 8 // in ndmsg; a permanent entry that is removed has failed
	return len(m.Data) >= unix.SizeofNdMsg && (m.Data[family] == unix.AF_BRIDGE || m.Data[state]&(unix.NUD_PERMANENT|unix.NUD_FAILED) != 0)
}

// end stops and tells when the first and the last change were.
func (w *kernelWatch) end() (first, last time.Time, err error) {
	for _, f := range w.sockets {
		_ = f.SetReadDeadline(time.Now())
	}
	err = w.group.Wait()
	closeAll(w.sockets)
	return w.first, w.last, err
}

// nodeAdd takes the last node out of the cluster, and measures how long it takes to join again with nothing left of it.
func nodeAdd(ctx context.Context, l *Lab, t Topology) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	late, others := t.Nodes[len(t.Nodes)-1], t.Pods[:len(t.Pods)-1]
	if err := remove(ctx, l, t, late.Name); err != nil {
		return 0, fmt.Errorf("take %s out: %w", late.Name, err)
	}
	began := time.Now()
	for _, process := range []string{ProcessStartup, ProcessBird, ProcessFelix, ProcessConfd} {
		if err := l.Start(ctx, late.Name, process); err != nil {
			return 0, err
		}
	}
	pod := Pod{Name: "late", Node: late.Name}
	target, err := eventually(ctx, func() (PodStatus, error) { return l.PodAdd(ctx, pod) })
	if err != nil {
		return 0, err
	}
	ln, err := l.Listen(ctx, pod.Name, netip.AddrPortFrom(target.Addresses[0], 0))
	if err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	at := netip.MustParseAddrPort(ln.Addr().String())
	var g errgroup.Group
	for _, p := range others {
		g.Go(func() error {
			_, err := eventually(ctx, func() (struct{}, error) {
				try, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
				c, err := l.Dial(try, p.id(), at)
				if err == nil {
					_ = c.Close()
				}
				return struct{}{}, err
			})
			return err
		})
	}
	err = g.Wait()
	return time.Since(began), err
}

// remove ends all that a node runs, and has the cluster forget it.
func remove(ctx context.Context, l *Lab, t Topology, node string) error {
	for _, p := range t.Pods {
		if p.Node == node {
			if err := l.PodDel(ctx, p.id()); err != nil {
				return err
			}
		}
	}
	for _, process := range []string{ProcessConfd, ProcessFelix, ProcessBird} {
		if err := l.Kill(ctx, node, process); err != nil {
			return err
		}
	}
	if _, err := l.Run(ctx, node, "sh", "-c", "rm -rf /var/lib/calico/*; ip route flush proto 80"); err != nil {
		return err
	}
	first := t.Nodes[0].Name
	if _, err := l.Run(ctx, first, "calicoctl", "delete", "node", node); err != nil {
		return err
	}
	address := t.Nodes[slices.IndexFunc(t.Nodes, func(n Node) bool { return n.Name == node })].Addresses[0]
	_, err := eventually(ctx, func() (struct{}, error) {
		for _, n := range t.Nodes {
			if n.Name == node {
				continue
			}
			out, err := l.Run(ctx, n.Name, "ip", "route", "show", "root", t.Pools[0].CIDR.String())
			if err == nil && strings.Contains(out, " "+address.String()+" ") {
				err = fmt.Errorf("%s still has routes to it", n.Name)
			}
			if err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	return err
}

// eventually repeats until it works, or ctx ends.
func eventually[T any](ctx context.Context, try func() (T, error)) (T, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		v, err := try()
		if err == nil {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return v, fmt.Errorf("%w; seen last: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
