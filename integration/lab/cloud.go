package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// checkSourceDest makes the fabric refuse, at a node's port, frames from the node with a source that is not one of its
// own addresses, and frames to the node with a destination that is not. This is what cloud networks do to instances.
// Multicast, broadcast and IPv6 link-local pass: without them there is no neighbour discovery.
func (f *fabric) checkSourceDest(port string, own []netip.Addr) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(f.space.net.Fd())))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: "cloud"})
	from := c.AddChain(&nftables.Chain{
		Name: "from-node", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter,
	})
	to := c.AddChain(&nftables.Chain{
		Name: "to-node", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for _, e := range sourceDestRules(port, own) {
		chain := from
		if e.toNode {
			chain = to
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: e.exprs})
	}
	if err := c.Flush(); err != nil {
		return kernelProblem(fmt.Sprintf("check sources and destinations at the port of %s", port), "CONFIG_NF_TABLES_BRIDGE", err)
	}
	return nil
}

type cloudRule struct {
	toNode bool
	exprs  []expr.Any
}

// An address field of a header that follows the Ethernet header.
type addressField struct {
	etherType uint16
	offset    uint32
	toNode    bool
	v6        bool
}

func sourceDestRules(port string, own []netip.Addr) []cloudRule {
	fields := []addressField{
		{etherType: unix.ETH_P_IP, offset: 12},
		{etherType: unix.ETH_P_IP, offset: 16, toNode: true},
		{etherType: unix.ETH_P_ARP, offset: 14}, // sender protocol address
		{etherType: unix.ETH_P_IPV6, offset: 8, v6: true},
		{etherType: unix.ETH_P_IPV6, offset: 24, v6: true, toNode: true},
	}
	exempt := map[bool][]netip.Prefix{
		false: {netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32")},
		true:  {netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::/128")},
	}
	var rules []cloudRule
	for _, fl := range fields {
		pass := exempt[fl.v6]
		for _, a := range own {
			if a.Is6() == fl.v6 {
				pass = append(slices.Clip(pass), netip.PrefixFrom(a, a.BitLen()))
			}
		}
		for _, p := range pass {
			rules = append(rules, cloudRule{fl.toNode, append(matchField(port, fl, &p), &expr.Verdict{Kind: expr.VerdictAccept})})
		}
		rules = append(rules, cloudRule{fl.toNode, append(matchField(port, fl, nil), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	return rules
}

// matchField matches frames of the field's protocol at the port and, if given, with the field inside a prefix.
func matchField(port string, fl addressField, p *netip.Prefix) []expr.Any {
	side := expr.MetaKeyIIFNAME
	if fl.toNode {
		side = expr.MetaKeyOIFNAME
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	es := []expr.Any{
		&expr.Meta{Key: side, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(fl.etherType)},
	}
	if p == nil {
		return es
	}
	size := uint32(p.Addr().BitLen() / 8)
	return append(es,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: fl.offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipNet(*p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}
