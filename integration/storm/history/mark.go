package history

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Objects that a storm writes tell in their content which write they are of: their mark, which grows with each write of the
// object, also over its deletion. Marks travel into views in what is there anyway: the container of an endpoint and the
// annotation of a policy's rule have the number, nets of sets and IPv6 addresses of nodes are addresses made of it.

// Annotation is the key of a rule's annotation that has the mark of its policy.
const Annotation = "storm/mark"

// marked is the range of addresses that are marks.
var marked = netip.MustParsePrefix("fd6d:6172:6b00::/48")

// Address is the mark of an object that is known by a number.
func Address(object uint16, mark uint64) netip.Addr {
	a := marked.Addr().As16()
	binary.BigEndian.PutUint16(a[6:], object)
	binary.BigEndian.PutUint64(a[8:], mark)
	return netip.AddrFrom16(a)
}

// Numbered is what an object is called that marks its content by an address.
func Numbered(object uint16) string { return fmt.Sprintf("object %d", object) }

// twice is the mark of an object of which one item shows two at a time.
const twice = 0

func (it *Item) markAddress(a netip.Addr) {
	if !marked.Contains(a) {
		return
	}
	b := a.As16()
	object, mark := Numbered(binary.BigEndian.Uint16(b[6:])), binary.BigEndian.Uint64(b[8:])
	if _, again := it.Marks[object]; again {
		mark = twice
	}
	it.Marks[object] = mark
}

// Pod is the name of a pod that tells its node, for OwnerOf.
func Pod(name, node string) string { return name + "." + node }

// OwnerOf is the node that a name made by Pod tells; empty if it tells none.
func OwnerOf(name string) string {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[i+1:]
	}
	return ""
}
