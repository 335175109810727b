// Package links keeps the names and indexes of a namespace's network devices, from a listing and from notifications.
// Drivers speak of links by name, since a device may come, go and come back; the kernel speaks of indexes.
package links

import (
	"context"
	"iter"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Link is one device.
type Link struct {
	Index int
	Name  string
	Up    bool // administratively
}

// Table is the known devices. The zero value is empty and ready to use; it is not safe for concurrent use.
type Table struct {
	byIndex map[int]Link
	byName  map[string]int
}

// Load replaces what is known by what the kernel lists.
func (t *Table) Load(ctx context.Context, c *nlsock.Conn) error {
	clear := func() { t.byIndex, t.byName = map[int]Link{}, map[string]int{} }
	clear()
	body := make([]byte, unix.SizeofIfInfomsg)
	return c.Dump(ctx, nlsock.Message{Type: unix.RTM_GETLINK, Body: body}, clear, func(kind uint16, body []byte) error {
		t.On(kind, body)
		return nil
	})
}

// Change is what a notification said: the device before and after it; the zero Link where there is none.
type Change struct {
	Before, After Link
}

// On takes in an RTM_NEWLINK or RTM_DELLINK message. ok is false if it says nothing about name, index or state.
func (t *Table) On(kind uint16, body []byte) (c Change, ok bool) {
	if len(body) < unix.SizeofIfInfomsg || body[0] != unix.AF_UNSPEC {
		return Change{}, false // AF_BRIDGE: a bridge lost or gained a port, the device itself is unchanged
	}
	l := Link{Index: int(int32(nlsock.U32(body[4:]))), Up: nlsock.U32(body[8:])&unix.IFF_UP != 0}
	for typ, v := range nlsock.Attrs(body[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_IFNAME {
			l.Name = nlsock.CString(v)
		}
	}
	if t.byIndex == nil {
		t.byIndex, t.byName = map[int]Link{}, map[string]int{}
	}
	before := t.byIndex[l.Index]
	if before.Index != 0 && t.byName[before.Name] == before.Index {
		delete(t.byName, before.Name)
	}
	delete(t.byIndex, l.Index)
	if kind == unix.RTM_DELLINK {
		return Change{Before: before}, before.Index != 0
	}
	t.byIndex[l.Index], t.byName[l.Name] = l, l.Index
	return Change{Before: before, After: l}, before != l
}

// ByName finds a device.
func (t *Table) ByName(name string) (Link, bool) {
	i, ok := t.byName[name]
	return t.byIndex[i], ok
}

// Names yields the names of all devices, in no order.
func (t *Table) Names() iter.Seq[string] { return maps.Keys(t.byName) }

// Name is the name of the device with an index, "" if it is not known.
func (t *Table) Name(index int) string { return t.byIndex[index].Name }
