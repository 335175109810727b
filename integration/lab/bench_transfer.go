package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Both ends of what is measured are sockets of this process, read and written by blocking system calls on threads of their
// own, so that no scheduler but the kernel's is measured. Rates are of the receiver.

// quiet is how long a peer may say nothing before a run is given up.
const quiet = 5 * time.Second

// talk is an open TCP connection from pod-1 to pod-2 of a lab.
type talk struct{ client, server *os.File }

func (t talk) close() { closeAll([]*os.File{t.client, t.server}) }

// connect opens n connections from pod-1 to pod-2.
func connect(ctx context.Context, l *Lab, n int) (talks []talk, err error) {
	defer func() {
		if err != nil {
			hangUp(talks)
			talks = nil
		}
	}()
	target, err := addressOf(ctx, l, "pod-2")
	if err != nil {
		return nil, err
	}
	ln, err := l.Listen(ctx, "pod-2", netip.AddrPortFrom(target, 0))
	if err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	for range n {
		client, err := l.Dial(ctx, "pod-1", ln.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			return talks, err
		}
		defer func() { _ = client.Close() }()
		server, err := ln.AcceptTCP()
		if err != nil {
			return talks, err
		}
		defer func() { _ = server.Close() }()
		var files []*os.File
		for _, c := range []*net.TCPConn{client, server} {
			f, err := plain(c)
			if err != nil {
				closeAll(files)
				return talks, err
			}
			files = append(files, f)
		}
		talks = append(talks, talk{client: files[0], server: files[1]})
	}
	return talks, nil
}

func hangUp(talks []talk) {
	for _, t := range talks {
		t.close()
	}
}

// addressOf is a pod's first address.
func addressOf(ctx context.Context, l *Lab, pod string) (netip.Addr, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, p := range st.Pods {
		if p.ID == pod && len(p.Addresses) > 0 {
			return p.Addresses[0], nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s in lab %s has no address", pod, l.name)
}

// plain is a connection's socket, blocking, without delay, and with a limit on how long it waits.
func plain(c *net.TCPConn) (*os.File, error) {
	if err := c.SetNoDelay(true); err != nil {
		return nil, err
	}
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	if err := patient(blocking(f), quiet); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// patient limits how long a read waits.
func patient(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

// blocking returns the file's number after setting it to block.
func blocking(f *os.File) int {
	fd := int(f.Fd())
	_ = unix.SetNonblock(fd, false)
	return fd
}

// pin keeps the calling thread on one of the processors it may use, counted from the first and again from the start. A
// thread that wanders measures the scheduler.
func pin(n int) error {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	n %= all.Count()
	for cpu := 0; ; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if n == 0 {
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
		n--
	}
}

// undisturbed keeps other programs of the machine from interrupting the calling thread, if it may. It is for short windows.
func undisturbed() {
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
}

// uninterrupted repeats a call that a signal broke off, as those of Go's scheduler do.
func uninterrupted(call func(fd int, b []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
