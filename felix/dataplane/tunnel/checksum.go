package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// ChecksumError says which checksum of an encapsulated packet came out wrong.
type ChecksumError struct {
	What string // "TCP in VXLAN", …
}

// Error names the checksum.
func (e *ChecksumError) Error() string {
	return "the kernel sends encapsulated packets with a wrong " + e.What + " checksum when it leaves checksums to the device"
}

// checksumPatience is how long a packet of the probe may take over a few devices of one machine.
const checksumPatience = 5 * time.Second

// Addresses of the probe, for documentation (RFC 5737); they are in a namespace of their own.
var (
	probeUnder     = net.IPv4(192, 0, 2, 1).To4()
	probeUnderPeer = net.IPv4(192, 0, 2, 2).To4()
	probeOver      = net.IPv4(198, 51, 100, 1).To4()
	probeOverPeer  = net.IPv4(198, 51, 100, 2).To4()
	probeMAC       = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
)

// ProbeChecksums sends a TCP packet through a VXLAN device that leaves checksums to the device below, as it is made, in a
// network namespace that is thrown away, and looks at what comes out of a wire below that does not compute any. Nil means
// that every checksum is right, a *ChecksumError that one is not; any other error that it could not be found out.
//
// Kernels up to this day get the outer checksum wrong if the tunnel's packets are masqueraded with another port (the NAT takes
// a finished checksum for an unfinished one). Nothing can do that to felix's tunnels, which connection tracking never sees.
func ProbeChecksums() error { return probeChecksums(false) }

// probeChecksums has the wire leave checksums undone, too, if asked: then they cannot be right, which is how to test the
// probe itself.
func probeChecksums(undone bool) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread, and with it the namespace, ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("probe of checksums: make a network namespace: %w", err)
			return
		}
		err := sendThroughVXLAN(undone)
		if _, wrong := errors.AsType[*ChecksumError](err); err != nil && !wrong {
			err = fmt.Errorf("probe of checksums: %w", err)
		}
		done <- err
	}()
	return <-done
}

// sendThroughVXLAN does it in the namespace of the calling thread.
func sendThroughVXLAN(undone bool) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer tool.Close()
	wire, err := probeDevices(h)
	if err != nil {
		return err
	}
	if !undone {
		if err := tool.Change("wire", map[string]bool{txChecksum: false}); err != nil {
			return fmt.Errorf("make the wire a plain one: %w", err)
		}
	}
	if err := tool.Change("tunnel", map[string]bool{txChecksum: true}); err != nil {
		return fmt.Errorf("leave checksums of the tunnel to the wire: %w", err)
	}
	capture, err := capturing(wire.Attrs().ParentIndex)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(capture) }()
	if err := sendSYN(probeOverPeer); err != nil {
		return err
	}
	return judge(capture)
}

// probeDevices makes a wire (a pair, whose other end hears what is sent) with a tunnel over it.
func probeDevices(h *netlink.Handle) (wire netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire"
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "end"}); err != nil {
		return nil, fmt.Errorf("make a wire: %w", err)
	}
	if wire, err = h.LinkByName("wire"); err != nil {
		return nil, err
	}
	end, err := h.LinkByName("end")
	if err != nil {
		return nil, err
	}
	attrs.Name, attrs.HardwareAddr = "tunnel", nil
	if err := h.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: desired.DefaultVXLANVNI, Port: desired.DefaultVXLANPort, SrcAddr: probeUnder, VtepDevIndex: wire.Attrs().Index,
	}); err != nil {
		return nil, fmt.Errorf("make a tunnel: %w", err)
	}
	tunnel, err := h.LinkByName("tunnel")
	if err != nil {
		return nil, err
	}
	subnet := func(ip net.IP) *netlink.Addr {
		return &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}
	}
	neighbor := func(l netlink.Link, ip net.IP, mac net.HardwareAddr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac}
	}
	return wire, errors.Join(
		h.LinkSetUp(end), h.LinkSetUp(wire), h.LinkSetUp(tunnel),
		h.AddrAdd(wire, subnet(probeUnder)), h.AddrAdd(tunnel, subnet(probeOver)),
		h.NeighSet(neighbor(wire, probeUnderPeer, end.Attrs().HardwareAddr)),
		h.NeighSet(neighbor(tunnel, probeOverPeer, probeMAC)),
		h.NeighSet(&netlink.Neigh{
			LinkIndex: tunnel.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			IP: probeUnderPeer, HardwareAddr: probeMAC,
		}),
	)
}

// capturing opens a socket that hears what arrives at a device.
func capturing(index int) (int, error) {
	ipv4 := uint16(unix.ETH_P_IP>>8 | unix.ETH_P_IP<<8&0xff00)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(ipv4))
	if err != nil {
		return 0, fmt.Errorf("capture: %w", err)
	}
	wait := unix.NsecToTimeval(int64(checksumPatience))
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
	)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("capture: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// sendSYN has the kernel send the first packet of a connection, through the tunnel, to an address.
func sendSYN(address net.IP) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrInet4{Port: 80}
	copy(to.Addr[:], address.To4())
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("send a packet: %w", err)
	}
	return nil
}

// judge waits for the encapsulated packet and checks its checksums.
func judge(capture int) error {
	frame := make([]byte, 2048)
	for deadline := time.Now().Add(checksumPatience); time.Now().Before(deadline); {
		n, _, err := unix.Recvfrom(capture, frame, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			break
		}
		if what, vxlan := wrongChecksum(frame[:n]); vxlan {
			if what != "" {
				return &ChecksumError{What: what}
			}
			return nil
		}
	}
	return fmt.Errorf("no packet came through the tunnel within %s", checksumPatience)
}

// Sizes of headers, in bytes.
const (
	ethernetHeader = 14
	udpHeader      = 8
	vxlanHeader    = 8
)

// wrongChecksum names the first checksum of a VXLAN frame over IPv4 that is wrong, none if all are right; vxlan is false
// for other frames.
func wrongChecksum(frame []byte) (what string, vxlan bool) {
	outer, transport, protocol, ok := cutIPv4(frame)
	if !ok || protocol != unix.IPPROTO_UDP || len(transport) < udpHeader+vxlanHeader ||
		binary.BigEndian.Uint16(transport[2:]) != desired.DefaultVXLANPort {
		return "", false
	}
	inner, segment, innerProtocol, ok := cutIPv4(transport[udpHeader+vxlanHeader:])
	if !ok || innerProtocol != unix.IPPROTO_TCP {
		return "", false
	}
	switch {
	case sum(outer, 0) != 0xffff:
		return "outer IP", true
	case binary.BigEndian.Uint16(transport[6:]) != 0 && sum(transport, pseudo(outer, len(transport))) != 0xffff: // zero says that there is none
		return "outer UDP", true
	case sum(inner, 0) != 0xffff:
		return "inner IP", true
	case sum(segment, pseudo(inner, len(segment))) != 0xffff:
		return "inner TCP", true
	}
	return "", true
}

// cutIPv4 takes an Ethernet frame apart.
func cutIPv4(frame []byte) (header, payload []byte, protocol byte, ok bool) {
	const least = 20
	if len(frame) < ethernetHeader+least || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
		return nil, nil, 0, false
	}
	packet := frame[ethernetHeader:]
	size, total := int(packet[0]&0xf)*4, int(binary.BigEndian.Uint16(packet[2:]))
	if packet[0]>>4 != 4 || size < least || total < size || total > len(packet) {
		return nil, nil, 0, false
	}
	return packet[:size], packet[size:total], packet[9], true
}

// pseudo is the sum of the pseudo header that TCP and UDP checksums cover beside the segment (RFC 9293, RFC 768).
func pseudo(header []byte, length int) uint32 {
	return uint32(sum(header[12:20], uint32(header[9])+uint32(length)))
}

// sum is the one's complement sum of RFC 1071; over data with a right checksum it is 0xffff.
func sum(b []byte, start uint32) uint16 {
	total := start
	for ; len(b) > 1; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
