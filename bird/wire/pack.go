package wire

import (
	"bytes"
	"encoding/binary"
)

// Packer joins UPDATEs of which each says one thing of some prefixes: that they are reached by certain attributes, or not any
// more. Of a prefix it says the same as it was told, in the same order; of different prefixes the order may be another one.
type Packer struct {
	paths   map[family]bool // by families that are packed: a number goes before each prefix (add-path, RFC 7911)
	groups  map[string]*group
	order   []*group // as they came
	waiting map[nlri]*group
	size    int // of all prefixes that wait, in bytes

	key     []byte  // scratch
	lengths []uint8 // scratch
}

// group is UPDATEs that say the same.
type group struct {
	said
	prefixes []byte
	lengths  []uint8 // of each of prefixes, in bytes
}

// said is an UPDATE but for its prefixes. The zero is that IPv4 prefixes are gone.
type said struct {
	before, after []byte // attributes
	kind, flags   byte   // of the attribute between them that holds the prefixes; 0 if they are where RFC 4271 has them
	head          []byte // what is before the prefixes in that attribute
}

// nlri is a prefix on the wire, with its number.
type nlri [4 + 1 + 16]byte

// maxWaiting bounds the prefixes that wait, in bytes.
const maxWaiting = 16 << 10

// NewPacker packs for one session; v4 and v6 say of which family paths have numbers.
func NewPacker(v4, v6 bool) *Packer {
	return &Packer{
		paths:  map[family]bool{ipv4: v4, ipv6: v6},
		groups: map[string]*group{}, waiting: map[nlri]*group{},
	}
}

// Waiting tells whether there is something to flush.
func (p *Packer) Waiting() bool { return len(p.order) > 0 }

// Add takes a message, which is not kept. If it does not, what waits has to be flushed; and if nothing does, the message is to be
// sent as it is.
func (p *Packer) Add(message []byte) (taken bool) {
	s, f, prefixes, ok := read(message)
	if !ok || !p.split(f, prefixes, MaxLen-s.overhead()) || p.size+len(prefixes) > maxWaiting {
		return false
	}
	p.key = s.appendKey(p.key[:0])
	g := p.groups[string(p.key)]
	if p.each(prefixes, func(n nlri) bool { other := p.waiting[n]; return other == nil || other == g }) != len(p.lengths) {
		return false // of this prefix something else is said first
	}
	if g == nil {
		s, _, _, _ = read(bytes.Clone(message))
		g = &group{said: s}
		p.groups[string(p.key)] = g
		p.order = append(p.order, g)
	}
	p.each(prefixes, func(n nlri) bool { p.waiting[n] = g; return true })
	g.prefixes = append(g.prefixes, prefixes...)
	g.lengths = append(g.lengths, p.lengths...)
	p.size += len(prefixes)
	return true
}

// Flush appends messages that say all that waits.
func (p *Packer) Flush(to []byte) []byte {
	for _, g := range p.order {
		to = g.append(to)
	}
	clear(p.groups)
	clear(p.waiting)
	p.order, p.size = p.order[:0], 0
	return to
}

// split finds where each prefix ends: into lengths. Not ok if they cannot be read, or one is longer than room.
func (p *Packer) split(f family, prefixes []byte, room int) (ok bool) {
	p.lengths = p.lengths[:0]
	numbered, ok := p.paths[f]
	if !ok {
		return false
	}
	number, most := 0, 32
	if numbered {
		number = 4
	}
	if f == ipv6 {
		most = 128
	}
	for len(prefixes) > 0 {
		if len(prefixes) < number+1 || int(prefixes[number]) > most {
			return false
		}
		n := number + 1 + (int(prefixes[number])+7)/8
		if len(prefixes) < n || n > room {
			return false
		}
		p.lengths = append(p.lengths, uint8(n))
		prefixes = prefixes[n:]
	}
	return true
}

// each yields the prefixes of lengths until one is not welcome, and counts those that were.
func (p *Packer) each(prefixes []byte, yield func(nlri) bool) int {
	for i, n := range p.lengths {
		var one nlri
		copy(one[:], prefixes[:n])
		if !yield(one) {
			return i
		}
		prefixes = prefixes[n:]
	}
	return len(p.lengths)
}

// read takes a message apart that says one thing.
func read(message []byte) (s said, f family, prefixes []byte, ok bool) {
	u, ok := parse(message)
	if !ok {
		return s, f, nil, false
	}
	if len(u.withdrawn) > 0 {
		return s, ipv4, u.withdrawn, len(u.attributes) == 0 && len(u.prefixes) == 0
	}
	s.before = u.attributes
	for list := u.attributes; len(list) > 0; {
		kind, value, rest, ok := nextAttribute(list)
		if !ok || s.kind != 0 && (kind == mpReach || kind == mpUnreach) {
			return s, f, nil, false
		}
		switch kind {
		case mpReach:
			f, s.head, prefixes, ok = parseReach(value)
		case mpUnreach:
			f, s.head, prefixes, ok = parseUnreach(value)
		default:
			list = rest
			continue
		}
		if !ok {
			return s, f, nil, false
		}
		s.kind, s.flags = kind, list[0]
		s.before, s.after = u.attributes[:len(u.attributes)-len(list)], rest
		list = rest
	}
	switch s.kind {
	case 0:
		return s, ipv4, u.prefixes, len(u.attributes) > 0 && len(u.prefixes) > 0
	case mpUnreach:
		ok = len(s.before) == 0 && len(s.after) == 0
	}
	return s, f, prefixes, ok && len(u.prefixes) == 0 && len(prefixes) > 0
}

// appendKey appends what tells it from others.
func (s *said) appendKey(key []byte) []byte {
	key = append(key, s.kind)
	for _, part := range [][]byte{s.before, s.head, s.after} {
		key = append(binary.AppendUvarint(key, uint64(len(part))), part...)
	}
	return key
}

// overhead is how long a message is without its prefixes, at most.
func (s *said) overhead() int {
	const lengths, attribute = 2 + 2, 4
	return HeaderLen + lengths + len(s.before) + attribute + len(s.head) + len(s.after)
}

// append appends as few messages as hold all prefixes.
func (g *group) append(to []byte) []byte {
	room := MaxLen - g.overhead()
	prefixes, lengths := g.prefixes, g.lengths
	for len(lengths) > 0 {
		size, n := 0, 0
		for n < len(lengths) && size+int(lengths[n]) <= room {
			size += int(lengths[n])
			n++
		}
		to = g.message(to, prefixes[:size])
		prefixes, lengths = prefixes[size:], lengths[n:]
	}
	return to
}

func (s *said) message(to, prefixes []byte) []byte {
	var u update
	switch {
	case s.kind != 0:
		u.attributes = append(appendAttribute(bytes.Clone(s.before), s.flags, s.kind, s.head, prefixes), s.after...)
	case len(s.before) > 0:
		u.attributes, u.prefixes = s.before, prefixes
	default:
		u.withdrawn = prefixes
	}
	return u.append(to)
}
