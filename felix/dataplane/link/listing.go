package link

import (
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/muslin-net/muslin/internal/dump"
)

// listing is what one Apply reads of all links, once and when it first asks: with a listing for each link, those of a node of a
// thousand pods would be a million answers, and pods that start meanwhile would overtake them.
type listing struct {
	addrs  func() (map[int][]netlink.Addr, error) // single addresses, by the index of their link
	queues func() (map[int]*netlink.Tbf, error)   // our root queues, by the index of their link
}

func newListing(h *netlink.Handle) listing {
	return listing{
		addrs:  sync.OnceValues(func() (map[int][]netlink.Addr, error) { return singleAddresses(h) }),
		queues: sync.OnceValues(func() (map[int]*netlink.Tbf, error) { return queuesOf(h) }),
	}
}

func singleAddresses(h *netlink.Handle) (map[int][]netlink.Addr, error) {
	all, err := dump.Whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	out := map[int][]netlink.Addr{}
	for _, a := range all {
		if prefixOf(a.IPNet).IsSingleIP() {
			out[a.LinkIndex] = append(out[a.LinkIndex], a)
		}
	}
	return out, err
}

// queuesOf are our root queues in a namespace, by the index of their link.
func queuesOf(h *netlink.Handle) (map[int]*netlink.Tbf, error) {
	all, err := dump.Whole(func() ([]netlink.Qdisc, error) { return h.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("queues: %w", err)
	}
	out := map[int]*netlink.Tbf{}
	for _, q := range all {
		if tbf, ok := q.(*netlink.Tbf); ok && tbf.Handle == shapeHandle && tbf.Parent == netlink.HANDLE_ROOT {
			out[tbf.LinkIndex] = tbf
		}
	}
	return out, nil
}
