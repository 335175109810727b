package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Type is the type of a set's keys. The kernel only needs the length; the number lets nft(8) print them.
type Type struct {
	Number uint32
	Len    uint32 // bytes
}

// Types of keys, numbered as nft(8) does: one is 6 bits of a concatenation.
var (
	IfName = Type{41, unix.IFNAMSIZ}
	Port   = Type{13, 2}
)

// Address is the type of the family's addresses.
func (f Family) Address() Type {
	if f == IP6 {
		return Type{8, 16}
	}
	return Type{7, 4}
}

// AddressProtoPort is the type of address, protocol and port together, each in its own 4 bytes (or 16).
func (f Family) AddressProtoPort() Type {
	a := f.Address()
	return Type{a.Number<<12 | 12<<6 | 13, a.Len + 4 + 4}
}

// IfNameAddress is the type of interface name and address together, the latter in 16 bytes.
func (f Family) IfNameAddress() Type {
	return Type{IfName.Number<<6 | f.Address().Number, IfName.Len + 16}
}

// SetSpec is what a set is, apart from its elements.
type SetSpec struct {
	Key      Type
	Interval bool // elements are ranges
	Verdicts bool // a verdict map
}

// AddSet makes an empty set, if it is not there. id must be unique within the transaction.
func (t Table) AddSet(name string, s SetSpec, id uint32) nlsock.Message {
	return t.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_SET_NAME, name)
		b = nlsock.AttrBE32(b, unix.NFTA_SET_FLAGS, s.flags())
		b = nlsock.AttrBE32(b, unix.NFTA_SET_KEY_TYPE, s.Key.Number)
		b = nlsock.AttrBE32(b, unix.NFTA_SET_KEY_LEN, s.Key.Len)
		if s.Verdicts {
			b = nlsock.AttrBE32(b, unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
			b = nlsock.AttrBE32(b, unix.NFTA_SET_DATA_LEN, 0)
		}
		b = nlsock.AttrBE32(b, unix.NFTA_SET_ID, id)
		// For nft(8): NFTNL_UDATA_SET_KEYBYTEORDER, 4 bytes; numbers are in network byte order (2), names in none (1).
		order := binary.NativeEndian.AppendUint32([]byte{0, 4}, 2)
		if s.Key == IfName {
			order = binary.NativeEndian.AppendUint32([]byte{0, 4}, 1)
		}
		return nlsock.Attr(b, unix.NFTA_SET_USERDATA, order)
	})
}

func (s SetSpec) flags() (f uint32) {
	if s.Interval {
		f |= unix.NFT_SET_INTERVAL
	}
	if s.Verdicts {
		f |= unix.NFT_SET_MAP
	}
	return f
}

// DeleteSet removes a set that no rule uses.
func (t Table) DeleteSet(name string) nlsock.Message {
	return t.message(unix.NFT_MSG_DELSET, 0, func(b []byte) []byte {
		return nlsock.AttrString(b, unix.NFTA_SET_NAME, name)
	})
}

// FlushSet removes all elements of a set.
func (t Table) FlushSet(name string) nlsock.Message {
	return t.message(unix.NFT_MSG_DELSETELEM, 0, func(b []byte) []byte {
		return nlsock.AttrString(b, unix.NFTA_SET_ELEM_LIST_SET, name)
	})
}

// Element is an element of a set: its key, for an interval set followed by the first key behind it (or nothing, if it
// ends the key space). Verdict is for verdict maps.
type Element struct {
	Key     string
	Verdict Verdict
}

// AddElements adds elements to a set, in as many messages as it takes.
func (t Table) AddElements(set string, s SetSpec, elements []Element) []nlsock.Message {
	return t.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, set, s, elements)
}

// DeleteElements removes elements from a set. All must be there.
func (t Table) DeleteElements(set string, s SetSpec, elements []Element) []nlsock.Message {
	return t.elements(unix.NFT_MSG_DELSETELEM, 0, set, s, elements)
}

func (t Table) elements(kind, flags uint16, set string, s SetSpec, elements []Element) (msgs []nlsock.Message) {
	// The elements are one attribute, whose length has 16 bits; an element takes less than 1 KiB.
	const full = 60 << 10
	for len(elements) > 0 {
		msgs = append(msgs, t.message(kind, flags, func(b []byte) []byte {
			b = nlsock.AttrString(b, unix.NFTA_SET_ELEM_LIST_SET, set)
			return nlsock.Nest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) []byte {
				for len(elements) > 0 && len(b) < full {
					b = appendElement(b, s, elements[0])
					elements = elements[1:]
				}
				return b
			})
		}))
	}
	return msgs
}

func appendElement(b []byte, s SetSpec, e Element) []byte {
	from := e.Key[:s.Key.Len]
	b = nlsock.Nest(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		b = appendData(b, unix.NFTA_SET_ELEM_KEY, from)
		if s.Verdicts {
			b = nlsock.Nest(b, unix.NFTA_SET_ELEM_DATA, e.Verdict.append)
		}
		return b
	})
	to := e.Key[s.Key.Len:]
	if to == "" {
		return b
	}
	return nlsock.Nest(b, unix.NFTA_LIST_ELEM, func(b []byte) []byte {
		b = nlsock.AttrBE32(b, unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		return appendData(b, unix.NFTA_SET_ELEM_KEY, to)
	})
}

// appendData appends a struct nft_data: a value.
func appendData(b []byte, typ uint16, value string) []byte {
	return nlsock.Nest(b, typ, func(b []byte) []byte { return nlsock.Attr(b, unix.NFTA_DATA_VALUE, []byte(value)) })
}
