package ipip

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/internal/dump"
)

// hook is where a program is attached: on a device with a qdisc clsact, in one direction.
type hook struct {
	program  string // name in the object file, by which the filter is known
	parent   uint32
	protocol uint16
}

var (
	outHook = hook{"ipip_out", netlink.HANDLE_MIN_EGRESS, unix.ETH_P_ALL}
	inHook  = hook{"ipip_in", netlink.HANDLE_MIN_INGRESS, unix.ETH_P_IP}
)

// Filters of others on the parent are told from ours by priority, handle and name.
const (
	filterPriority = 80 // also the protocol number of our routes
	filterHandle   = 1
)

func (h hook) filter(index int, p *programs) *netlink.BpfFilter {
	program := p.out
	if h == inHook {
		program = p.in
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: h.parent, Handle: filterHandle, Priority: filterPriority, Protocol: h.protocol,
		},
		Fd: program.FD(), Name: h.program, DirectAction: true,
	}
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// classifier is the qdisc of a device that can bear filters: of type clsact or, for the way in only, ingress; nil if it
// has none.
func (d *Driver) classifier(link netlink.Link) (netlink.Qdisc, error) {
	list, err := dump.Whole(func() ([]netlink.Qdisc, error) { return d.handle.QdiscList(link) })
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list qdiscs of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range list {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT {
			return q, nil
		}
	}
	return nil, nil
}

// attached is our filter at a hook of a device, nil if there is none.
func (d *Driver) attached(link netlink.Link, at hook) (*netlink.BpfFilter, error) {
	list, err := d.filters(link, at.parent)
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		if bpf, ok := f.(*netlink.BpfFilter); ok && bpf.Name == at.program &&
			bpf.Priority == filterPriority && bpf.Handle == filterHandle && bpf.Protocol == at.protocol {
			return bpf, nil
		}
	}
	return nil, nil
}

func (d *Driver) filters(link netlink.Link, parent uint32) ([]netlink.Filter, error) {
	list, err := dump.Whole(func() ([]netlink.Filter, error) { return d.handle.FilterList(link, parent) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil // no qdisc to bear any
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	return list, nil
}

// attach makes our program the one at a hook of a device.
func (d *Driver) attach(link netlink.Link, at hook) error {
	q, err := d.classifier(link)
	if err != nil {
		return err
	}
	name := link.Attrs().Name
	if q != nil && at == outHook && q.Type() != "clsact" { // only on tunl0, which is ours
		if err := d.do("remove qdisc "+q.Type()+" from "+name, func() error { return d.handle.QdiscDel(q) }); err != nil {
			return err
		}
		q = nil
	}
	if q == nil {
		if err := d.do("add qdisc clsact to "+name, func() error { return d.handle.QdiscAdd(clsact(link.Attrs().Index)) }); err != nil {
			return err
		}
	}
	have, err := d.attached(link, at)
	if err != nil {
		return err
	}
	want := d.programs.outID
	if at == inHook {
		want = d.programs.inID
	}
	if have != nil && have.DirectAction && have.Id == int(want) {
		return nil
	}
	return d.do("attach program "+at.program+" to "+name, func() error {
		return d.handle.FilterReplace(at.filter(link.Attrs().Index, d.programs))
	})
}

// detach removes our filters of the way in from all devices but some, and the qdisc of each where it bears no other.
func (d *Driver) detach(except ...int) error {
	list, err := dump.Whole(func() ([]netlink.Qdisc, error) { return d.handle.QdiscList(nil) })
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	var errs []error
	for _, q := range list {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT && !slices.Contains(except, q.Attrs().LinkIndex) {
			errs = append(errs, d.detachFrom(q))
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) detachFrom(q netlink.Qdisc) error {
	link, err := d.handle.LinkByIndex(q.Attrs().LinkIndex)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil
	} else if err != nil {
		return err
	}
	ours, err := d.attached(link, inHook)
	if err != nil || ours == nil {
		return err
	}
	name := link.Attrs().Name
	if err := d.do("detach program "+inHook.program+" from "+name, func() error { return gone(d.handle.FilterDel(ours)) }); err != nil {
		return err
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if others, err := d.filters(link, parent); err != nil || len(others) > 0 {
			return err
		}
	}
	if q.Type() != "clsact" {
		return nil // not of our making
	}
	return d.do("remove qdisc clsact from "+name, func() error { return gone(d.handle.QdiscDel(q)) })
}

// gone makes of the failure to remove what is not there a success.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}
