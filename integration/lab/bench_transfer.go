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

// transfer connects pod-1 to pod-2 of a lab and measures on the connection. Both ends are sockets of this process, read
// and written by blocking system calls on threads of their own, so that no scheduler but the kernel's is measured.
func transfer(ctx context.Context, l *Lab, measure func(client, server int, d time.Duration) (float64, error)) (float64, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return 0, err
	}
	var target netip.Addr
	for _, p := range st.Pods {
		if p.ID == "pod-2" && len(p.Addresses) > 0 {
			target = p.Addresses[0]
		}
	}
	ln, err := l.Listen(ctx, "pod-2", netip.AddrPortFrom(target, 0))
	if err != nil {
		return 0, err
	}
	defer func() { _ = ln.Close() }()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	client, err := l.Dial(ctx, "pod-1", ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return 0, err
	}
	defer func() { _ = client.Close() }()
	server, err := ln.AcceptTCP()
	if err != nil {
		return 0, err
	}
	defer func() { _ = server.Close() }()
	var fds [2]int
	for i, c := range []*net.TCPConn{client, server} {
		if err := c.SetNoDelay(true); err != nil {
			return 0, err
		}
		f, err := c.File()
		if err != nil {
			return 0, err
		}
		defer f.Close()
		fds[i] = blocking(f)
		// A peer that is lost must not hang the run.
		if err := unix.SetsockoptTimeval(fds[i], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return 0, err
		}
	}
	return measure(fds[0], fds[1], benchRound)
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

// uninterrupted repeats a call that a signal broke off, as those of Go's scheduler do.
func uninterrupted(call func(fd int, b []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// roundTrip returns the mean time in microseconds of sending a byte and getting it back. Both ends share a processor:
// what it takes to wake another one would drown what a packet takes.
func roundTrip(client, server int, d time.Duration) (float64, error) {
	served := make(chan error, 1)
	go func() {
		served <- onOwnThread(func() error {
			if err := pin(0); err != nil {
				return err
			}
			b := make([]byte, 1)
			for {
				n, err := uninterrupted(unix.Read, server, b)
				if n == 0 || err != nil {
					return err
				}
				if _, err := uninterrupted(unix.Write, server, b); err != nil {
					return err
				}
			}
		})
	}()
	var mean float64
	err := onOwnThread(func() error {
		if err := pin(0); err != nil {
			return err
		}
		b := []byte{1}
		count, began := 0, time.Now()
		for time.Since(began) < d {
			if _, err := uninterrupted(unix.Write, client, b); err != nil {
				return err
			}
			if n, err := uninterrupted(unix.Read, client, b); n != 1 || err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
			count++
		}
		mean = float64(time.Since(began).Microseconds()) / float64(count)
		return nil
	})
	_ = unix.Shutdown(client, unix.SHUT_WR)
	return mean, errors.Join(err, <-served)
}

// throughput returns what one connection carries, in Gbit/s.
func throughput(client, server int, d time.Duration) (float64, error) {
	sent := make(chan error, 1)
	began := time.Now()
	go func() {
		sent <- onOwnThread(func() error {
			if err := pin(1); err != nil {
				return err
			}
			b := make([]byte, 128<<10)
			for time.Since(began) < d {
				if _, err := uninterrupted(unix.Write, client, b); err != nil {
					return err
				}
			}
			return unix.Shutdown(client, unix.SHUT_WR)
		})
	}()
	var rate float64
	err := onOwnThread(func() error {
		if err := pin(0); err != nil {
			return err
		}
		b := make([]byte, 128<<10)
		total := 0
		for {
			n, err := uninterrupted(unix.Read, server, b)
			if err != nil {
				return err
			}
			if n == 0 {
				rate = float64(total) * 8 / time.Since(began).Seconds() / 1e9
				return nil
			}
			total += n
		}
	})
	return rate, errors.Join(err, <-sent)
}
