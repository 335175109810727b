package ipip

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// ensureKernel makes tunl0 of the module ipip as wanted.
func (d *Driver) ensureKernel(want desired.IPIP) error {
	link, whose, err := d.look()
	if err != nil {
		return err
	}
	if whose == foreign {
		return foreignError(link)
	}
	if err := d.detach(); err != nil {
		return err
	}
	if whose == ours {
		if err := d.delete(link); err != nil {
			return err
		}
	}
	if whose != kernels {
		if link, err = d.createKernel(want); err != nil {
			return err
		}
	}
	d.watch(link)
	if err := d.setLocal(link.(*netlink.Iptun), want); err != nil {
		return err
	}
	return d.setUp(link, want)
}

// device is tunl0 as we make it. With a local address it takes packets to that one, and can be removed again; without, it
// would be a second fallback device, which takes none. The TTL is that of the inner packet, as there: a fixed one would
// make the kernel set DF always.
func device(want desired.IPIP) *netlink.Iptun {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = desired.IPIPDevice, want.MTU
	const inherit = 1
	return &netlink.Iptun{LinkAttrs: attrs, Local: want.Local.AsSlice(), Tos: inherit}
}

func (d *Driver) createKernel(want desired.IPIP) (netlink.Link, error) {
	err := d.do("create device tunl0", func() error {
		err := withoutFallback(func() error { return d.handle.LinkAdd(device(want)) })
		if errors.Is(err, unix.EEXIST) {
			return nil // the module was loaded by this, and made its own
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	link, whose, err := d.look()
	if err != nil {
		return nil, err
	}
	if whose != kernels {
		return nil, errors.New("tunl0 vanished while it was set up")
	}
	return link, nil
}

// setLocal follows the node's address. The fallback device has none: it sends from the address that the route to the
// other node prefers.
func (d *Driver) setLocal(link *netlink.Iptun, want desired.IPIP) error {
	if link.Local == nil || link.Local.IsUnspecified() || link.Local.Equal(want.Local.AsSlice()) {
		return nil
	}
	return d.repair(fmt.Sprintf("set local address of tunl0 to %s", want.Local), func() error {
		return d.handle.LinkModify(device(want)) // by name: with an index it would also be a renaming, refused while it is up
	})
}
