package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// defaultVXLANPort is the UDP port of VXLAN unless FelixConfiguration says otherwise (IANA's).
const defaultVXLANPort = 4789

const captureBuffer = 8 << 20 // bytes the kernel keeps for us

// Capture is a packet socket on one interface of a node or pod. It is used by one goroutine.
type Capture struct {
	// VXLANPort is the UDP port taken for VXLAN, 4789 unless set.
	VXLANPort uint16

	f   *os.File
	raw rawConn
	buf []byte
	oob []byte
}

type rawConn interface {
	Read(func(fd uintptr) (done bool)) error
	Control(func(fd uintptr)) error
}

// Capture begins to capture on an interface of a node, a pod, the router or the fabric (whose interfaces are the nodes'
// ports). When it returns, each later frame is seen.
func (l *Lab) Capture(ctx context.Context, where, iface string) (*Capture, error) {
	f, err := l.socket(ctx, where, unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, err
	}
	c := &Capture{VXLANPort: defaultVXLANPort, f: f, buf: make([]byte, 128<<10), oob: make([]byte, 256)}
	if c.raw, err = f.SyscallConn(); err == nil {
		err = c.bind(iface)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("capture on %s of %s: %w", iface, where, err)
	}
	return c, nil
}

func (c *Capture) bind(iface string) error {
	var result error
	err := c.raw.Control(func(fd uintptr) {
		req, err := unix.NewIfreq(iface)
		if err != nil {
			result = err
			return
		}
		if err := unix.IoctlIfreq(int(fd), unix.SIOCGIFINDEX, req); err != nil { // looks in the socket's own namespace
			result = problem("there is no such interface", "lab exec NODE -- ip link shows them")
			return
		}
		// Forcing needs more rights than a user namespace gives; the ordinary limit will do then.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer)
		}
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			result = err
			return
		}
		result = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: int(req.Uint32())})
	})
	return errors.Join(err, result)
}

// Next waits for a frame.
func (c *Capture) Next(ctx context.Context) (Packet, error) {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.f.SetReadDeadline(time.Unix(1, 0))
		close(woken)
	})
	var p Packet
	var result error
	err := c.raw.Read(func(fd uintptr) bool {
		p, result = c.read(int(fd))
		return !errors.Is(result, unix.EAGAIN)
	})
	if !stop() {
		<-woken
		_ = c.f.SetReadDeadline(time.Time{})
	}
	if err != nil && ctx.Err() != nil {
		return Packet{}, ctx.Err()
	}
	return p, errors.Join(err, result)
}

// Drain returns the frames that were seen and not yet read, without waiting.
func (c *Capture) Drain() ([]Packet, error) {
	var ps []Packet
	var result error
	err := c.raw.Control(func(fd uintptr) {
		for result == nil {
			var p Packet
			if p, result = c.read(int(fd)); result == nil {
				ps = append(ps, p)
			}
		}
	})
	if !errors.Is(result, unix.EAGAIN) {
		err = errors.Join(err, result)
	}
	return ps, err
}

func (c *Capture) read(fd int) (Packet, error) {
	n, on, flags, from, err := unix.Recvmsg(fd, c.buf, c.oob, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EINTR) {
		return c.read(fd)
	}
	if err != nil {
		return Packet{}, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		n = len(c.buf)
	}
	p := decodePacket(append([]byte(nil), c.buf[:n]...), c.VXLANPort)
	p.Time = receivedAt(c.oob[:on])
	if sa, ok := from.(*unix.SockaddrLinklayer); ok {
		p.Outgoing = sa.Pkttype == unix.PACKET_OUTGOING
	}
	return p, nil
}

// Close ends the capture.
func (c *Capture) Close() error { return c.f.Close() }

// PcapWriter writes frames in the format that tcpdump and Wireshark read.
type PcapWriter struct{ w *pcapgo.Writer }

// NewPcapWriter writes the file's header.
func NewPcapWriter(w io.Writer) (*PcapWriter, error) {
	pw := pcapgo.NewWriterNanos(w)
	return &PcapWriter{pw}, pw.WriteFileHeader(256<<10, layers.LinkTypeEthernet)
}

// Write appends a frame.
func (w *PcapWriter) Write(p Packet) error {
	return w.w.WritePacket(gopacket.CaptureInfo{Timestamp: p.Time, CaptureLength: len(p.Data), Length: len(p.Data)}, p.Data)
}

// receivedAt reads the kernel's time stamp out of a message's control data.
func receivedAt(oob []byte) time.Time {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err == nil {
		for _, m := range msgs {
			var ts unix.Timespec
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(ts)) {
				ts = *(*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
				return time.Unix(ts.Unix())
			}
		}
	}
	return time.Now()
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
