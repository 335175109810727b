// Package nlsock is a netlink socket for drivers that write much: requests are pipelined, many in one datagram, and only
// what fails, and the last, is answered (RFC 3549; linux/netlink.h). It knows neither routes nor nftables: messages are
// bytes, built and read with the helpers in attr.go.
//
// A socket belongs for life to the network namespace of the thread that opened it. Its port tells the notifications that
// its own requests cause from those caused by others; see Event.
package nlsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// replyTimeout is how long the kernel may take to answer (Felix's netlinkTimeout).
const replyTimeout = 10 * time.Second

// bufferSize is the socket buffers' limit, not memory in use. An nftables transaction must fit in one datagram.
const bufferSize = 32 << 20

// Conn is an open netlink socket. It is for one goroutine at a time.
type Conn struct {
	file   *os.File
	raw    syscall.RawConn
	port   uint32
	seq    uint32
	limit  int
	writes atomic.Uint64
	buf    []byte
}

// Dial opens a socket of a netlink protocol (unix.NETLINK_ROUTE, …) in the current namespace and joins the multicast
// groups (numbers, not bits).
func Dial(protocol int, groups ...uint32) (*Conn, error) {
	return dial(protocol, 256<<10, groups)
}

// DialBrief opens a socket for a few requests: it reads into a small buffer, which no listing and no event fits into.
func DialBrief(protocol int) (*Conn, error) { return dial(protocol, 16<<10, nil) }

func dial(protocol, buffer int, groups []uint32) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket of protocol %d: %w", protocol, err)
	}
	c, err := setUp(fd, buffer, groups)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up netlink socket of protocol %d: %w", protocol, err)
	}
	return c, nil
}

func setUp(fd, buffer int, groups []uint32) (*Conn, error) {
	// The forced variants need privileges in the initial user namespace; elsewhere the system's maximum must do.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferSize) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferSize) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize)
	}
	// Error texts from the kernel, without the request echoed back. Kernels before 4.12 lack them; errno remains.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			return nil, fmt.Errorf("join group %d: %w", g, err)
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("read own port: %w", err)
	}
	limit, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return nil, fmt.Errorf("read send buffer size: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{
		file: file, raw: raw, port: name.(*unix.SockaddrNetlink).Pid,
		limit: limit - 4096, // the kernel counts 32 bytes of its own; the rest is margin
		buf:   make([]byte, buffer),
	}, nil
}

// Close closes the socket, if Listen has not; a goroutine blocked in it returns with os.ErrClosed.
func (c *Conn) Close() error {
	if err := c.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Port is the socket's address: the pid in the header of notifications that its own requests caused.
func (c *Conn) Port() uint32 { return c.port }

// Limit is the largest datagram the socket can send, in bytes.
func (c *Conn) Limit() int { return c.limit }

// Writes counts the requests sent to change something, so that a test can assert that none were.
func (c *Conn) Writes() uint64 { return c.writes.Load() }

// Message is one netlink message without its header.
type Message struct {
	Type  uint16
	Flags uint16 // besides NLM_F_REQUEST
	Body  []byte
}

// headerLen is the length of struct nlmsghdr.
const headerLen = unix.SizeofNlMsghdr

// Size is the message's length on the wire.
func (m Message) Size() int { return headerLen + align(len(m.Body)) }

// Error is the kernel's refusal of a request.
type Error struct {
	Errno   unix.Errno
	Message string // the kernel's own words, often empty
}

// Error is the kernel's words, or else the errno's text.
func (e *Error) Error() string {
	if e.Message != "" {
		return e.Message + " (" + e.Errno.Error() + ")"
	}
	return e.Errno.Error()
}

// Unwrap is the errno, so that errors.Is(err, unix.ESRCH) works.
func (e *Error) Unwrap() error { return e.Errno }

// Send sends messages in as few datagrams as fit and waits until the kernel has handled all. The result has one entry
// for each message, nil where it succeeded; the error is for the socket itself, after which nothing is known.
func (c *Conn) Send(ctx context.Context, msgs []Message) ([]error, error) {
	results := make([]error, len(msgs))
	const chunk = 128 << 10
	for start := 0; start < len(msgs); {
		end, size := start, 0
		for end < len(msgs) && (end == start || size+msgs[end].Size() <= min(chunk, c.limit)) {
			size += msgs[end].Size()
			end++
		}
		if err := c.exchange(ctx, msgs[start:end], results[start:end], end-start-1); err != nil {
			return results, err
		}
		start = end
	}
	return results, nil
}

// SendOne sends one message and returns its outcome.
func (c *Conn) SendOne(ctx context.Context, m Message) error {
	results, err := c.Send(ctx, []Message{m})
	return errors.Join(append(results, err)...)
}

// Get asks for one object and returns the body of the answer, which is valid until the next call.
func (c *Conn) Get(ctx context.Context, m Message) ([]byte, error) {
	c.seq++
	if err := c.write(appendMessage(nil, m, m.Flags|unix.NLM_F_REQUEST, c.seq, c.port)); err != nil {
		return nil, fmt.Errorf("send netlink request %d: %w", m.Type, err)
	}
	if err := c.deadline(ctx); err != nil {
		return nil, err
	}
	for {
		in, err := c.read()
		if err != nil {
			return nil, fmt.Errorf("read answer to netlink request %d: %w", m.Type, err)
		}
		var found []byte
		err = eachMessage(in, func(h header, body []byte) error {
			switch {
			case h.seq != c.seq || h.port != c.port || found != nil:
				return nil // left over from a request that was given up
			case h.kind == unix.NLMSG_ERROR:
				return parseError(h, body)
			}
			found = body
			return nil
		})
		if err != nil || found != nil {
			return found, err
		}
	}
}

// Transact sends messages as one nfnetlink batch of a subsystem: all take effect or none. The result has one entry for
// each message; if any is not nil, nothing was changed. The error is for the socket or the batch as a whole.
func (c *Conn) Transact(ctx context.Context, subsystem uint16, msgs []Message) ([]error, error) {
	if len(msgs) == 0 {
		return nil, nil
	}
	nfgen := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(subsystem >> 8), byte(subsystem)}
	batch := make([]Message, 0, len(msgs)+2)
	batch = append(batch, Message{Type: unix.NFNL_MSG_BATCH_BEGIN, Body: nfgen})
	batch = append(batch, msgs...)
	batch = append(batch, Message{Type: unix.NFNL_MSG_BATCH_END, Body: nfgen})
	results := make([]error, len(batch))
	// The kernel delivers answers after it has committed or aborted, so an answer to the last message is the outcome.
	if err := c.exchange(ctx, batch, results, len(msgs)); err != nil {
		return nil, err
	}
	return results[1 : len(msgs)+1], errors.Join(results[0], results[len(msgs)+1])
}

// exchange sends one datagram and collects answers up to that to message number last, which is asked to have one.
func (c *Conn) exchange(ctx context.Context, msgs []Message, results []error, last int) error {
	size := 0
	for _, m := range msgs {
		size += m.Size()
	}
	out := make([]byte, 0, size)
	first := c.seq + 1
	for i, m := range msgs {
		flags := m.Flags | unix.NLM_F_REQUEST
		if i == last {
			flags |= unix.NLM_F_ACK
		}
		c.seq++
		out = appendMessage(out, m, flags, c.seq, c.port)
	}
	c.writes.Add(uint64(len(msgs)))
	if err := c.write(out); err != nil {
		return fmt.Errorf("send %d netlink messages (%d bytes): %w", len(msgs), size, err)
	}
	if err := c.deadline(ctx); err != nil {
		return err
	}
	for {
		in, err := c.read()
		if err != nil {
			return fmt.Errorf("read answer to %d netlink messages: %w", len(msgs), err)
		}
		done := false
		err = eachMessage(in, func(h header, body []byte) error {
			i := int(int32(h.seq - first))
			if h.kind != unix.NLMSG_ERROR || h.port != c.port || i < 0 || i >= len(msgs) {
				return nil // left over from a request that was given up
			}
			if e := parseError(h, body); e != nil {
				results[i] = e
			}
			// A refused batch begin ends the batch: nothing behind it is answered.
			done = done || i == last || (i == 0 && msgs[0].Type == unix.NFNL_MSG_BATCH_BEGIN)
			return nil
		})
		if err != nil || done {
			return err
		}
	}
}

// Dump sends a request for a listing and calls each for every object, again from the start (after restart, if not nil)
// when the kernel says that the listing was overtaken by a change.
func (c *Conn) Dump(ctx context.Context, m Message, restart func(), each func(kind uint16, body []byte) error) error {
	const attempts = 10
	for range attempts {
		c.seq++
		out := appendMessage(nil, m, m.Flags|unix.NLM_F_REQUEST|unix.NLM_F_DUMP, c.seq, c.port)
		if err := c.write(out); err != nil {
			return fmt.Errorf("send netlink dump request %d: %w", m.Type, err)
		}
		if err := c.deadline(ctx); err != nil {
			return err
		}
		torn, err := c.listing(each)
		if err != nil || !torn {
			return err
		}
		if restart != nil {
			restart()
		}
	}
	return fmt.Errorf("netlink dump %d was overtaken by changes %d times in a row", m.Type, attempts)
}

func (c *Conn) listing(each func(kind uint16, body []byte) error) (torn bool, err error) {
	for {
		in, err := c.read()
		if err != nil {
			return torn, fmt.Errorf("read netlink dump: %w", err)
		}
		done := false
		err = eachMessage(in, func(h header, body []byte) error {
			if h.seq != c.seq || h.port != c.port {
				return nil
			}
			torn = torn || h.flags&unix.NLM_F_DUMP_INTR != 0
			switch h.kind {
			case unix.NLMSG_DONE:
				done = true
				return nil
			case unix.NLMSG_ERROR:
				done = true
				return parseError(h, body)
			}
			return each(h.kind, body)
		})
		if err != nil || done {
			return torn, err
		}
	}
}

func (c *Conn) write(b []byte) (err error) {
	done := c.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return err != unix.EAGAIN
	})
	return errors.Join(err, done)
}

func (c *Conn) read() (b []byte, err error) {
	done := c.raw.Read(func(fd uintptr) bool {
		var n int
		n, _, err = unix.Recvfrom(int(fd), c.buf, 0)
		b = c.buf[:max(n, 0)]
		return err != unix.EAGAIN
	})
	return b, errors.Join(err, done)
}

func (c *Conn) deadline(ctx context.Context) error {
	at := time.Now().Add(replyTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(at) {
		at = d
	}
	return c.file.SetReadDeadline(at)
}

func parseError(h header, body []byte) error {
	if len(body) < 4 {
		return errors.New("netlink answer is cut short")
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	// With NETLINK_CAP_ACK only the header of the request follows, then the extended attributes.
	if rest := 4 + headerLen; h.flags&unix.NLM_F_ACK_TLVS != 0 && len(body) > rest {
		for typ, v := range Attrs(body[rest:]) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.Message = CString(v)
			}
		}
	}
	return e
}
