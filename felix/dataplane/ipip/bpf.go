package ipip

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/dump"
)

// ensureBPF makes the veth pair, the maps, and at last the filters.
func (d *Driver) ensureBPF(want desired.IPIP) error {
	uplinks, err := d.uplinks(want)
	if err != nil {
		return err
	}
	link, err := d.ensurePair(want)
	if err != nil {
		return err
	}
	d.watch(link)
	d.watch(uplinks...)
	if err := d.ensurePrograms(link); err != nil {
		return err
	}
	settings := config{Local: want.Local.As4(), Device: uint32(link.Attrs().Index)}
	if len(uplinks) > 0 {
		settings.Parent = uint32(uplinks[0].Attrs().Index)
	}
	if d.several {
		settings.Several = 1
	}
	copy(settings.MAC[:], link.Attrs().HardwareAddr)
	have, err := d.programs.config()
	if err != nil {
		return err
	}
	if want.Uplinks == "" { // by which device each node is reached is not known yet, as after a start: all stays as it is
		settings.Several, settings.Parent = have.Several, cmp.Or(settings.Parent, have.Parent)
	}
	if have != settings {
		if err := d.do("set the programs' addresses and devices", func() error { return d.programs.setConfig(settings) }); err != nil {
			return err
		}
	}
	if !d.dry {
		d.syncEntries()
	}
	errs := []error{d.attach(link, outHook)}
	var indexes []int
	for _, l := range uplinks {
		errs = append(errs, d.attach(l, inHook))
		indexes = append(indexes, l.Attrs().Index)
	}
	if want.Uplinks != "" { // else some may only not be known yet, as after a start, and packets come in by them
		errs = append(errs, d.detach(indexes...))
	}
	return errors.Join(errs...)
}

// bearers are the devices by which packets of other nodes may come: first the one with the node's address.
func bearers(want desired.IPIP) []string {
	out := []string{want.Parent}
	for name := range strings.FieldsSeq(want.Uplinks) {
		if name != want.Parent {
			out = append(out, name)
		}
	}
	return out
}

// uplinks are those of the bearers that the program of the way in can be attached to. The loopback is none: nothing comes in
// by it. Another that is not there yet, or is not of Ethernet, does not keep the rest from their work.
func (d *Driver) uplinks(want desired.IPIP) ([]netlink.Link, error) {
	var out []netlink.Link
	for _, name := range bearers(want) {
		link, err := d.find(name)
		if err != nil {
			return nil, err
		}
		first := name == want.Parent
		switch {
		case link == nil && first:
			return nil, fmt.Errorf("the device %s, which is to bear IP-in-IP, is not there", name)
		case link == nil || link.Attrs().Flags&net.FlagLoopback != 0:
		case link.Attrs().EncapType == "ether":
			out = append(out, link)
		case first:
			return nil, fmt.Errorf("IP-in-IP in BPF needs Ethernet devices, and %s, which has the node's address, is of type %s (%s); load the module ipip, or set vxlanMode",
				name, link.Type(), link.Attrs().EncapType)
		case !d.dry && !slices.Contains(d.odd, name):
			d.odd = append(d.odd, name)
			d.cfg.Log.Warn("IP-in-IP in BPF takes no packets that come in by a device that is not of Ethernet; load the module ipip, or set vxlanMode",
				"device", name, "type", link.Type())
		}
	}
	return out, nil
}

// ensurePair makes tunl0 one end of our veth pair, set up as wanted.
func (d *Driver) ensurePair(want desired.IPIP) (netlink.Link, error) {
	link, whose, err := d.look()
	if err != nil {
		return nil, err
	}
	switch whose {
	case foreign:
		return nil, foreignError(link)
	case kernels:
		if err := d.makeRoom(link); err != nil {
			return nil, err
		}
	case nobodys:
		if err := d.removePeer(); err != nil {
			return nil, err
		}
	}
	if whose != ours {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = desired.IPIPDevice, want.MTU
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: PeerDevice}
		if err := d.do("create device tunl0", func() error { return d.handle.LinkAdd(pair) }); err != nil {
			return nil, err
		}
		if link, whose, err = d.look(); err != nil {
			return nil, err
		} else if whose != ours {
			return nil, errors.New("tunl0 vanished while it was set up")
		}
		// No neighbour is ever asked for, so no address is needed for asking. A kernel without IPv6 has nothing to turn off.
		_ = d.handle.LinkSetIP6AddrGenMode(link, nl6None)
	}
	peer, err := d.find(PeerDevice)
	if err != nil {
		return nil, err
	}
	if peer == nil {
		return nil, fmt.Errorf("%s vanished while it was set up", PeerDevice)
	}
	d.watch(peer)
	if peer.Attrs().Flags&net.FlagUp == 0 && !d.dry {
		_ = d.handle.LinkSetIP6AddrGenMode(peer, nl6None)
	}
	// Neighbours need no resolving: the next hop of a route is not on this link at all.
	if link.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := d.do("set NOARP on tunl0", func() error { return d.handle.LinkSetARPOff(link) }); err != nil {
			return nil, err
		}
	}
	if err := d.takeUp(peer); err != nil { // else tunl0 has no carrier
		return nil, err
	}
	return link, d.setUp(link, want)
}

// nl6None is IN6_ADDR_GEN_MODE_NONE: a device makes no IPv6 address for itself.
const nl6None = 1

// makeRoom frees the name tunl0 of the module's device, which is renamed if it cannot be removed.
func (d *Driver) makeRoom(link netlink.Link) error {
	if err := d.removeKernel(link); err != nil {
		return err
	}
	still, err := d.find(desired.IPIPDevice)
	if err != nil || still == nil {
		return err
	}
	return d.do("rename the module's tunl0 to "+FallbackDevice, func() error { return d.handle.LinkSetName(still, FallbackDevice) })
}

// ensurePrograms adopts the programs that are attached, or loads them.
func (d *Driver) ensurePrograms(link netlink.Link) error {
	if d.programs != nil {
		return nil
	}
	out, err := d.attached(link, outHook)
	if err != nil {
		return err
	}
	in, err := d.attachedSomewhere()
	if err != nil {
		return err
	}
	var outID, inID ebpf.ProgramID
	if out != nil {
		outID = ebpf.ProgramID(out.Id)
	}
	if in != nil {
		inID = ebpf.ProgramID(in.Id)
	}
	if d.programs, err = adopt(outID, inID); err != nil {
		return err
	}
	to, err := d.programs.destinations()
	if err != nil {
		return fmt.Errorf("read the map of destinations: %w", err)
	}
	encaps := make(map[netip.Prefix]desired.Encap, len(to))
	for dst, remote := range to {
		encaps[dst] = desired.Encap{Remote: remote}
	}
	d.encaps.ReplaceActual(encaps)
	nodes, err := d.programs.nodes()
	if err != nil {
		return fmt.Errorf("read the map of nodes: %w", err)
	}
	d.decaps.ReplaceActual(nodes)
	return nil
}

// attachedSomewhere finds our program of the way in on any device, which may be an uplink no more.
func (d *Driver) attachedSomewhere() (*netlink.BpfFilter, error) {
	list, err := dump.Whole(func() ([]netlink.Qdisc, error) { return d.handle.QdiscList(nil) })
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range list {
		if q.Attrs().Parent != netlink.HANDLE_CLSACT {
			continue
		}
		link, err := d.handle.LinkByIndex(q.Attrs().LinkIndex)
		if err != nil {
			continue // gone meanwhile
		}
		if f, err := d.attached(link, inHook); err != nil || f != nil {
			return f, err
		}
	}
	return nil, nil
}

// syncEntries makes the maps agree. Nothing is removed before everything is known.
func (d *Driver) syncEntries() {
	for dst, e := range d.encaps.Updates() {
		err := d.do("send to "+e.Remote.String(), func() error { return d.programs.putEncap(dst, e) })
		d.failures.Add(KindEncap, dst.String(), err)
		if err == nil {
			d.encaps.SetActual(dst, e)
		}
	}
	for node, from := range d.decaps.Updates() {
		if _, there := d.decaps.Actual(node); there && d.want.Uplinks == "" {
			continue // see ensureBPF
		}
		err := d.do("accept", func() error { return d.programs.putDecap(node, from) })
		d.failures.Add(KindDecap, node.String(), err)
		if err == nil {
			d.decaps.SetActual(node, from)
		}
	}
	if !d.whole {
		return
	}
	for dst := range d.encaps.Deletes() {
		err := d.do("remove", func() error { return absent(d.programs.encaps.Delete(destinationOf(dst))) })
		d.failures.Add(KindEncap, dst.String(), err)
		if err == nil {
			d.encaps.DeleteActual(dst)
		}
	}
	for node := range d.decaps.Deletes() {
		err := d.do("remove", func() error { return absent(d.programs.decaps.Delete(node.As4())) })
		d.failures.Add(KindDecap, node.String(), err)
		if err == nil {
			d.decaps.DeleteActual(node)
		}
	}
}

func absent(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func (p *programs) putEncap(dst netip.Prefix, e desired.Encap) error {
	if !dst.Addr().Is4() || !e.Remote.Is4() {
		return errors.New("IP-in-IP carries IPv4 only")
	}
	return p.encaps.Put(destinationOf(dst), e.Remote.As4())
}

func (p *programs) putDecap(n netip.Addr, from desired.Decap) error {
	if !n.Is4() {
		return errors.New("IP-in-IP carries IPv4 only")
	}
	return p.decaps.Put(n.As4(), uint32(from.Out))
}
