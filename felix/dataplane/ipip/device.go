package ipip

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

// Names of devices besides tunl0.
const (
	// PeerDevice is the other end of tunl0 in BPF. Nothing comes out of it.
	PeerDevice = "tunl0.peer"
	// FallbackDevice is what the module's own tunl0 is called while BPF needs its name.
	FallbackDevice = "tunl0.module"
)

// alias says to people whose a device is.
const alias = "IP-in-IP of felix"

// owner is whose a tunl0 is.
type owner uint8

const (
	nobodys owner = iota // it is not there
	kernels              // of the module ipip, by whomever: any tunl0 of it without a remote end serves
	ours                 // one end of the veth pair that BPF needs
	foreign
)

// look finds tunl0 and whose it is. A foreign one is an error that names it.
func (d *Driver) look() (netlink.Link, owner, error) {
	link, err := d.find(desired.IPIPDevice)
	if err != nil {
		return nil, nobodys, err
	}
	switch l := link.(type) {
	case nil:
		d.repairs.Forget(desired.IPIPDevice)
		return nil, nobodys, nil
	case *netlink.Iptun:
		if l.Remote.To4() == nil || l.Remote.To4().Equal(net.IPv4zero) {
			return link, kernels, nil
		}
	case *netlink.Veth:
		if peer, err := d.find(PeerDevice); err != nil {
			return nil, foreign, err
		} else if peer != nil && peer.Attrs().Index == l.ParentIndex {
			return link, ours, nil
		}
	}
	return link, foreign, nil
}

func (d *Driver) find(name string) (netlink.Link, error) {
	link, err := d.handle.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return link, nil
}

func foreignError(link netlink.Link) error {
	what := "of type " + link.Type()
	if l, ok := link.(*netlink.Iptun); ok {
		what += fmt.Sprintf(" with the remote end %s", l.Remote)
	}
	return &dataplane.ForeignDeviceError{
		Device: link.Attrs().Name, Is: what, Alias: link.Attrs().Alias, Instead: "ipipMode to Never on the pools",
	}
}

// remove takes away what serves IP-in-IP. The device that the module made for itself cannot be removed: it is left down
// and without address.
func (d *Driver) remove() error {
	link, whose, err := d.look()
	if err != nil {
		return err
	}
	d.programs.close()
	d.programs = nil
	d.encaps.ReplaceActual(nil)
	d.decaps.ReplaceActual(nil)
	err = d.detach()
	switch whose {
	case ours:
		err = errors.Join(err, d.delete(link))
	case kernels:
		err = errors.Join(err, d.removeKernel(link))
	case nobodys:
		err = errors.Join(err, d.removePeer())
	}
	return err
}

// removePeer removes our veth pair if its end tunl0 was renamed.
func (d *Driver) removePeer() error {
	peer, err := d.find(PeerDevice)
	if err != nil || peer == nil || peer.Type() != "veth" {
		return err
	}
	return d.delete(peer)
}

func (d *Driver) delete(link netlink.Link) error {
	return d.repair("remove device "+link.Attrs().Name, func() error { return gone(d.handle.LinkDel(link)) })
}

// removeKernel removes a tunl0 of the module if it can be, else it is put to rest.
func (d *Driver) removeKernel(link netlink.Link) error {
	index := link.Attrs().Index
	if d.left != index {
		// The kernel takes the order to remove its fallback device, and does nothing.
		if err := d.delete(link); err != nil {
			return err
		}
		still, err := d.find(desired.IPIPDevice)
		if err != nil || still == nil || still.Attrs().Index != index {
			return err
		}
		d.left = index
		d.cfg.Log.Info("tunl0 belongs to the kernel module ipip and cannot be removed; it is left down and without address",
			"choices", "unload the module, or set the sysctl net.core.fb_tunnels_only_for_init_net=2 before it is loaded")
	}
	if err := d.setAddress(link, netip.Addr{}); err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return nil
	}
	return d.repair("set tunl0 down", func() error { return d.handle.LinkSetDown(link) })
}

// repair does something that is due on a device, unless that is undone again and again.
func (d *Driver) repair(what string, change func() error) error {
	if d.want == nil || d.dry {
		return d.do(what, change)
	}
	return d.repairs.Do(desired.IPIPDevice, *d.want, what, func() error { return d.do(what, change) })
}

// setUp gives a device its MTU, its one address, its alias, and takes it up. With that tunl0 is as wanted.
func (d *Driver) setUp(link netlink.Link, want desired.IPIP) error {
	at := link.Attrs()
	var errs []error
	if want.MTU != 0 && at.MTU != want.MTU {
		errs = append(errs, d.repair(fmt.Sprintf("set MTU of %s to %d", at.Name, want.MTU), func() error { return d.handle.LinkSetMTU(link, want.MTU) }))
	}
	if at.Alias == "" {
		errs = append(errs, d.repair("set alias of "+at.Name, func() error { return d.handle.LinkSetAlias(link, alias) }))
	}
	err := errors.Join(append(errs, d.setAddress(link, want.Address), d.takeUp(link))...)
	if err == nil && !d.dry {
		d.repairs.Done(desired.IPIPDevice, want)
	}
	return err
}

func (d *Driver) takeUp(link netlink.Link) error {
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return d.repair("set "+link.Attrs().Name+" up", func() error { return d.handle.LinkSetUp(link) })
}

// setAddress leaves the wanted address as the only one.
func (d *Driver) setAddress(link netlink.Link, want netip.Addr) error {
	list, err := dump.Whole(func() ([]netlink.Addr, error) { return d.handle.AddrList(link, netlink.FAMILY_V4) })
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list addresses: %w", err)
	}
	found := false
	for _, a := range list {
		have, _ := netip.AddrFromSlice(a.IP)
		if ones, _ := a.Mask.Size(); want.IsValid() && have.Unmap() == want && ones == want.BitLen() {
			found = true
			continue
		}
		if err := d.repair("remove address "+a.IPNet.String(), func() error { return gone(d.handle.AddrDel(link, &a)) }); err != nil {
			return err
		}
	}
	if found || !want.IsValid() {
		return nil
	}
	return d.repair("add address "+want.String(), func() error {
		err := d.handle.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: want.AsSlice(), Mask: net.CIDRMask(want.BitLen(), want.BitLen())}})
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	})
}
