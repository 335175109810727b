package nlsock

import (
	"context"
	"errors"
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
