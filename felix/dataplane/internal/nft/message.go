// Package nft builds and reads the messages of the kernel's nftables interface (linux/netfilter/nf_tables.h): tables,
// chains, rules, sets and set elements, in bytes for nlsock. It knows no policy.
//
// The messages are built here rather than by a library for three reasons that a firewall of thousands of rules makes
// matter: only the last message of a transaction asks for an answer, so a large one cannot overflow the socket's buffer;
// a refused transaction says which message was refused, and thus which object; and building costs one allocation a rule.
package nft

import (
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Family is the protocol family of a table.
type Family byte

// The families.
const (
	IP4 Family = unix.NFPROTO_IPV4
	IP6 Family = unix.NFPROTO_IPV6
	// NetDev sees what comes in on a device before any protocol does. It has no addresses of its own.
	NetDev Family = unix.NFPROTO_NETDEV
)

// String is the family as nft(8) names it.
func (f Family) String() string {
	switch f {
	case IP6:
		return "ip6"
	case NetDev:
		return "netdev"
	}
	return "ip"
}

// AddressLen is the length of an address of the family in bytes.
func (f Family) AddressLen() int {
	if f == IP6 {
		return 16
	}
	return 4
}

// Table names a table. Its methods build messages about it.
type Table struct {
	Family Family
	Name   string
}

// String is "ip calico".
func (t Table) String() string { return t.Family.String() + " " + t.Name }

func (t Table) message(kind, flags uint16, fill func([]byte) []byte) nlsock.Message {
	body := make([]byte, 0, 256)
	body = append(body, byte(t.Family), unix.NFNETLINK_V0, 0, 0)
	// Attribute 1 of every kind of message is the table's name.
	body = nlsock.AttrString(body, 1, t.Name)
	if fill != nil {
		body = fill(body)
	}
	return nlsock.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | kind, Flags: flags, Body: body}
}

// Add makes the table, if it is not there.
func (t Table) Add() nlsock.Message { return t.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, nil) }

// Delete removes the table with everything in it. It must be there.
func (t Table) Delete() nlsock.Message { return t.message(unix.NFT_MSG_DELTABLE, 0, nil) }

// hookDevice is NFTA_HOOK_DEV.
const hookDevice = 3

// Base makes a chain a base chain: where it is hooked in.
type Base struct {
	Type     string // "filter", "nat", "route"
	Hook     uint32 // unix.NF_INET_…, unix.NF_NETDEV_…
	Priority int32
	// Device, for NetDev, is the device's name. From Linux 6.16 on the device need not be there yet, and may go and come
	// back; before, it must be there, and the chain goes with it.
	Device string
}

// AddChain makes an empty chain, if it is not there. base is nil for one that others jump to. The policy is accept.
func (t Table) AddChain(name string, base *Base) nlsock.Message {
	return t.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_CHAIN_NAME, name)
		if base == nil {
			return b
		}
		b = nlsock.Nest(b, unix.NFTA_CHAIN_HOOK, func(b []byte) []byte {
			b = nlsock.AttrBE32(b, unix.NFTA_HOOK_HOOKNUM, base.Hook)
			b = nlsock.AttrBE32(b, unix.NFTA_HOOK_PRIORITY, uint32(base.Priority))
			if base.Device != "" {
				b = nlsock.AttrString(b, hookDevice, base.Device)
			}
			return b
		})
		b = nlsock.AttrBE32(b, unix.NFTA_CHAIN_POLICY, acceptCode)
		return nlsock.AttrString(b, unix.NFTA_CHAIN_TYPE, base.Type)
	})
}

// DeleteChain removes a chain that has no rules and that none jumps to.
func (t Table) DeleteChain(name string) nlsock.Message {
	return t.message(unix.NFT_MSG_DELCHAIN, 0, func(b []byte) []byte {
		return nlsock.AttrString(b, unix.NFTA_CHAIN_NAME, name)
	})
}

// FlushChain removes all rules of a chain.
func (t Table) FlushChain(name string) nlsock.Message {
	return t.message(unix.NFT_MSG_DELRULE, 0, func(b []byte) []byte {
		return nlsock.AttrString(b, unix.NFTA_RULE_CHAIN, name)
	})
}

// MaxComment is the longest comment of a rule that nft(8) shows, in bytes.
const MaxComment = 127

// AddRule appends a rule to a chain. The comment may be empty.
func (t Table) AddRule(chain string, e Expr, comment string) nlsock.Message {
	return t.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(b []byte) []byte {
		b = nlsock.AttrString(b, unix.NFTA_RULE_CHAIN, chain)
		b = nlsock.Attr(b, unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, e)
		if comment == "" {
			return b
		}
		const commentType = 0 // NFTNL_UDATA_RULE_COMMENT: type, length, zero-terminated text
		data := append([]byte{commentType, byte(len(comment) + 1)}, comment...)
		return nlsock.Attr(b, unix.NFTA_RULE_USERDATA, append(data, 0))
	})
}
