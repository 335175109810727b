package wire

import (
	"math"
	"net/netip"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/muslin-net/muslin/api/view"
)

// Sets are nearly all of what a node decodes: thousands of members, each of two messages. Read field by field they cost a
// tenth of what they cost through the messages' types. Whatever is not plain (unknown fields, repeated ones, values out
// of range) is left to the general way, which knows what to make of it and what to say.

// fields walks over the fields of a message; it returns false if one of them is not as take wants it.
func fields(b []byte, take func(num protowire.Number, value []byte, number uint64) bool) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		var value []byte
		var number uint64
		switch typ {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(b)
			if value == nil {
				value = []byte{} // tells it from a number
			}
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		default:
			return false
		}
		if n < 0 || !take(num, value, number) {
			return false
		}
		b = b[n:]
	}
	return true
}

// decodePlainSet reads an Item that holds a plain IpSet; ok is false for everything else.
func decodePlainSet(b []byte) (it Item, ok bool) {
	var id, version, body []byte
	plain := fields(b, func(num protowire.Number, value []byte, _ uint64) bool {
		switch {
		case num == 1 && value != nil && id == nil:
			id = value
		case num == 2 && value != nil && version == nil:
			version = value
		case num == 13 && value != nil && body == nil:
			body = value
		default:
			return false
		}
		return true
	})
	if !plain || body == nil || len(version) != len(it.Version) || !utf8.Valid(id) {
		return Item{}, false
	}
	set := view.IPSet{ID: string(id)}
	if !plainSet(body, &set, &it.More) {
		return Item{}, false
	}
	it.Item, it.Version = set, view.Version(version)
	return it, true
}

func plainSet(b []byte, set *view.IPSet, more *bool) bool {
	count := 0
	if !fields(b, func(num protowire.Number, value []byte, number uint64) bool {
		switch {
		case num == 1 && value == nil && (number == uint64(view.SetNet) || number == uint64(view.SetIPPort)):
			set.Type = view.SetType(number)
		case num == 2 && value != nil:
			count++
		case num == 3 && value == nil && number <= 1:
			*more = number == 1
		default:
			return false
		}
		return true
	}) || set.Type == 0 {
		return false
	}
	if count == 0 {
		return true
	}
	set.Members = make([]view.Member, 0, count)
	return fields(b, func(num protowire.Number, value []byte, _ uint64) bool {
		if num != 2 {
			return true
		}
		m, ok := plainMember(value)
		set.Members = append(set.Members, m)
		return ok
	})
}

func plainMember(b []byte) (m view.Member, ok bool) {
	var prefix []byte
	ok = fields(b, func(num protowire.Number, value []byte, number uint64) bool {
		switch {
		case num == 1 && value != nil && prefix == nil:
			prefix = value
		case num == 2 && value == nil && number <= math.MaxUint8:
			m.Protocol = view.Protocol(number)
		case num == 3 && value == nil && number <= math.MaxUint16:
			m.Port = uint16(number)
		default:
			return false
		}
		return true
	})
	if !ok || prefix == nil {
		return m, false
	}
	var addr netip.Addr
	var length uint64
	ok = fields(prefix, func(num protowire.Number, value []byte, number uint64) bool {
		switch {
		case num == 1 && value != nil && !addr.IsValid():
			a, isAddr := netip.AddrFromSlice(value)
			addr = a
			return isAddr && !a.Is4In6()
		case num == 2 && value == nil && number <= 128:
			length = number
		default:
			return false
		}
		return true
	})
	if !ok || !addr.IsValid() || length > uint64(addr.BitLen()) {
		return m, false
	}
	m.Prefix = netip.PrefixFrom(addr, int(length))
	return m, m.Prefix == m.Prefix.Masked()
}
