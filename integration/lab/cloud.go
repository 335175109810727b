package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// cloud is what the fabric does as the networks of clouds do to their instances: at a node's port it refuses frames from
// the node with a source that is not one of the node's own addresses, and frames to the node with a destination that is
// not. It looks at the outer header only. Multicast, broadcast and IPv6 link-local pass: without them there is no neighbour
// discovery.
//
// Each port has two chains that count what they refuse. Two maps from port to chain say for which ports they count, so that
// a switch is one element of a map, and takes effect at once for the next frame.
type cloud struct {
	space *space

	mu  sync.Mutex              // guards the following
	own map[string][]netip.Addr // of each port that has chains
	on  map[string]bool
}

const (
	cloudTable    = "cloud"
	cloudFromNode = "sources" // the hook where frames come in from nodes, and the map that it asks
	cloudToNode   = "destinations"
)

func newCloud(s *space) *cloud {
	return &cloud{space: s, own: map[string][]netip.Addr{}, on: map[string]bool{}}
}

// check turns the check of a port on or off. own are the addresses of the node behind it.
func (c *cloud) check(port string, own []netip.Addr, on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on[port] == on {
		return nil
	}
	nft, err := nftables.New(nftables.WithNetNSFd(int(c.space.net.Fd())))
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: cloudTable}
	maps := map[bool]*nftables.Set{}
	for toNode, name := range map[bool]string{false: cloudFromNode, true: cloudToNode} {
		maps[toNode] = &nftables.Set{
			Table: table, Name: name, IsMap: true, KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict,
		}
	}
	if len(c.own) == 0 {
		if err := addCloudTable(nft, table, maps); err != nil {
			return err
		}
	}
	_, made := c.own[port]
	if !made {
		addPortChains(nft, table, port, own)
	}
	for toNode, m := range maps {
		element := []nftables.SetElement{{
			Key: ifName(port), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: portChain(port, toNode)},
		}}
		change := nft.SetDeleteElements
		if on {
			change = nft.SetAddElements
		}
		if err := change(m, element); err != nil {
			return err
		}
	}
	if err := nft.Flush(); err != nil {
		return kernelProblem(fmt.Sprintf("check sources and destinations at the port of %s", port), "CONFIG_NF_TABLES_BRIDGE", err)
	}
	c.own[port], c.on[port] = own, on
	return nil
}

// addCloudTable adds the hooks, which look up the port's chain in their map.
func addCloudTable(nft *nftables.Conn, table *nftables.Table, maps map[bool]*nftables.Set) error {
	nft.AddTable(table)
	for toNode, m := range maps {
		if err := nft.AddSet(m, nil); err != nil {
			return err
		}
		hook, side := nftables.ChainHookPrerouting, expr.MetaKeyIIFNAME
		if toNode {
			hook, side = nftables.ChainHookForward, expr.MetaKeyOIFNAME
		}
		chain := nft.AddChain(&nftables.Chain{
			Name: m.Name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		})
		nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: side, Register: 1},
			&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		}})
	}
	return nil
}

// addPortChains adds the two chains of a port.
func addPortChains(nft *nftables.Conn, table *nftables.Table, port string, own []netip.Addr) {
	chains := map[bool]*nftables.Chain{}
	for _, toNode := range []bool{false, true} {
		chains[toNode] = nft.AddChain(&nftables.Chain{Name: portChain(port, toNode), Table: table})
	}
	for _, r := range sourceDestRules(own) {
		nft.AddRule(&nftables.Rule{Table: table, Chain: chains[r.toNode], Exprs: r.exprs})
	}
}

func portChain(port string, toNode bool) string {
	if toNode {
		return "to-" + port
	}
	return "from-" + port
}

func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// checks tells whether the check of a port is on.
func (c *cloud) checks(port string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.on[port]
}

// refused counts the frames that the check refused at a port, from its node and to it, since the lab is up.
func (c *cloud) refused(port string) (from, to uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, made := c.own[port]; !made {
		return 0, 0, nil
	}
	nft, err := nftables.New(nftables.WithNetNSFd(int(c.space.net.Fd())))
	if err != nil {
		return 0, 0, err
	}
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: cloudTable}
	for toNode, n := range map[bool]*uint64{false: &from, true: &to} {
		rules, err := nft.GetRules(table, &nftables.Chain{Name: portChain(port, toNode), Table: table})
		if err != nil {
			return 0, 0, fmt.Errorf("count what the fabric refused at the port of %s: %w", port, err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok {
					*n += counter.Packets
				}
			}
		}
	}
	return from, to, nil
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

func sourceDestRules(own []netip.Addr) []cloudRule {
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
			rules = append(rules, cloudRule{fl.toNode, append(matchField(fl, &p), &expr.Verdict{Kind: expr.VerdictAccept})})
		}
		rules = append(rules, cloudRule{fl.toNode, append(matchField(fl, nil), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	return rules
}

// matchField matches frames of the field's protocol and, if given, with the field inside a prefix.
func matchField(fl addressField, p *netip.Prefix) []expr.Any {
	es := []expr.Any{
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
