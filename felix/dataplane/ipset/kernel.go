package ipset

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Header is what a kernel set is, without its entries.
type Header struct {
	Kind       view.SetType // 0: of a type that is not ours
	V6         bool
	Max        uint32 // entries that it can hold
	Len        uint32 // entries that it holds
	References uint32 // rules and sets that use it
}

// Fits tells whether a set is of the kind and family that another is.
func (h Header) Fits(o Header) bool { return h.Kind == o.Kind && h.V6 == o.V6 }

// types are the kernel's names for kinds of set.
var types = map[view.SetType]string{view.SetNet: "hash:net", view.SetIPPort: "hash:ip,port"}

// Kernel writes and reads the sets of the kernel's ip_set. The library's requests carry one entry each and wait for their
// answer; here a message carries hundreds, and messages are sent many at once. It is for one goroutine at a time.
type Kernel struct{ conn *nlsock.Conn }

// Open opens the sets of the caller's network namespace.
func Open() (*Kernel, error) {
	conn, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("ipset: %w", err)
	}
	return &Kernel{conn}, nil
}

// Close releases the socket; the sets stay.
func (k *Kernel) Close() error { return k.conn.Close() }

// Writes counts the messages sent to change sets.
func (k *Kernel) Writes() uint64 { return k.conn.Writes() }

// Headers lists all sets by name.
func (k *Kernel) Headers(ctx context.Context) (map[string]Header, error) {
	const headersOnly = 1 << 2 // IPSET_FLAG_LIST_HEADER
	out := map[string]Header{}
	m := message(nl.IPSET_CMD_LIST, "")
	m.Body = nlsock.AttrBE32(m.Body, nl.IPSET_ATTR_FLAGS|unix.NLA_F_NET_BYTEORDER, headersOnly)
	err := k.conn.Dump(ctx, m, func() { clear(out) }, func(_ uint16, body []byte) error {
		name, h := readHeader(body)
		if name != "" {
			out[name] = h
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the kernel's sets: %w; is the kernel built with CONFIG_IP_SET?", explain(err))
	}
	return out, nil
}

// Entries lists the entries of a set; none if it is not there.
func (k *Kernel) Entries(ctx context.Context, name string) (map[view.Member]struct{}, error) {
	out := map[view.Member]struct{}{}
	err := k.conn.Dump(ctx, message(nl.IPSET_CMD_LIST, name), func() { clear(out) }, func(_ uint16, body []byte) error {
		for typ, v := range nlsock.Attrs(body[min(4, len(body)):]) {
			if typ != nl.IPSET_ATTR_ADT {
				continue
			}
			for _, entry := range nlsock.Attrs(v) {
				if m, ok := readEntry(entry); ok {
					out[m] = struct{}{}
				}
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list set %s: %w", name, explain(err))
	}
	return out, nil
}

// Create makes an empty set.
func (k *Kernel) Create(ctx context.Context, name string, h Header) error {
	// The oldest revision that has what we need: hash:ip,port knows SCTP since 1.
	revision := map[view.SetType]byte{view.SetIPPort: 1}[h.Kind]
	family := byte(unix.NFPROTO_IPV4)
	if h.V6 {
		family = unix.NFPROTO_IPV6
	}
	m := message(nl.IPSET_CMD_CREATE, name)
	m.Flags |= unix.NLM_F_EXCL
	m.Body = nlsock.AttrString(m.Body, nl.IPSET_ATTR_TYPENAME, types[h.Kind])
	m.Body = nlsock.Attr(m.Body, nl.IPSET_ATTR_REVISION, []byte{revision})
	m.Body = nlsock.Attr(m.Body, nl.IPSET_ATTR_FAMILY, []byte{family})
	m.Body = nlsock.Nest(m.Body, nl.IPSET_ATTR_DATA, func(b []byte) []byte {
		return nlsock.AttrBE32(b, nl.IPSET_ATTR_MAXELEM|unix.NLA_F_NET_BYTEORDER, h.Max)
	})
	return k.do(ctx, m)
}

// Destroy removes a set that nothing uses; one that is not there is no error.
func (k *Kernel) Destroy(ctx context.Context, name string) error {
	if err := k.do(ctx, message(nl.IPSET_CMD_DESTROY, name)); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// Swap exchanges two sets of one type, with a packet seeing either.
func (k *Kernel) Swap(ctx context.Context, a, b string) error {
	m := message(nl.IPSET_CMD_SWAP, a)
	m.Body = nlsock.AttrString(m.Body, nl.IPSET_ATTR_SETNAME2, b)
	return k.do(ctx, m)
}

// Change removes and adds entries. Removing what is not there and adding what is are no errors.
func (k *Kernel) Change(ctx context.Context, name string, add, remove []view.Member) error {
	msgs := append(entries(nl.IPSET_CMD_DEL, name, remove), entries(nl.IPSET_CMD_ADD, name, add)...)
	results, err := k.conn.Send(ctx, msgs)
	if err := errors.Join(append(results, err)...); err != nil {
		return explain(err)
	}
	return nil
}

func (k *Kernel) do(ctx context.Context, m nlsock.Message) error {
	return explain(k.conn.SendOne(ctx, m))
}

// explain says what the errors mean that only ip_set has.
func explain(err error) error {
	var e *nlsock.Error
	if !errors.As(err, &e) || e.Errno < nl.IPSET_ERR_PRIVATE {
		return err
	}
	switch e.Errno {
	case nl.IPSET_ERR_TYPE_SPECIFIC:
		return ErrFull
	case nl.IPSET_ERR_BUSY, nl.IPSET_ERR_REFERENCED:
		return ErrBusy
	}
	return nl.IPSetError(e.Errno)
}

// What the kernel says of a set.
var (
	ErrFull = errors.New("the set is full")
	ErrBusy = errors.New("rules or other sets name the set")
)

func message(command uint16, set string) nlsock.Message {
	body := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	body = nlsock.Attr(body, nl.IPSET_ATTR_PROTOCOL, []byte{nl.IPSET_PROTOCOL})
	if set != "" {
		body = nlsock.AttrString(body, nl.IPSET_ATTR_SETNAME, set)
	}
	return nlsock.Message{Type: unix.NFNL_SUBSYS_IPSET<<8 | command, Body: body}
}

// entries are the messages that add or remove members, some hundred each: an attribute holds 64 KiB.
func entries(command uint16, set string, members []view.Member) (out []nlsock.Message) {
	const most = 800
	for len(members) > 0 {
		n := min(most, len(members))
		m := message(command, set)
		m.Body = nlsock.AttrBE32(m.Body, nl.IPSET_ATTR_LINENO|unix.NLA_F_NET_BYTEORDER, 0)
		m.Body = nlsock.Nest(m.Body, nl.IPSET_ATTR_ADT, func(b []byte) []byte {
			for _, e := range members[:n] {
				b = nlsock.Nest(b, nl.IPSET_ATTR_DATA, func(b []byte) []byte { return entry(b, e) })
			}
			return b
		})
		out = append(out, m)
		members = members[n:]
	}
	return out
}

func entry(b []byte, m view.Member) []byte {
	b = nlsock.Nest(b, nl.IPSET_ATTR_IP, func(b []byte) []byte {
		typ := uint16(nl.IPSET_ATTR_IPADDR_IPV4)
		if m.Prefix.Addr().Is6() {
			typ = nl.IPSET_ATTR_IPADDR_IPV6
		}
		return nlsock.Attr(b, typ|unix.NLA_F_NET_BYTEORDER, m.Prefix.Addr().AsSlice())
	})
	if m.Protocol == 0 {
		return nlsock.Attr(b, nl.IPSET_ATTR_CIDR, []byte{byte(m.Prefix.Bits())})
	}
	b = nlsock.Attr(b, nl.IPSET_ATTR_PROTO, []byte{byte(m.Protocol)})
	return nlsock.Attr(b, nl.IPSET_ATTR_PORT|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, m.Port))
}

func readHeader(body []byte) (name string, h Header) {
	for typ, v := range nlsock.Attrs(body[min(4, len(body)):]) {
		switch typ {
		case nl.IPSET_ATTR_SETNAME:
			name = nlsock.CString(v)
		case nl.IPSET_ATTR_TYPENAME:
			for kind, text := range types {
				if nlsock.CString(v) == text {
					h.Kind = kind
				}
			}
		case nl.IPSET_ATTR_FAMILY:
			h.V6 = len(v) == 1 && v[0] == unix.NFPROTO_IPV6
		case nl.IPSET_ATTR_DATA:
			for typ, v := range nlsock.Attrs(v) {
				switch typ {
				case nl.IPSET_ATTR_MAXELEM:
					h.Max = nlsock.BE32(v)
				case nl.IPSET_ATTR_ELEMENTS:
					h.Len = nlsock.BE32(v)
				case nl.IPSET_ATTR_REFERENCES:
					h.References = nlsock.BE32(v)
				}
			}
		}
	}
	return name, h
}

func readEntry(b []byte) (m view.Member, ok bool) {
	var addr netip.Addr
	bits := -1
	for typ, v := range nlsock.Attrs(b) {
		switch typ {
		case nl.IPSET_ATTR_IP:
			for _, raw := range nlsock.Attrs(v) {
				addr, ok = netip.AddrFromSlice(raw)
			}
		case nl.IPSET_ATTR_CIDR:
			if len(v) == 1 {
				bits = int(v[0])
			}
		case nl.IPSET_ATTR_PROTO:
			if len(v) == 1 {
				m.Protocol = view.Protocol(v[0])
			}
		case nl.IPSET_ATTR_PORT:
			if len(v) == 2 {
				m.Port = binary.BigEndian.Uint16(v)
			}
		}
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	m.Prefix = netip.PrefixFrom(addr, bits)
	return m, ok && m.Prefix.IsValid()
}
