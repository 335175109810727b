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
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// modeChanges is how often a pool's mode is changed, there and back in turns.
const modeChanges = 6

// changes measures how long clusters of 4 and 20 nodes take to follow a change: of the pool's mode, from the start of the
// user's command until the last node has its last route; and a node that joins, from the start of its calico-node until a
// pod on it was reached from a pod on each other node.
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
	var took []float64
	for i := range modeChanges {
		mode := []Mode{ModeVXLAN, ModeDirect}[i%2]
		d, err := modeChange(ctx, l, t, mode)
		if err != nil {
			return err
		}
		took = append(took, d.Seconds())
	}
	b.figure(fmt.Sprintf("dataplane.modechange%d", nodes), median(took), "s", 0, "")
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
	last, watchErr := w.end()
	if err := errors.Join(err, watchErr); err != nil {
		return 0, fmt.Errorf("change to %s: %w", mode, err)
	}
	if last.Before(began) {
		return 0, fmt.Errorf("change to %s: no route changed", mode)
	}
	return last.Sub(began), nil
}

// routeWatch hears of each change to a node's routes.
type routeWatch struct {
	sockets []*os.File
	group   errgroup.Group

	mu   sync.Mutex
	last time.Time
}

func watchRoutes(ctx context.Context, l *Lab, t Topology) (*routeWatch, error) {
	w := &routeWatch{}
	for _, n := range t.Nodes {
		f, err := l.socket(ctx, n.Name, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
		if err != nil {
			closeAll(w.sockets)
			return nil, err
		}
		w.sockets = append(w.sockets, f)
		fd, err := rawFD(f)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_IPV4_ROUTE - 1)})
		}
		if err != nil {
			closeAll(w.sockets)
			return nil, fmt.Errorf("watch the routes of %s: %w", n.Name, err)
		}
	}
	for _, f := range w.sockets {
		w.group.Go(func() error { return w.follow(f) })
	}
	return w, nil
}

func (w *routeWatch) follow(f *os.File) error {
	b := make([]byte, 64<<10)
	for {
		_, err := f.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // lost messages are changes too
			return err
		}
		w.mu.Lock()
		w.last = time.Now()
		w.mu.Unlock()
	}
}

// end stops and tells when the last change was.
func (w *routeWatch) end() (time.Time, error) {
	for _, f := range w.sockets {
		_ = f.SetReadDeadline(time.Now())
	}
	err := w.group.Wait()
	closeAll(w.sockets)
	return w.last, err
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
