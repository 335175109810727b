package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// bgpRounds is how often each number of routes is announced and withdrawn, in turns by us and by BIRD.
const bgpRounds = 3

// The machines of the lab for routes to the kernel: ours, BIRD's, and one that both peer with.
var (
	bgpOurs   = netip.MustParseAddr("10.50.0.10")
	bgpTheirs = netip.MustParseAddr("10.50.0.11")
	bgpSource = netip.MustParseAddr("10.50.0.12")
)

const bgpKernelTopology = `
subnets: [{name: flat, prefixes: [10.50.0.0/24]}]
pools: [{cidr: 192.168.0.0/16}]
nodes:
- {name: node, addresses: [10.50.0.10]}
- {name: bird2, addresses: [10.50.0.11], processes: []}
- {name: source, addresses: [10.50.0.12], processes: []}
`

// bgpMates are more nodes, which have sessions of the mesh with the one that is measured.
const bgpMates = `
- {name: mate-1, addresses: [10.50.0.21]}
- {name: mate-2, addresses: [10.50.0.22]}
- {name: mate-3, addresses: [10.50.0.23]}
`

const bgpKernelPeer = `
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: source}
spec: {node: node, peerIP: 10.50.0.12, asNumber: 64512}
`

const bgpKernelBird2 = `
router id 10.50.0.11;
protocol device {}
protocol direct { ipv4; interface "*"; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
protocol bgp peer1 {
	local as 64512;
	neighbor 10.50.0.12 as 64512;
	connect delay time 1;
	connect retry time 1;
	error wait time 1, 2;
	ipv4 { import all; export none; };
}
`

// receiver is a side of the measurement: who gets the routes and puts them into its kernel.
type receiver struct {
	where string
	pids  []int
	peer  *bgpPeer
	watch *fibWatch
}

// bgpKernel measures the time from the first message of a peer on until all its routes are in the receiver's kernel, and a
// packet to the last of them arrives, and back until none is; for us through bird, felix and netlink, for BIRD through its
// kernel protocol.
func (b *bench) bgpKernel(ctx context.Context) error {
	return b.bgpReceivers(ctx, "bgp", bgpKernelTopology, func(l *Lab, ours, theirs *receiver) error {
		for _, size := range []struct {
			name   string
			routes int
		}{{"1k", 1000}, {"10k", 10000}, {"100k", 100000}} {
			k, err := bgpKernelOf(ctx, l, size.routes, ours, theirs)
			if err != nil {
				return fmt.Errorf("%d routes: %w", size.routes, err)
			}
			name := "bgp.kernel" + size.name
			b.beside(name, median(k.took[0]), median(k.took[1]), "ms")
			b.beside(name+".first", k.took[0][0], k.took[1][0], "ms")
			b.beside(name+".cpu", median(k.cpu[0]), median(k.cpu[1]), "s")
			b.beside(name+".rss", quantile(k.rss[0], 1), quantile(k.rss[1], 1), "MiB")
			b.beside(name+".withdraw", median(k.gone[0]), median(k.gone[1]), "ms")
		}
		return nil
	})
}

// bgpWithdraw has a hundred thousand routes withdrawn on a node of a mesh, whose others never are told them.
func (b *bench) bgpWithdraw(ctx context.Context) error {
	return b.bgpReceivers(ctx, "withdraw", bgpKernelTopology+bgpMates, func(l *Lab, ours, theirs *receiver) error {
		k, err := bgpKernelOf(ctx, l, 100000, ours, theirs)
		if err != nil {
			return fmt.Errorf("on a node of a mesh: %w", err)
		}
		b.beside("bgp.withdraw100k", median(k.gone[0]), median(k.gone[1]), "ms")
		b.beside("bgp.withdraw100k.cpu", median(k.goneCPU[0]), median(k.goneCPU[1]), "s")
		return nil
	})
}

// bgpReceivers has both sides up, each in a session with one peer, for measure.
func (b *bench) bgpReceivers(ctx context.Context, name, topology string, measure func(l *Lab, ours, theirs *receiver) error) (err error) {
	t, err := ParseTopology("routes to the kernel", []byte(topology))
	if err != nil {
		return err
	}
	l, err := Up(ctx, Options{Name: "bench-" + name, StateDir: filepath.Join(b.dir, name), BinDir: b.BinDir, Topology: t, Attached: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	listener, err := l.Listen(ctx, "source", netip.AddrPortFrom(bgpSource, 179))
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	pid, stop, err := startBird2(ctx, l, "bird2", "", bgpKernelBird2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := os.WriteFile(filepath.Join(nodeDir(l.dir, "node"), "run", "peer.yaml"), []byte(bgpKernelPeer), 0o600); err != nil {
		return err
	}
	if _, err := l.Run(ctx, "node", "calicoctl", "apply", "-f", "/run/peer.yaml"); err != nil {
		return err
	}
	ourPIDs, err := l.processIDs(ctx, "node", ProcessBird, ProcessFelix, ProcessConfd)
	if err != nil {
		return err
	}
	ours, theirs := &receiver{where: "node", pids: ourPIDs}, &receiver{where: "bird2", pids: []int{pid}}
	peers, err := acceptPeers(listener, map[netip.Addr]*receiver{bgpOurs: ours, bgpTheirs: theirs})
	defer func() {
		for _, p := range peers {
			p.close()
		}
	}()
	if err != nil {
		return err
	}
	if _, err := l.Run(ctx, "source", "ip", "route", "add", "local", "100.0.0.0/7", "dev", "lo"); err != nil {
		return err
	}
	return measure(l, ours, theirs)
}

// acceptPeers opens a session with each receiver.
func acceptPeers(listener *net.TCPListener, by map[netip.Addr]*receiver) (peers []*bgpPeer, err error) {
	var last error // of a session that did not open
	if err := listener.SetDeadline(time.Now().Add(bgpDeadline)); err != nil {
		return nil, err
	}
	for len(peers) < len(by) {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return peers, fmt.Errorf("waiting for the receivers to connect: %w", errors.Join(err, last))
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		r := by[from]
		if r == nil || r.peer != nil {
			_ = conn.Close()
			continue
		}
		p, err := openBGP(conn, bgpAS, bgpSource, nil)
		if err != nil {
			last = fmt.Errorf("%s: %w", from, err)
			_ = conn.Close() // it tries again
			continue
		}
		r.peer, peers = p, append(peers, p)
	}
	return peers, nil
}

// kernelFigures are of each round, ours and theirs.
type kernelFigures struct {
	took, gone   [2][]float64 // ms until the kernel has all routes, and none
	cpu, goneCPU [2][]float64 // s meanwhile
	rss          [2][]float64 // MiB when all are there
}

// bgpKernelOf announces that many routes to each side, and withdraws them.
func bgpKernelOf(ctx context.Context, l *Lab, n int, sides ...*receiver) (k kernelFigures, err error) {
	prefixes := bgpPrefixes(n)
	announce, withdraw := bgpAnnouncement(prefixes, bgpSource), bgpWithdrawal(prefixes)
	sink, err := l.socket(ctx, "source", unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return k, err
	}
	defer sink.Close()
	port, err := bindAnyPort(sink, bgpSource)
	if err != nil {
		return k, err
	}
	target := netip.AddrPortFrom(prefixes[n-1].Addr().Next(), port)
	for range bgpRounds {
		for i, r := range sides {
			if r.watch, err = watchFIB(ctx, l, r.where, n); err != nil {
				return k, err
			}
			before, err := costOf(ctx, l, r.where, r.pids...)
			if err == nil {
				var began time.Time
				if began, err = r.tell(announce, n); err == nil {
					err = r.reaches(ctx, l, sink, target)
					k.took[i] = append(k.took[i], ms(time.Since(began)))
				}
			}
			if err == nil {
				var after cost
				after, err = costOf(ctx, l, r.where, r.pids...)
				k.cpu[i], k.rss[i] = append(k.cpu[i], after.since(before).cpu), append(k.rss[i], after.rss)
				before = after
			}
			if err == nil {
				var began time.Time
				began, err = r.tell(withdraw, 0)
				k.gone[i] = append(k.gone[i], ms(time.Since(began)))
			}
			if err == nil {
				var after cost
				after, err = costOf(ctx, l, r.where, r.pids...)
				k.goneCPU[i] = append(k.goneCPU[i], after.since(before).cpu)
			}
			if err := errors.Join(err, r.watch.file.Close()); err != nil {
				return k, fmt.Errorf("%s: %w", r.where, err)
			}
		}
	}
	return k, nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// tell sends messages and returns when the kernel has that many of the routes, with the time at which sending began.
func (r *receiver) tell(messages []byte, routes int) (time.Time, error) {
	began := time.Now()
	sent := make(chan error, 1)
	go func() { sent <- r.peer.write(messages) }()
	err := r.watch.await(routes, began.Add(bgpDeadline))
	return began, errors.Join(err, <-sent)
}

// reaches sends packets until one arrives.
func (r *receiver) reaches(ctx context.Context, l *Lab, sink *os.File, to netip.AddrPort) error {
	from, err := l.socket(ctx, r.where, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := rawFD(from)
	if err != nil {
		return err
	}
	buf := make([]byte, 16)
	for deadline := time.Now().Add(bgpDeadline); time.Now().Before(deadline); {
		if err := unix.Sendto(fd, []byte(r.where), 0, sockaddr(to)); err != nil && !errors.Is(err, unix.ENETUNREACH) {
			return err
		}
		if err := sink.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			return err
		}
		for {
			n, err := sink.Read(buf)
			if err == nil && string(buf[:n]) == r.where {
				return nil
			}
			if err != nil {
				break
			}
		}
	}
	return fmt.Errorf("no packet to %s arrived", to)
}

// fibWatch follows which of the measured routes a machine's kernel has.
type fibWatch struct {
	file *os.File
	fd   int
	has  []bool // by number of the prefix, see bgpPrefixes
	n    int
	buf  []byte
}

// watchFIB opens a watch while none of the routes are there.
func watchFIB(ctx context.Context, l *Lab, where string, n int) (*fibWatch, error) {
	f, err := l.socket(ctx, where, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	fd, err := rawFD(f)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 512<<20)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_IPV4_ROUTE - 1)})
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watch the routes of %s: %w", where, err)
	}
	return &fibWatch{file: f, fd: fd, has: make([]bool, n), buf: make([]byte, 64<<10)}, nil
}

// await returns when the kernel has that many of the routes. It looks every half millisecond, so as not to take part in the
// work of a processor that is busy with what is measured.
func (w *fibWatch) await(routes int, deadline time.Time) error {
	for w.n != routes {
		size, _, err := unix.Recvfrom(w.fd, w.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if time.Now().After(deadline) {
				return fmt.Errorf("the kernel has %d routes, %d are due", w.n, routes)
			}
			time.Sleep(500 * time.Microsecond)
		case err != nil:
			return fmt.Errorf("watching routes: %w", err)
		default:
			w.take(w.buf[:size])
		}
	}
	return nil
}

// look takes in for a while what the kernel says.
func (w *fibWatch) look(d time.Duration) error {
	for deadline := time.Now().Add(d); time.Now().Before(deadline); {
		size, _, err := unix.Recvfrom(w.fd, w.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			time.Sleep(10 * time.Millisecond)
		case err != nil:
			return fmt.Errorf("watching routes: %w", err)
		default:
			w.take(w.buf[:size])
		}
	}
	return nil
}

// take reads the notifications of one datagram.
func (w *fibWatch) take(b []byte) {
	for len(b) >= unix.SizeofNlMsghdr+unix.SizeofRtMsg {
		size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return
		}
		if body := b[unix.SizeofNlMsghdr:size]; body[0] == unix.AF_INET && body[1] == 24 {
			w.note(body[unix.SizeofRtMsg:], kind == unix.RTM_NEWROUTE)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}

func (w *fibWatch) note(attributes []byte, there bool) {
	for b := attributes; len(b) >= 4; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.RTA_DST && size == 8 {
			if i := (int(b[4])-100)<<16 | int(b[5])<<8 | int(b[6]); i >= 0 && i < len(w.has) && w.has[i] != there {
				w.has[i] = there
				if there {
					w.n++
				} else {
					w.n--
				}
			}
			return
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}
