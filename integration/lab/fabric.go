package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names that exec, probe and capture take beside those of nodes and pods.
const (
	routerName = "router" // the namespace that forwards between subnets
	fabricName = "fabric" // the namespace with the bridges, and one port for each node
)

// fabric is the wiring between machines: in the supervisor's own network namespace one bridge for each subnet, and on it
// one port (a veth end) for each node and for the router.
type fabric struct {
	space *space
	mtu   int
	nl    *netlink.Handle
	cloud *cloud
}

func newFabric(mtu int) (*fabric, error) {
	var s *space
	err := onOwnThread(func() (err error) {
		s, err = currentSpace(fabricName)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.loopbackUp(); err != nil {
		return nil, err
	}
	// The bridges only pass frames on; they should not take part in what the nodes say to each other.
	if err := s.sysctl6("default/disable_ipv6", "1"); err != nil {
		return nil, err
	}
	h, err := s.links()
	if err != nil {
		return nil, err
	}
	return &fabric{space: s, mtu: mtu, nl: h, cloud: newCloud(s)}, nil
}

// addSubnet makes the bridge of a subnet.
func (f *fabric) addSubnet(index int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName(index)
	attrs.MTU = f.mtu
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(bool)}
	if err := f.nl.LinkAdd(br); err != nil {
		return kernelProblem("make a bridge", "CONFIG_BRIDGE", err)
	}
	return f.nl.LinkSetUp(br)
}

// plug connects a machine to a subnet: port is the name of the end on the bridge, iface the one inside the machine.
func (f *fabric) plug(subnet int, port string, m *space, iface string, addrs []netip.Prefix) error {
	br, err := f.nl.LinkByName(bridgeName(subnet))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	attrs.MTU = f.mtu
	attrs.MasterIndex = br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: iface, PeerNamespace: netlink.NsFd(int(m.net.Fd())), PeerMTU: uint32(f.mtu)}
	if err := f.nl.LinkAdd(veth); err != nil {
		return kernelProblem(fmt.Sprintf("make the link between %s and the fabric", m.name), "CONFIG_VETH", err)
	}
	if err := f.nl.LinkSetUp(veth); err != nil {
		return err
	}
	if err := configure(m, iface, addrs); err != nil {
		return err
	}
	return awaitLink(f.nl, port)
}

// linkPatience is how long the kernel may take to notice that a link has come up, and linkPoll how often to look.
const (
	linkPatience = time.Minute
	linkPoll     = 5 * time.Millisecond
)

// awaitLink waits until an end of a link that was set up carries packets. The kernel notices that its peer is up some time
// after the fact, and until then silently drops what is sent through it, or does not pass on what comes for a bridge.
func awaitLink(h *netlink.Handle, name string) error {
	for deadline := time.Now().Add(linkPatience); ; time.Sleep(linkPoll) {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("link %s was set up and is %s after %s", name, link.Attrs().OperState, linkPatience)
		}
	}
}

// configure gives an interface its addresses and sets it up.
func configure(m *space, iface string, addrs []netip.Prefix) error {
	h, err := m.links()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(iface)
	if err != nil {
		return err
	}
	// The lab assigns addresses: nobody else has them, and nobody wants to wait until that is found out.
	if err := m.sysctl6(iface+"/accept_dad", "0"); err != nil {
		return err
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give %s to %s of %s: %w", a, iface, m.name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	return awaitLink(h, iface)
}

// defaultRoutes sends what a node does not know to the gateways.
func defaultRoutes(m *space, gateways []netip.Addr) error {
	h, err := m.links()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, g := range gateways {
		if err := h.RouteAdd(&netlink.Route{Gw: net.IP(g.AsSlice())}); err != nil {
			return fmt.Errorf("route %s through %s: %w", m.name, g, err)
		}
	}
	return nil
}

// setForwarding turns forwarding between interfaces on or off for a machine. A fresh namespace copies the machine's
// settings, so a node gets what a fresh installation has (off, felix turns it on) and the router what it needs.
func setForwarding(m *space, on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	err := m.do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(value), 0) })
	return errors.Join(err, m.sysctl6("all/forwarding", value))
}

// sysctl6 sets an IPv6 setting, on kernels that have IPv6.
func (s *space) sysctl6(name, value string) error {
	const conf = "/proc/sys/net/ipv6/conf/"
	return s.do(func() error {
		if _, err := os.Stat(conf); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return os.WriteFile(conf+name, []byte(value), 0)
	})
}

func bridgeName(index int) string { return fmt.Sprintf("subnet%d", index) }

// portName is the name of a node's port on its bridge: the node's own name where an interface may be called so.
func portName(node string, index int) string {
	if interfaceName.MatchString(node) && !strings.HasPrefix(node, "subnet") && node != "lo" {
		return node
	}
	return fmt.Sprintf("port%d", index)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// kernelProblem names the kernel feature that a failed call needs.
func kernelProblem(doing, feature string, err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EAFNOSUPPORT) {
		return problem(fmt.Sprintf("cannot %s: this kernel lacks %s (%v)", doing, feature, err),
			"load the module as root, or use a kernel that has it")
	}
	return fmt.Errorf("%s: %w", doing, err)
}
