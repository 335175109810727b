package nftables

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
)

// counters reads what rules counted. It has a socket of its own, so that programming does not wait for it.
type counters struct {
	mu   sync.Mutex // guards conn
	conn *nlsock.Conn
}

func openCounters() (*counters, error) {
	conn, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("nftables driver: %w", err)
	}
	return &counters{conn: conn}, nil
}

// Counters reads what the rules of the model counted.
func (d *Driver) Counters(ctx context.Context) ([]dataplane.Counter, error) {
	d.mu.Lock()
	names := make(map[string]string, len(d.model.Chains)) // of chains of the model, by the kernel's
	for name, c := range d.model.Chains {
		for _, layer := range model.Layers() {
			if c.In.Has(layer) {
				names[layerChain(layer, name)] = d.model.ToldAs(name)
			}
		}
	}
	d.mu.Unlock()
	d.counts.mu.Lock()
	defer d.counts.mu.Unlock()
	var out []dataplane.Counter
	at := map[[2]string]int{}
	for _, family := range []nft.Family{nft.IP4, nft.IP6} {
		all, err := nft.Table{Family: family, Name: tableName}.Counters(ctx, d.counts.conn)
		if err != nil {
			return nil, fmt.Errorf("read the counters of rules of %s: %w", family, err)
		}
		for _, c := range all {
			name, known := names[c.Chain]
			if !known {
				continue
			}
			text := c.Comment
			if digest := strings.LastIndex(text, " #"); digest >= 0 {
				text = text[:digest]
			}
			key := [2]string{name, text}
			i, met := at[key]
			if !met {
				i = len(out)
				at[key] = i
				out = append(out, dataplane.Counter{Chain: name, Comment: text})
			}
			out[i].Packets += c.Packets
			out[i].Bytes += c.Bytes
		}
	}
	return out, nil
}
