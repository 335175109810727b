package nft

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// ChainName names a chain of whoever's.
type ChainName struct {
	Table Table
	Name  string
}

// Chains lists the chains of all tables, without their rules.
func Chains(ctx context.Context, c *nlsock.Conn) (out []ChainName, err error) {
	m := nlsock.Message{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETCHAIN, Body: []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, 0}}
	err = c.Dump(ctx, m, func() { out = nil }, func(_ uint16, body []byte) error {
		if len(body) < 4 {
			return nil
		}
		chain := ChainName{Table: Table{Family: Family(body[0])}}
		for typ, v := range nlsock.Attrs(body[4:]) {
			switch typ {
			case unix.NFTA_CHAIN_TABLE:
				chain.Table.Name = nlsock.CString(v)
			case unix.NFTA_CHAIN_NAME:
				chain.Name = nlsock.CString(v)
			}
		}
		out = append(out, chain)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	return out, nil
}
