package nlsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Event is a notification from a multicast group.
type Event struct {
	Kind uint16
	Port uint32 // of the socket whose request caused it; 0: the kernel itself
	Body []byte // valid until the next one is read
}

// ErrOverrun says that notifications were lost because they came faster than they were read. The socket goes on; what is
// known must be read anew.
var ErrOverrun = errors.New("netlink notifications were lost")

// Listen calls on for every notification until the context ends (then it returns nil) or the socket fails. Lost
// notifications are told by lost. Listen owns the socket and closes it.
func (c *Conn) Listen(ctx context.Context, on func(Event), lost func()) error {
	stop := context.AfterFunc(ctx, func() { _ = c.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer c.file.Close()
	for {
		b, err := c.read()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			lost()
			continue
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		if err := eachMessage(b, func(h header, body []byte) error {
			if h.kind >= unix.NLMSG_MIN_TYPE {
				on(Event{Kind: h.kind, Port: h.port, Body: body})
			}
			return nil
		}); err != nil {
			lost()
		}
	}
}

// Ignore has the kernel keep back notifications that requests of a port caused: whoever writes a hundred thousand routes
// need not be told of each. It may be called once.
func (c *Conn) Ignore(port uint32) error {
	const portAt = 12 // offset of nlmsg_pid in struct nlmsghdr, which is in the host's byte order; the filter reads big-endian
	swapped := binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port))
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: swapped},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("attach a filter to the netlink socket: %w", err)
	}
	return nil
}
