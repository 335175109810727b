// Package tunnel makes the kernel's tunnel devices agree with what felix wants: the VXLAN devices with their addresses,
// the forwarding entries that say where a remote tunnel end is, and permanent neighbours. It owns
//
//   - the VXLAN devices vxlan.calico and vxlan-v6.calico, and every address on them but link-local ones; a device of
//     another type with such a name is somebody else's, and reported (see dataplane.ForeignDeviceError);
//   - every permanent forwarding and neighbour entry on these devices;
//   - whatever has the device and address of a desired neighbour elsewhere.
//
// What makes this harder than it looks: the kernel cannot change VNI, port, local address, parent or learning of a device
// in place, so that a device that differs is made anew and loses its entries and routes; a device goes away with its
// parent, without a word about what was on it; and who keeps changing a device is not fought (see dataplane.Repairs).
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// devices are the names that are ours.
var devices = []string{desired.VXLANDevice4, desired.VXLANDevice6}

// Driver is the driver. Its methods may be called from several goroutines.
type Driver struct {
	handle  *netlink.Handle
	events  *nlsock.Conn // open from the start, so that nothing is missed before Watch
	offload offload

	mu        sync.Mutex // guards the following
	vxlans    *delta.Tracker[string, desired.VXLAN]
	neighbors *delta.Tracker[desired.NeighborKey, desired.MAC]
	fdb       *delta.Tracker[desired.FDBKey, netip.Addr]
	index     map[string]int          // of our devices and of links that bear desired neighbours
	foreign   map[string]netlink.Link // with a name of ours, by it
	repairs   dataplane.Repairs[desired.VXLAN]
	failures  dataplane.Failures
	whole     bool
	stale     bool // actual must be read anew
	writes    uint64
}

// New opens the driver on the caller's network namespace.
func New() (*Driver, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("tunnel driver: %w", err)
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("tunnel driver: %w", err)
	}
	events, err := nlsock.Dial(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		tool.Close()
		h.Close()
		return nil, fmt.Errorf("tunnel driver: %w", err)
	}
	return &Driver{
		handle: h, events: events, offload: offload{tool: tool, probe: sync.OnceValue(ProbeChecksums)}, index: map[string]int{},
		foreign: map[string]netlink.Link{}, stale: true,
		vxlans:    delta.New[string](same[desired.VXLAN]),
		neighbors: delta.New[desired.NeighborKey](same[desired.MAC]),
		fdb:       delta.New[desired.FDBKey](same[netip.Addr]),
	}, nil
}

func same[T comparable](a, b T) bool { return a == b }

// Close releases the driver's sockets; devices stay.
func (d *Driver) Close() error {
	d.offload.tool.Close()
	d.handle.Close()
	return d.events.Close()
}

// Writes counts the changes sent to the kernel since New.
func (d *Driver) Writes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// Update takes changes of the desired devices and entries.
func (d *Driver) Update(vxlans desired.Delta[string, desired.VXLAN], neighbors desired.Delta[desired.NeighborKey, desired.MAC],
	fdb desired.Delta[desired.FDBKey, netip.Addr],
) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dataplane.Want(d.vxlans, vxlans)
	dataplane.Want(d.neighbors, neighbors)
	dataplane.Want(d.fdb, fdb)
}

// Whole says that Update was told everything: from now on, devices and entries of ours that are not wanted are removed.
func (d *Driver) Whole() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whole = true
}

// Resync makes the next Apply read everything from the kernel.
func (d *Driver) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stale = true
}

// Apply makes the kernel agree: devices first, then what is on them. What failed stays due and is in the error, one
// ObjectError for each object.
func (d *Driver) Apply(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stale {
		if err := d.load(); err != nil {
			return fmt.Errorf("read tunnel devices: %w", err)
		}
		d.stale = false
	}
	d.failures = dataplane.Failures{}
	for name, v := range d.vxlans.Updates() {
		err := d.ensure(v)
		if errors.Is(err, unix.EEXIST) { // there is a device of that name that was not known of: look at it
			if err = d.load(); err == nil {
				err = d.ensure(v)
			}
		}
		d.failures.Add(dataplane.KindLink, name, err)
	}
	for name := range d.vxlans.Deletes() {
		if d.whole {
			d.failures.Add(dataplane.KindLink, name, d.deleteDevice(name))
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	d.applyEntries()
	d.stale = d.failures.Len() > 0 // after a failure, look again before the next attempt
	return d.failures.Join()
}

// applyEntries writes and removes entries of devices that are there; the others wait for their device.
func (d *Driver) applyEntries() {
	for k, mac := range d.neighbors.Updates() {
		i, ok := d.index[k.Link]
		if !ok {
			continue
		}
		if err := d.write(d.handle.NeighSet(neighborEntry(k, mac, i))); errors.Is(err, unix.ENODEV) {
			continue // its device went a moment ago; the notification that follows has it made anew
		} else if err != nil {
			d.failures.Add(dataplane.KindNeighbor, k.String(), fmt.Errorf("set lladdr %s: %w", mac, err))
			continue
		}
		d.neighbors.SetActual(k, mac)
	}
	for k, remote := range d.fdb.Updates() {
		i, ok := d.index[k.Link]
		if !ok {
			continue
		}
		if err := d.write(d.handle.NeighSet(fdbEntry(k, remote, i))); errors.Is(err, unix.ENODEV) {
			continue
		} else if err != nil {
			d.failures.Add(dataplane.KindFDB, k.String(), fmt.Errorf("set dst %s: %w", remote, err))
			continue
		}
		d.fdb.SetActual(k, remote)
	}
	if !d.whole {
		return
	}
	for k, mac := range d.neighbors.Deletes() {
		if err := d.gone(d.handle.NeighDel(neighborEntry(k, mac, d.index[k.Link]))); err != nil {
			d.failures.Add(dataplane.KindNeighbor, k.String(), fmt.Errorf("remove: %w", err))
			continue
		}
		d.neighbors.DeleteActual(k)
	}
	for k, remote := range d.fdb.Deletes() {
		if err := d.gone(d.handle.NeighDel(fdbEntry(k, remote, d.index[k.Link]))); err != nil {
			d.failures.Add(dataplane.KindFDB, k.String(), fmt.Errorf("remove: %w", err))
			continue
		}
		d.fdb.DeleteActual(k)
	}
}

// write counts a change.
func (d *Driver) write(err error) error {
	d.writes++
	return err
}

// gone counts a removal; what is not there is no error.
func (d *Driver) gone(err error) error {
	d.writes++
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Entries lists devices and entries, desired beside actual.
func (d *Driver) Entries() []dataplane.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := func(v any) string { return fmt.Sprintf("%+v", v) }
	out := entries(d, dataplane.KindLink, d.vxlans, func(k string) string { return k }, text)
	out = append(out, entries(d, dataplane.KindNeighbor, d.neighbors, desired.NeighborKey.String, func(v any) string {
		return "lladdr " + v.(desired.MAC).String() + " PERMANENT"
	})...)
	return append(out, entries(d, dataplane.KindFDB, d.fdb, desired.FDBKey.String, func(v any) string {
		return "dst " + v.(netip.Addr).String() + " self permanent"
	})...)
}

func entries[K comparable, V any](d *Driver, kind dataplane.Kind, t *delta.Tracker[K, V], key func(K) string, text func(any) string) []dataplane.Entry {
	var out []dataplane.Entry
	for k, v := range t.AllDesired() {
		e := dataplane.Entry{Object: dataplane.Object{Kind: kind, Key: key(k)}, Desired: text(v)}
		if have, ok := t.Actual(k); ok {
			e.Actual = text(have)
		}
		e.Err = d.failures.Of(kind, e.Key)
		out = append(out, e)
	}
	for k, have := range t.AllActual() {
		if _, wanted := t.Desired(k); !wanted {
			out = append(out, dataplane.Entry{Object: dataplane.Object{Kind: kind, Key: key(k)}, Actual: text(have)})
		}
	}
	return out
}

func neighborEntry(k desired.NeighborKey, mac desired.MAC, index int) *netlink.Neigh {
	family := unix.AF_INET
	if k.Addr.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{
		LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: k.Addr.AsSlice(), HardwareAddr: hardware(mac),
	}
}

func fdbEntry(k desired.FDBKey, remote netip.Addr, index int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: remote.AsSlice(), HardwareAddr: hardware(k.MAC),
	}
}

func hardware(m desired.MAC) net.HardwareAddr { return net.HardwareAddr(m[:]) }

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ours(name string) bool { return slices.Contains(devices, name) }
