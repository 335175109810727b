package link

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// What a pod's side consists of, and the rtnetlink messages that make it (linux/rtnetlink.h, linux/if_link.h).

// podRoute is one route of a pod, by the gateway, or to what is on the link if via is invalid.
type podRoute struct {
	dst netip.Prefix
	via netip.Addr
}

// podRoutes are the routes of a pod: by the gateway everywhere, or of a family that names destinations to these only.
func podRoutes(p Pod) (out []podRoute) {
	for _, family := range []struct {
		is         func(netip.Addr) bool
		gateway    netip.Addr
		everywhere netip.Addr
	}{{netip.Addr.Is4, desired.Gateway4, netip.IPv4Unspecified()}, {netip.Addr.Is6, desired.HostLinkLocal, netip.IPv6Unspecified()}} {
		if !slices.ContainsFunc(p.Addresses, family.is) {
			continue
		}
		if family.gateway.Is4() { // IPv6 has a route to link-local addresses anyway
			out = append(out, podRoute{dst: netip.PrefixFrom(family.gateway, family.gateway.BitLen())})
		}
		before := len(out)
		for _, dst := range p.Routes {
			if family.is(dst.Addr()) {
				out = append(out, podRoute{dst.Masked(), family.gateway})
			}
		}
		if len(out) == before {
			out = append(out, podRoute{netip.PrefixFrom(family.everywhere, 0), family.gateway})
		}
	}
	return out
}

// podGateways are the neighbours that a pod knows for good. Without them the host's proxy ARP would have to answer, which it
// does only while it has a default route; and the first packet would wait for the answer.
func podGateways(p Pod) (out []netip.Addr) {
	if slices.ContainsFunc(p.Addresses, netip.Addr.Is4) {
		out = append(out, desired.Gateway4)
	}
	if slices.ContainsFunc(p.Addresses, netip.Addr.Is6) {
		out = append(out, desired.HostLinkLocal)
	}
	return out
}

// pairMessage makes a veth pair: one end in the namespace of the socket, the other in that of a file descriptor.
func pairMessage(p Pod, host int) nlsock.Message {
	end := func(out []byte, name string, mac desired.MAC) []byte {
		out = nlsock.AttrString(out, unix.IFLA_IFNAME, name)
		if p.MTU != 0 {
			out = nlsock.AttrU32(out, unix.IFLA_MTU, uint32(p.MTU))
		}
		if !mac.IsZero() {
			out = nlsock.Attr(out, unix.IFLA_ADDRESS, mac[:])
		}
		queues := uint32(max(1, p.Queues))
		return nlsock.AttrU32(nlsock.AttrU32(out, unix.IFLA_NUM_TX_QUEUES, queues), unix.IFLA_NUM_RX_QUEUES, queues)
	}
	body := end(make([]byte, unix.SizeofIfInfomsg, 256), p.Interface, p.MAC)
	body = nlsock.Nest(body, unix.IFLA_LINKINFO, func(out []byte) []byte {
		out = nlsock.AttrString(out, nl.IFLA_INFO_KIND, "veth")
		return nlsock.Nest(out, nl.IFLA_INFO_DATA, func(out []byte) []byte {
			return nlsock.Nest(out, nl.VETH_INFO_PEER, func(out []byte) []byte {
				out = end(append(out, make([]byte, unix.SizeofIfInfomsg)...), p.Host, desired.HostMAC)
				return nlsock.AttrU32(out, unix.IFLA_NET_NS_FD, uint32(host))
			})
		})
	})
	return nlsock.Message{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: body}
}

// lookMessage asks for a link by its name.
func lookMessage(name string) nlsock.Message {
	return nlsock.Message{Type: unix.RTM_GETLINK, Body: nlsock.AttrString(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, name)}
}

// removeMessage removes a link by its name.
func removeMessage(name string) nlsock.Message {
	return nlsock.Message{Type: unix.RTM_DELLINK, Body: nlsock.AttrString(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, name)}
}

// indexOf is the index of the link that an answer is about.
func indexOf(body []byte) uint32 {
	if len(body) < unix.SizeofIfInfomsg {
		return 0
	}
	return nlsock.U32(body[4:])
}

// step is a message and what to call it when it fails.
type step struct {
	what    string
	message nlsock.Message
}

// setUpMessages set the pod's side up and give it addresses, neighbours and routes, in this order.
func setUpMessages(p Pod, index uint32) []step {
	out := []step{{"set " + p.Interface + " up", upMessage(index)}}
	for _, a := range p.Addresses {
		out = append(out, step{"add address " + a.String(), addressMessage(a, index)})
	}
	for _, a := range podGateways(p) {
		out = append(out, step{"add neighbour " + a.String(), neighborMessage(a, index)})
	}
	for _, r := range podRoutes(p) {
		out = append(out, step{"add route to " + r.dst.String(), routeMessage(r, index)})
	}
	return out
}

func upMessage(index uint32) nlsock.Message {
	body := make([]byte, unix.SizeofIfInfomsg)
	ne := binary.NativeEndian
	ne.PutUint32(body[4:], index)
	ne.PutUint32(body[8:], unix.IFF_UP)
	ne.PutUint32(body[12:], unix.IFF_UP) // what is changed
	return nlsock.Message{Type: unix.RTM_NEWLINK, Body: body}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func addressMessage(a netip.Addr, index uint32) nlsock.Message {
	flags := byte(0)
	if a.Is6() {
		flags = unix.IFA_F_NODAD
	}
	body := binary.NativeEndian.AppendUint32([]byte{family(a), byte(a.BitLen()), flags, unix.RT_SCOPE_UNIVERSE}, index)
	body = nlsock.Attr(body, unix.IFA_LOCAL, a.AsSlice())
	return nlsock.Message{Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: nlsock.Attr(body, unix.IFA_ADDRESS, a.AsSlice())}
}

func neighborMessage(a netip.Addr, index uint32) nlsock.Message {
	body := binary.NativeEndian.AppendUint32([]byte{family(a), 0, 0, 0}, index)
	body = append(binary.NativeEndian.AppendUint16(body, unix.NUD_PERMANENT), 0, unix.RTN_UNICAST)
	body = nlsock.Attr(body, unix.NDA_DST, a.AsSlice())
	return nlsock.Message{Type: unix.RTM_NEWNEIGH, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: nlsock.Attr(body, unix.NDA_LLADDR, desired.HostMAC[:])}
}

func routeMessage(r podRoute, index uint32) nlsock.Message {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if !r.via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	body := []byte{
		family(r.dst.Addr()), byte(r.dst.Bits()), 0, 0,
		unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, scope, unix.RTN_UNICAST, 0, 0, 0, 0,
	}
	if r.dst.Bits() > 0 {
		body = nlsock.Attr(body, unix.RTA_DST, r.dst.Addr().AsSlice())
	}
	if r.via.IsValid() {
		body = nlsock.Attr(body, unix.RTA_GATEWAY, r.via.AsSlice())
	}
	return nlsock.Message{
		Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: nlsock.AttrU32(body, unix.RTA_OIF, index),
	}
}
