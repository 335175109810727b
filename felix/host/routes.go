package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// subscribeToRoutes calls changed with the destination of each of the node's routes that changes, or with none where that is not
// known. Left out are those that felix makes itself of what bird told: what it writes changes no way to a next hop, and can be a
// hundred thousand routes at once, so the kernel is told to keep them back. So are link-local and multicast routes of IPv6, some of
// which come and go with each pod's interface. An error, to failed, ends it; stop does so, too.
func subscribeToRoutes(changed func(dst netip.Prefix), failed func(error)) (stop func(), err error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to routes: %w", err)
	}
	const (
		familyAt   = unix.SizeofNlMsghdr // rtm_family of struct rtmsg
		protocolAt = familyAt + 5        // rtm_protocol
		attrsAt    = familyAt + unix.SizeofRtMsg
		findAttr   = 0xfffff000 + 12 // SKF_AD_OFF + SKF_AD_NLATTR: where the attribute of type X is, from A on; 0: nowhere
		linkLocal  = 0xfe80
		multicast  = 0xff00
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: protocolAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 13, K: desired.ProtocolMuslin},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: familyAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 10, K: unix.AF_INET6},
		{Code: unix.BPF_LDX | unix.BPF_IMM, K: unix.RTA_DST},
		{Code: unix.BPF_LD | unix.BPF_IMM, K: attrsAt},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: findAttr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 6, K: 0},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: unix.SizeofRtAttr},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xffc0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 3, K: linkLocal},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xff00},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: multicast},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(s.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		s.Close()
		return nil, fmt.Errorf("subscribe to routes: %w", err)
	}
	go func() {
		for {
			messages, _, err := s.Receive()
			switch {
			case err == nil:
				for _, m := range messages {
					changed(destination(m.Data))
				}
			case errors.Is(err, unix.ENOBUFS): // what was lost was a change, too
				changed(netip.Prefix{})
			case errors.Is(err, os.ErrClosed):
				return
			default:
				failed(fmt.Errorf("subscription to routes: %w", err))
				return
			}
		}
	}()
	return s.Close, nil
}

// destination is where the route of a notification leads; invalid if it does not say.
func destination(body []byte) netip.Prefix {
	if len(body) < unix.SizeofRtMsg {
		return netip.Prefix{}
	}
	family, bits := body[0], int(body[1])
	attrs, err := nl.ParseRouteAttr(body[unix.SizeofRtMsg:])
	if err != nil {
		return netip.Prefix{}
	}
	to := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_DST {
			to, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return netip.PrefixFrom(to, bits)
}

// leads tells whether one of some addresses, which are sorted, is in a prefix.
func leads(to netip.Prefix, addrs []netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(addrs, to.Masked().Addr(), netip.Addr.Compare)
	return i < len(addrs) && to.Contains(addrs[i])
}
