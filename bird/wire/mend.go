package wire

import (
	"encoding/binary"
	"slices"
)

// Mended is what Mend has found.
type Mended uint8

const (
	// Sound says that attributes end where they should. What is in them was not looked at.
	Sound Mended = iota
	// Withdrawn says that the routes of the UPDATE are taken back.
	Withdrawn
	// Unreadable says that nobody can tell which routes it is about: that costs the session.
	Unreadable
)

// Mend reads a message that may be an UPDATE whose attributes reach beyond the end of their list, into the prefixes or beyond
// the end of the message. RFC 7606 section 4 has such an UPDATE withdraw its routes; its section 5.2 has it cost the session if it
// names none, since attributes that were not read may hold some. The message that Mend returns says that to anyone who knows but
// RFC 4271; a sound one is returned as it is.
func Mend(message []byte) ([]byte, Mended) {
	in, ok := parse(message)
	if !ok {
		return message, Sound // that lengths which do not fit cost the session is known to all
	}
	var reach, unreach []byte // their values
	for list := in.attributes; len(list) > 0; {
		kind, value, rest, ok := nextAttribute(list)
		if !ok {
			if out, ok := in.withdraw(reach, unreach); ok {
				return out, Withdrawn
			}
			return in.spoiled(message), Unreadable
		}
		switch kind {
		case mpReach:
			reach = value
		case mpUnreach:
			unreach = value
		}
		list = rest
	}
	return message, Sound
}

// withdraw takes back all routes of an UPDATE, of which MP_REACH_NLRI and MP_UNREACH_NLRI, if any, have these values; not ok if
// no route is found that it announces.
func (u *update) withdraw(reach, unreach []byte) (message []byte, ok bool) {
	family, _, gone, readable := parseReach(reach)
	switch {
	case reach == nil && len(u.prefixes) == 0, reach != nil && !readable:
		return nil, false
	case unreach != nil:
		other, _, more, readable := parseUnreach(unreach)
		if !readable || reach != nil && other != family {
			return nil, false
		}
		family, gone = other, slices.Concat(gone, more)
	}
	out := update{withdrawn: slices.Concat(u.withdrawn, u.prefixes)}
	if reach != nil || unreach != nil {
		out.attributes = appendAttribute(nil, optional, mpUnreach, family[:], gone)
	}
	return out.append(nil), true
}

// spoiled is the message with attributes that are longer than it is.
func (u *update) spoiled(message []byte) []byte {
	out, at := slices.Clone(message), HeaderLen+2+len(u.withdrawn)
	out[at], out[at+1] = 255, 255
	return out
}

// Withhold takes routes back that must not leave: what it makes of an UPDATE of which a large community (RFC 8092) is of this
// AS number withdraws the same routes. Any other message is returned as it is.
func Withhold(message []byte, as uint32) []byte {
	in, ok := parse(message)
	if !ok {
		return message
	}
	var reach, unreach []byte
	marked := false
	for list := in.attributes; len(list) > 0; {
		kind, value, rest, ok := nextAttribute(list)
		if !ok {
			return message
		}
		switch kind {
		case mpReach:
			reach = value
		case mpUnreach:
			unreach = value
		case largeCommunities:
			for ; len(value) >= largeCommunity; value = value[largeCommunity:] {
				marked = marked || binary.BigEndian.Uint32(value) == as
			}
		}
		list = rest
	}
	if marked {
		if out, ok := in.withdraw(reach, unreach); ok {
			return out
		}
	}
	return message
}
