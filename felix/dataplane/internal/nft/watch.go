package nft

import (
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Change is what a notification of group NFNLGRP_NFTABLES says.
type Change struct {
	Table Table
	What  string // "table", "chain", "rule", "set", "element"
	Name  string // of the chain or set; empty for a table
	Gone  bool
}

// ReadChange reads a notification. ok is false for those that announce a generation, trace a packet, or concern kinds of
// objects that this package does not know.
func ReadChange(e nlsock.Event) (c Change, ok bool) {
	if e.Kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(e.Body) < 4 {
		return c, false
	}
	c.Table.Family = Family(e.Body[0])
	nameAttr := uint16(unix.NFTA_SET_NAME) // also NFTA_RULE_CHAIN and NFTA_SET_ELEM_LIST_SET: all are 2
	switch e.Kind & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		c.What, nameAttr = "table", 0
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		c.What, nameAttr = "chain", unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		c.What = "rule"
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		c.What = "set"
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		c.What = "element"
	default:
		return c, false
	}
	switch e.Kind & 0xff {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
		c.Gone = true
	}
	for typ, v := range nlsock.Attrs(e.Body[4:]) {
		switch typ {
		case 1:
			c.Table.Name = nlsock.CString(v)
		case nameAttr:
			c.Name = nlsock.CString(v)
		}
	}
	return c, true
}
