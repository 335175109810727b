package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Round trips are measured in short windows, in turns, on connections that stay open: what else the machine does then meets
// both sides alike. The answering side waits on the same processor: what it takes to wake another one would drown what a
// packet takes.
const (
	rttWindows = 150
	rttWindow  = 10 * time.Millisecond
)

// roundTrips returns the time in microseconds of sending a byte and getting it back, for each lab and window.
func roundTrips(ctx context.Context, labs ...*Lab) ([][]float64, error) {
	var talks []talk
	for _, l := range labs {
		opened, err := connect(ctx, l, 1)
		if err != nil {
			hangUp(talks)
			return nil, err
		}
		talks = append(talks, opened...)
	}
	defer hangUp(talks)
	out := make([][]float64, len(talks))
	var g errgroup.Group
	for _, t := range talks {
		fd := int(t.server.Fd())
		if err := patient(blocking(t.server), time.Minute); err != nil { // it waits while the others are measured
			return nil, err
		}
		g.Go(func() error { return onOwnThread(func() error { return answerBytes(fd) }) })
	}
	err := onOwnThread(func() error {
		if err := pin(0); err != nil {
			return err
		}
		undisturbed()
		for window := range rttWindows + 2 {
			for i, t := range talks {
				us, err := pingPong(int(t.client.Fd()), rttWindow)
				if err != nil {
					return err
				}
				if window >= 2 { // the first ones warm up
					out[i] = append(out[i], us)
				}
			}
		}
		return nil
	})
	for _, t := range talks {
		_ = unix.Shutdown(int(t.client.Fd()), unix.SHUT_WR)
	}
	return out, errors.Join(err, g.Wait())
}

// answerBytes sends each byte back until the peer has nothing more to say.
func answerBytes(fd int) error {
	if err := pin(0); err != nil {
		return err
	}
	undisturbed()
	b := make([]byte, 1)
	for {
		n, err := uninterrupted(unix.Read, fd, b)
		if n == 0 || err != nil {
			return err
		}
		if _, err := uninterrupted(unix.Write, fd, b); err != nil {
			return err
		}
	}
}

func pingPong(fd int, d time.Duration) (us float64, err error) {
	b := []byte{1}
	count, began := 0, time.Now()
	for time.Since(began) < d {
		if err := ping(fd, b); err != nil {
			return 0, err
		}
		count++
	}
	return float64(time.Since(began).Nanoseconds()) / 1000 / float64(count), nil
}

// ping sends the one byte of b and waits for it to come back.
func ping(fd int, b []byte) error {
	if _, err := uninterrupted(unix.Write, fd, b); err != nil {
		return err
	}
	if n, err := uninterrupted(unix.Read, fd, b); n != 1 || err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

// Each window of a rate is on fresh connections.
const rateWindow = 150 * time.Millisecond

// throughput returns a measure of what so many connections at once carry, in Gbit/s. One has a processor for each end.
func throughput(flows int) func(context.Context, *Lab) (float64, error) {
	place := func(n int) error {
		if flows > 1 {
			return nil
		}
		return pin(n)
	}
	return func(ctx context.Context, l *Lab) (float64, error) {
		talks, err := connect(ctx, l, flows)
		if err != nil {
			return 0, err
		}
		defer hangUp(talks)
		var g errgroup.Group
		totals := make([]int, flows)
		began := time.Now()
		for i, t := range talks {
			g.Go(func() error { return onOwnThread(func() error { return send(t, place, began) }) })
			g.Go(func() error {
				return onOwnThread(func() (err error) { totals[i], err = receive(t, place); return err })
			})
		}
		err = g.Wait()
		took, sum := time.Since(began), 0
		for _, n := range totals {
			sum += n
		}
		return float64(sum) * 8 / took.Seconds() / 1e9, err
	}
}

func send(t talk, place func(int) error, began time.Time) error {
	if err := place(1); err != nil {
		return err
	}
	fd, b := int(t.client.Fd()), make([]byte, 128<<10)
	for time.Since(began) < rateWindow {
		if _, err := uninterrupted(unix.Write, fd, b); err != nil {
			return err
		}
	}
	return unix.Shutdown(fd, unix.SHUT_WR)
}

func receive(t talk, place func(int) error) (total int, err error) {
	if err := place(0); err != nil {
		return 0, err
	}
	fd, b := int(t.server.Fd()), make([]byte, 128<<10)
	for {
		n, err := uninterrupted(unix.Read, fd, b)
		if n == 0 || err != nil {
			return total, err
		}
		total += n
	}
}

// datagram is how many bytes of payload a small packet carries.
const datagram = 64

// smallPackets returns how many thousand UDP packets of 64 bytes a second come through from pod-1 to pod-2, sent as fast as
// one thread can: the packet's way is on the sender's processor, the reader has the other.
func smallPackets(ctx context.Context, l *Lab) (float64, error) {
	target, err := addressOf(ctx, l, "pod-2")
	if err != nil {
		return 0, err
	}
	var ends []*os.File
	defer func() { closeAll(ends) }()
	for _, pod := range []string{"pod-1", "pod-2"} {
		f, err := l.socket(ctx, pod, familyOf(target), unix.SOCK_DGRAM, 0)
		if err != nil {
			return 0, err
		}
		ends = append(ends, f)
	}
	client, server := blocking(ends[0]), blocking(ends[1])
	if err := unix.SetsockoptInt(server, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20); err != nil {
		return 0, err
	}
	if err := patient(server, rateWindow); err != nil { // its end is silence
		return 0, err
	}
	port, err := bindAnyPort(ends[1], target)
	if err != nil {
		return 0, err
	}
	if err := greet(client, server, netip.AddrPortFrom(target, port)); err != nil {
		return 0, err
	}
	var g errgroup.Group
	g.Go(func() error { return onOwnThread(func() error { return blast(client) }) })
	var rate float64
	g.Go(func() error {
		return onOwnThread(func() (err error) { rate, err = arrivals(server); return err })
	})
	return rate, g.Wait()
}

// greet sends a packet each way: a flow is established for the kernel once it was answered.
func greet(client, server int, to netip.AddrPort) error {
	if err := unix.Connect(client, sockaddr(to)); err != nil {
		return err
	}
	if err := patient(client, quiet); err != nil {
		return err
	}
	b := make([]byte, datagram)
	if _, err := uninterrupted(unix.Write, client, b); err != nil {
		return err
	}
	from := unix.Sockaddr(nil)
	for began := time.Now(); from == nil; {
		var err error
		if _, from, err = unix.Recvfrom(server, b, 0); err != nil && time.Since(began) > quiet {
			return fmt.Errorf("the first packet did not come: %w", err)
		}
	}
	if err := unix.Sendto(server, b, 0, from); err != nil {
		return err
	}
	if _, err := uninterrupted(unix.Read, client, b); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	return nil
}

func blast(fd int) error {
	if err := pin(1); err != nil {
		return err
	}
	b := make([]byte, datagram)
	for began := time.Now(); time.Since(began) < rateWindow; {
		if _, err := uninterrupted(unix.Write, fd, b); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// arrivals counts packets until no more come, in thousands a second between the first and the last.
func arrivals(fd int) (float64, error) {
	if err := pin(0); err != nil {
		return 0, err
	}
	b := make([]byte, datagram)
	count := 0
	var first, last time.Time
	for began := time.Now(); ; {
		_, err := uninterrupted(unix.Read, fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN) && count > 1:
			return float64(count-1) / last.Sub(first).Seconds() / 1000, nil
		case errors.Is(err, unix.EAGAIN) && time.Since(began) > quiet:
			return 0, errors.New("no packet came through")
		case errors.Is(err, unix.EAGAIN): // the sender has not begun
			continue
		case err != nil:
			return 0, err
		}
		if last = time.Now(); count == 0 {
			first = last
		}
		count++
	}
}
