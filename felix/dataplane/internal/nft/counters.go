package nft

import (
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// Counter is what the kernel counted at one rule.
type Counter struct {
	Chain, Comment string
	Packets, Bytes uint64
}

// Counters lists the rules of a table that count, in their order.
func (t Table) Counters(ctx context.Context, c *nlsock.Conn) ([]Counter, error) {
	var out []Counter
	err := t.dump(ctx, c, unix.NFT_MSG_GETRULE, nil, func() { out = nil }, func(a map[uint16][]byte) {
		if packets, bytes, counts := counted(a[unix.NFTA_RULE_EXPRESSIONS]); counts {
			out = append(out, Counter{
				Chain: nlsock.CString(a[unix.NFTA_RULE_CHAIN]), Comment: comment(a[unix.NFTA_RULE_USERDATA]), Packets: packets, Bytes: bytes,
			})
		}
	})
	return out, err
}

// counted finds the counter among a rule's expressions.
func counted(expressions []byte) (packets, bytes uint64, counts bool) {
	for _, e := range nlsock.Attrs(expressions) {
		var name string
		var data []byte
		for typ, v := range nlsock.Attrs(e) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = nlsock.CString(v)
			case unix.NFTA_EXPR_DATA:
				data = v
			}
		}
		if name != "counter" {
			continue
		}
		for typ, v := range nlsock.Attrs(data) {
			switch {
			case len(v) < 8:
			case typ == unix.NFTA_COUNTER_PACKETS:
				packets = binary.BigEndian.Uint64(v)
			case typ == unix.NFTA_COUNTER_BYTES:
				bytes = binary.BigEndian.Uint64(v)
			}
		}
		return packets, bytes, true
	}
	return 0, 0, false
}
