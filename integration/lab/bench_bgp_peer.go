package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Messages of BGP (RFC 4271 section 4), as far as a peer needs them that only tells what it was given.
const (
	bgpOpen      = 1
	bgpUpdate    = 2
	bgpKeepalive = 4

	bgpHeader  = 19
	bgpLongest = 4096

	bgpHold = 240 // seconds that are offered

	bgpAttrOrigin, bgpAttrASPath, bgpAttrNextHop, bgpAttrLocalPref = 1, 2, 3, 5
	bgpTransitive                                                  = 0x40
)

// bgpPeer is one session of a router that costs nearly nothing: what it says is prepared beforehand, and what it hears is
// counted at most.
type bgpPeer struct {
	conn  net.Conn
	done  chan struct{} // closed when the connection is
	heard *heard        // nil: what it hears is not counted
	once  sync.Once
	err   error
}

// openBGP plays the opening of a session over a connection, and returns when it is up. heard may be nil.
func openBGP(conn net.Conn, as uint16, id netip.Addr, heard *heard) (*bgpPeer, error) {
	p := &bgpPeer{conn: conn, done: make(chan struct{}), heard: heard}
	body := []byte{4, byte(as >> 8), byte(as), 0, bgpHold}
	body = append(body, id.AsSlice()...)
	capabilities := []byte{
		2, 16, // one parameter: capabilities
		1, 4, 0, 1, 0, 1, // IPv4 unicast (RFC 4760)
		65, 4, 0, 0, byte(as >> 8), byte(as), // AS numbers of four octets (RFC 6793)
		64, 2, 0, 0, // End-of-RIB is told, nothing is kept (RFC 4724)
	}
	body = append(append(body, byte(len(capabilities))), capabilities...)
	if err := p.write(bgpMessage(bgpOpen, body)); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(bgpDeadline)); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(conn, 64<<10)
	for _, want := range []byte{bgpOpen, bgpKeepalive} {
		kind, err := readBGP(in, nil)
		if err != nil {
			return nil, fmt.Errorf("the opening of a BGP session: %w", err)
		}
		if kind != want {
			return nil, fmt.Errorf("the opening of a BGP session: message of type %d instead of %d", kind, want)
		}
		if kind == bgpOpen {
			if err := p.write(bgpMessage(bgpKeepalive, nil)); err != nil {
				return nil, err
			}
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	go p.drain(in)
	go p.live()
	return p, nil
}

// drain reads until the other end closes.
func (p *bgpPeer) drain(in *bufio.Reader) {
	for {
		if _, err := readBGP(in, p.heard); err != nil {
			p.once.Do(func() {
				p.err = err
				close(p.done)
			})
			return
		}
	}
}

// live keeps the session up.
func (p *bgpPeer) live() {
	tick := time.NewTicker(bgpHold / 3 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-tick.C:
			_ = p.write(bgpMessage(bgpKeepalive, nil)) // the reader finds out
		}
	}
}

func (p *bgpPeer) write(b []byte) error {
	_, err := p.conn.Write(b)
	return err
}

func (p *bgpPeer) close() { _ = p.conn.Close() }

// readBGP reads one message and returns its type. The routes of an UPDATE are counted, unless heard is nil.
func readBGP(in *bufio.Reader, heard *heard) (kind byte, err error) {
	var head [bgpHeader]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[16:]))
	if n < bgpHeader || n > bgpLongest {
		return 0, errors.New("a BGP message of impossible length")
	}
	if heard == nil || head[18] != bgpUpdate {
		_, err = in.Discard(n - bgpHeader)
		return head[18], err
	}
	body := make([]byte, n-bgpHeader)
	if _, err = io.ReadFull(in, body); err == nil {
		err = heard.update(body)
	}
	return head[18], err
}

// heard is the IPv4 prefixes that a peer was told.
type heard struct {
	prefixes map[netip.Prefix]struct{} // owned by the reader of the connection
	want     int                       // how many are due
	complete chan time.Time            // gets the time at which so many were there, once for each want
}

// update takes in the body of an UPDATE (RFC 4271 section 4.3).
func (h *heard) update(body []byte) error {
	for i := range 2 { // withdrawn routes, then attributes
		if len(body) < 2 || len(body)-2 < int(binary.BigEndian.Uint16(body)) {
			return errors.New("an UPDATE that is cut short")
		}
		n := 2 + int(binary.BigEndian.Uint16(body))
		if i == 0 {
			eachNLRI(body[2:n], func(p netip.Prefix) { delete(h.prefixes, p) })
		}
		body = body[n:]
	}
	before := len(h.prefixes)
	eachNLRI(body, func(p netip.Prefix) { h.prefixes[p] = struct{}{} })
	if before < h.want && len(h.prefixes) >= h.want {
		h.want++ // of the next round: one route more
		h.complete <- time.Now()
	}
	return nil
}

// eachNLRI reads IPv4 prefixes; what follows one that is none is left out.
func eachNLRI(b []byte, yield func(netip.Prefix)) {
	for len(b) > 0 {
		bits := int(b[0])
		n := 1 + (bits+7)/8
		if bits > 32 || n > len(b) {
			return
		}
		var a [4]byte
		copy(a[:], b[1:n])
		yield(netip.PrefixFrom(netip.AddrFrom4(a), bits))
		b = b[n:]
	}
}

func bgpMessage(kind byte, body []byte) []byte {
	m := make([]byte, bgpHeader, bgpHeader+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(bgpHeader+len(body)))
	m[18] = kind
	return append(m, body...)
}

// bgpAnnouncement is the messages that announce IPv4 prefixes over one next hop, as within an AS, and after them the
// End-of-RIB; packed as tightly as they go.
func bgpAnnouncement(prefixes []netip.Prefix, nextHop netip.Addr) []byte {
	attributes := []byte{bgpTransitive, bgpAttrOrigin, 1, 0, bgpTransitive, bgpAttrASPath, 0, bgpTransitive, bgpAttrNextHop, 4}
	attributes = append(attributes, nextHop.AsSlice()...)
	attributes = append(attributes, bgpTransitive, bgpAttrLocalPref, 4, 0, 0, 0, 100)
	fixed := append([]byte{0, 0, 0, byte(len(attributes))}, attributes...)
	out := bgpPacked(prefixes, func(nlri []byte) []byte { return append(slices.Clip(fixed), nlri...) }, len(fixed))
	return append(out, bgpMessage(bgpUpdate, []byte{0, 0, 0, 0})...)
}

// bgpWithdrawal is the messages that take prefixes back.
func bgpWithdrawal(prefixes []netip.Prefix) []byte {
	return bgpPacked(prefixes, func(nlri []byte) []byte {
		body := binary.BigEndian.AppendUint16(nil, uint16(len(nlri)))
		return append(append(body, nlri...), 0, 0)
	}, 4)
}

func bgpPacked(prefixes []netip.Prefix, body func(nlri []byte) []byte, fixed int) (out []byte) {
	var nlri []byte
	for _, p := range prefixes {
		n := (p.Bits() + 7) / 8
		if bgpHeader+fixed+len(nlri)+1+n > bgpLongest {
			out = append(out, bgpMessage(bgpUpdate, body(nlri))...)
			nlri = nlri[:0]
		}
		nlri = append(nlri, byte(p.Bits()))
		nlri = append(nlri, p.Addr().AsSlice()[:n]...)
	}
	if len(nlri) > 0 {
		out = append(out, bgpMessage(bgpUpdate, body(nlri))...)
	}
	return out
}
