package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
)

// IPIP keeps tunl0, the kernel's own IP-in-IP device: it belongs to the module, so it is neither made nor removed, only
// set up with exactly one address while it is wanted, and without any when it is not. A kernel without the module is a
// *CapabilityError.
type IPIP struct {
	handle *netlink.Handle

	mu     sync.Mutex // guards the following
	want   *desired.IPIP
	dirty  bool
	err    error // of the last attempt
	writes uint64
}

// NewIPIP opens the driver on the caller's network namespace.
func NewIPIP() (*IPIP, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("IP-in-IP driver: %w", err)
	}
	return &IPIP{handle: h}, nil
}

// Close releases the driver's socket; the device stays as it is.
func (d *IPIP) Close() error {
	d.handle.Close()
	return nil
}

// Writes counts the changes sent to the kernel since NewIPIP.
func (d *IPIP) Writes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// Update takes a change of the desired device. There is one, tunl0.
func (d *IPIP) Update(c desired.Delta[string, desired.IPIP]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, gone := c.Removed[desired.IPIPDevice]; gone {
		d.want, d.dirty = nil, true
	}
	if want, ok := c.Set[desired.IPIPDevice]; ok {
		d.want, d.dirty = &want, true
	}
}

// Whole says that Update was told everything: if no device is wanted, addresses that an earlier felix left are removed.
func (d *IPIP) Whole() { d.Resync() }

// Resync makes the next Apply look at the device.
func (d *IPIP) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = true
}

// Apply sets the device up as desired. What failed stays due.
func (d *IPIP) Apply(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.dirty {
		return nil
	}
	d.err = d.apply()
	if d.err != nil {
		return &dataplane.ObjectError{Object: dataplane.Object{Kind: dataplane.KindLink, Key: desired.IPIPDevice}, Err: d.err}
	}
	d.dirty = false
	return nil
}

func (d *IPIP) apply() error {
	link, err := d.handle.LinkByName(desired.IPIPDevice)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing) && d.want == nil:
		return nil
	case errors.As(err, &missing):
		if err := ProbeIPIP(); err != nil { // this also loads the module
			return err
		}
		if link, err = d.handle.LinkByName(desired.IPIPDevice); err != nil {
			return fmt.Errorf("%w although the kernel has IP-in-IP; is net.core.fb_tunnels_only_for_init_net set?", err)
		}
	case err != nil:
		return err
	}
	if link.Type() != "ipip" {
		return fmt.Errorf("the device is of type %s, not ipip; remove or rename it", link.Type())
	}
	return d.setUp(link)
}

func (d *IPIP) setUp(link netlink.Link) error {
	list, err := d.handle.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var address netip.Addr
	if d.want != nil {
		address = d.want.Address
	}
	found := false
	for _, a := range list {
		if ones, _ := a.Mask.Size(); address.IsValid() && addrOf(a.IP) == address && ones == address.BitLen() {
			found = true
			continue
		}
		if err := d.write(d.handle.AddrDel(link, &a)); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	if d.want == nil {
		return nil
	}
	if d.want.MTU != 0 && link.Attrs().MTU != d.want.MTU {
		if err := d.write(d.handle.LinkSetMTU(link, d.want.MTU)); err != nil {
			return fmt.Errorf("set MTU %d: %w", d.want.MTU, err)
		}
	}
	if address.IsValid() && !found {
		if err := d.write(d.handle.AddrAdd(link, addressOf(address))); err != nil {
			return fmt.Errorf("add address %s: %w", address, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := d.write(d.handle.LinkSetUp(link)); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	return nil
}

func addressOf(a netip.Addr) *netlink.Addr { return address(netip.PrefixFrom(a, a.BitLen())) }

func (d *IPIP) write(err error) error {
	d.writes++
	return err
}

// Entries lists the device if it is wanted.
func (d *IPIP) Entries() []dataplane.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.want == nil {
		return nil
	}
	e := dataplane.Entry{Object: dataplane.Object{Kind: dataplane.KindLink, Key: desired.IPIPDevice}, Desired: fmt.Sprintf("%+v", *d.want), Err: d.err}
	if !d.dirty {
		e.Actual = e.Desired
	}
	return []dataplane.Entry{e}
}
