package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/dump"
)

// load reads our devices and all that is on them.
func (d *Driver) load() error {
	vxlans, index := map[string]desired.VXLAN{}, map[string]int{}
	links, err := dump.Whole(d.handle.LinkList)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	names, foreign := map[int]string{}, map[string]netlink.Link{}
	for _, l := range links {
		if ours(l.Attrs().Name) && !isVXLAN(l) {
			foreign[l.Attrs().Name] = l // what is on it is no more ours than the device
			continue
		}
		names[l.Attrs().Index] = l.Attrs().Name
		index[l.Attrs().Name] = l.Attrs().Index
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && ours(v.Name) {
			vxlans[v.Name] = d.describe(v, names)
		}
	}
	d.index, d.foreign = index, foreign
	neighbors, fdb, err := d.listEntries(names)
	if err != nil {
		return err
	}
	d.vxlans.ReplaceActual(vxlans)
	d.neighbors.ReplaceActual(neighbors)
	d.fdb.ReplaceActual(fdb)
	return nil
}

func isVXLAN(l netlink.Link) bool {
	_, ok := l.(*netlink.Vxlan)
	return ok
}

func foreignError(l netlink.Link) error {
	return &dataplane.ForeignDeviceError{
		Device: l.Attrs().Name, Is: "of type " + l.Type(), Alias: l.Attrs().Alias, Instead: "vxlanMode to Never on the pools",
	}
}

// describe is a device as it is. What makes it unusable (learning, down, several addresses) shows as a difference in the
// field that Apply would repair it by.
func (d *Driver) describe(v *netlink.Vxlan, names map[int]string) desired.VXLAN {
	at := v.Attrs()
	if v.Learning {
		return desired.VXLAN{Name: at.Name} // nothing agrees: it is made anew
	}
	out := desired.VXLAN{
		Name: at.Name, VNI: v.VxlanId, Port: uint16(v.Port), Local: addrOf(v.SrcAddr), Parent: names[v.VtepDevIndex],
		MTU: at.MTU,
	}
	copy(out.MAC[:], at.HardwareAddr)
	if want, ok := d.vxlans.Desired(at.Name); ok {
		out.Offload = d.offload.describe(at.Name, want.Offload)
	}
	if at.Flags&net.FlagUp == 0 {
		out.MTU = 0
	}
	if list, err := d.addresses(v); err == nil && len(list) == 1 && list[0].IsSingleIP() {
		out.Address = list[0].Addr()
	}
	return out
}

func (d *Driver) addresses(l netlink.Link) ([]netip.Prefix, error) {
	list, err := dump.Whole(func() ([]netlink.Addr, error) { return d.handle.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		if ones, _ := a.Mask.Size(); !a.IP.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(addrOf(a.IP), ones))
		}
	}
	return out, nil
}

func (d *Driver) listEntries(names map[int]string) (map[desired.NeighborKey]desired.MAC, map[desired.FDBKey]netip.Addr, error) {
	neighbors, fdb := map[desired.NeighborKey]desired.MAC{}, map[desired.FDBKey]netip.Addr{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := dump.Whole(func() ([]netlink.Neigh, error) { return d.handle.NeighList(0, family) })
		if err != nil {
			return nil, nil, err
		}
		for _, e := range list {
			k := desired.NeighborKey{Link: names[e.LinkIndex], Addr: addrOf(e.IP)}
			_, wanted := d.neighbors.Desired(k)
			if e.State&netlink.NUD_PERMANENT != 0 && (ours(k.Link) || wanted) {
				neighbors[k] = macOf(e.HardwareAddr)
			}
		}
	}
	for _, name := range devices {
		if d.index[name] == 0 {
			continue
		}
		list, err := dump.Whole(func() ([]netlink.Neigh, error) { return d.handle.NeighList(d.index[name], unix.AF_BRIDGE) })
		if err != nil {
			return nil, nil, err
		}
		for _, e := range list {
			if remote, ok := fdbOf(e); ok {
				fdb[desired.FDBKey{Link: name, MAC: macOf(e.HardwareAddr)}] = remote
			}
		}
	}
	return neighbors, fdb, nil
}

// fdbOf is the tunnel end of a forwarding entry; ok is false if it is none of ours.
func fdbOf(e netlink.Neigh) (remote netip.Addr, ok bool) {
	remote = addrOf(e.IP)
	return remote, e.State&netlink.NUD_PERMANENT != 0 && e.Flags&netlink.NTF_SELF != 0 && remote.IsValid()
}

func macOf(hw net.HardwareAddr) (m desired.MAC) {
	copy(m[:], hw)
	return m
}

// doing changes something of a device. What is said to be done is in the infinitive.
type doing func(what string, change func() error) error

// ensure makes a device as wanted: repaired where the kernel can, else made anew.
func (d *Driver) ensure(want desired.VXLAN) error {
	if l := d.foreign[want.Name]; l != nil {
		return foreignError(l)
	}
	have, exists := d.vxlans.Actual(want.Name)
	if exists && !repairable(have, want) {
		anew := fmt.Sprintf("make it anew with VNI %d, port %d, local address %s, MAC address %s and no learning on %s",
			want.VNI, want.Port, want.Local, want.MAC, want.Parent)
		if err := d.repairs.Do(want.Name, want, anew, func() error { return d.deleteDevice(want.Name) }); err != nil {
			return err
		}
		exists = false
	}
	made := !exists
	if made {
		if err := d.create(want); err != nil {
			return err
		}
	}
	link, err := d.handle.LinkByName(want.Name)
	if err != nil {
		return fmt.Errorf("device vanished while it was set up: %w", err)
	}
	d.index[want.Name] = link.Attrs().Index
	// A device that was made a moment ago is still being made; what one lacks that was there is put back.
	do := func(what string, change func() error) error {
		write := func() error {
			if err := d.write(change()); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		}
		if made {
			return write()
		}
		return d.repairs.Do(want.Name, want, what, write)
	}
	var errs []error
	if link.Attrs().MTU != want.MTU {
		errs = append(errs, do(fmt.Sprintf("set MTU %d", want.MTU), func() error { return d.handle.LinkSetMTU(link, want.MTU) }))
	}
	errs = append(errs, d.offload.set(want.Name, want.Offload, do), d.setAddress(link, want.Address, do))
	if link.Attrs().Flags&net.FlagUp == 0 {
		errs = append(errs, do("set up", func() error { return d.handle.LinkSetUp(link) }))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.vxlans.SetActual(want.Name, want)
	d.repairs.Done(want.Name, want)
	return nil
}

// repairable tells whether two devices differ only in what the kernel can change in place.
func repairable(have, want desired.VXLAN) bool {
	have.MTU, have.Address, have.Offload = want.MTU, want.Address, want.Offload
	return have == want
}

func (d *Driver) create(want desired.VXLAN) error {
	parent, err := d.handle.LinkByName(want.Parent)
	if err != nil {
		return fmt.Errorf("parent device %s: %w", want.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = want.Name, hardware(want.MAC), want.MTU
	err = d.write(d.handle.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: want.VNI, Port: int(want.Port), SrcAddr: want.Local.AsSlice(),
		VtepDevIndex: parent.Attrs().Index, Learning: false,
	}))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.New("kernel has no vxlan; load the module vxlan, or use pools without vxlanMode")
	}
	if errors.Is(err, unix.EEXIST) {
		if other := d.sameVNI(want); other != "" {
			return fmt.Errorf("%w: the device %s has VNI %d on port %d already; remove it, or set vxlanVNI or vxlanPort in the FelixConfiguration", err, other, want.VNI, want.Port)
		}
	}
	if err != nil {
		return fmt.Errorf("create device with VNI %d, port %d on %s: %w", want.VNI, want.Port, want.Parent, err)
	}
	return nil
}

// sameVNI is another's device that takes the packets which are for ours, empty if there is none.
func (d *Driver) sameVNI(want desired.VXLAN) string {
	links, err := dump.Whole(d.handle.LinkList)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return ""
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.Name != want.Name && v.VxlanId == want.VNI && v.Port == int(want.Port) {
			return v.Name
		}
	}
	return ""
}

// setAddress leaves the wanted address as the only one.
func (d *Driver) setAddress(link netlink.Link, want netip.Addr, do doing) error {
	list, err := d.addresses(link)
	if err != nil {
		return err
	}
	found := false
	for _, a := range list {
		if want.IsValid() && a == netip.PrefixFrom(want, want.BitLen()) {
			found = true
			continue
		}
		if err := do("remove address "+a.String(), func() error { return unless(unix.EADDRNOTAVAIL, d.handle.AddrDel(link, address(a))) }); err != nil {
			return err
		}
	}
	if found || !want.IsValid() {
		return nil
	}
	return do("add address "+want.String(), func() error {
		return unless(unix.EEXIST, d.handle.AddrAdd(link, address(netip.PrefixFrom(want, want.BitLen()))))
	})
}

// unless is an error, or nothing where it says no more than that it is so already.
func unless(so unix.Errno, err error) error {
	if errors.Is(err, so) {
		return nil
	}
	return err
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody else has it; until that is found out the node would speak from another address
	}
	return a
}

// deleteDevice removes a device, and with it, in our books as in the kernel, what was on it.
func (d *Driver) deleteDevice(name string) error {
	link, err := d.handle.LinkByName(name)
	if err == nil && isVXLAN(link) {
		err = d.gone(d.handle.LinkDel(link))
	} else if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("remove device: %w", err)
	}
	d.forget(name)
	return nil
}

// forget takes a device that is gone out of the books.
func (d *Driver) forget(name string) {
	d.vxlans.DeleteActual(name)
	delete(d.index, name)
	for k := range d.neighbors.AllActual() {
		if k.Link == name {
			d.neighbors.DeleteActual(k)
		}
	}
	for k := range d.fdb.AllActual() {
		if k.Link == name {
			d.fdb.DeleteActual(k)
		}
	}
}
