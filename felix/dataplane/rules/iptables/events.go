package iptables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
)

// events follow nftables' notifications about the tables of iptables' nft variant. The kernel numbers the generations of
// its rules, and says with each change which one it made; writes of ours are known by those numbers, if there were as many
// while they went on as they have made.
type events struct {
	listen *nlsock.Conn

	mu      sync.Mutex // guards the following
	ask     *nlsock.Conn
	writing int    // writes of ours that go on
	before  uint32 // the generation when the first of them began
	made    uint32 // since then, by us
	ours    map[uint32]bool
	pending []nft.Change // of the generation that is being told
	seen    []generation
	lost    bool
}

// generation is what one transaction changed.
type generation struct {
	number  uint32
	changes []nft.Change
}

func openEvents() (*events, error) {
	ask, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	listen, err := nlsock.Dial(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		_ = ask.Close()
		return nil, fmt.Errorf("%w; is the kernel built with CONFIG_NF_TABLES?", err)
	}
	return &events{ask: ask, listen: listen, ours: map[uint32]bool{}}, nil
}

func (e *events) close() error {
	_ = e.listen.Close() // closed by follow, if that ran
	return e.ask.Close()
}

// generation asks for the number of the present rules. It is called with mu held.
func (e *events) generation() (n uint32, err error) {
	m := nlsock.Message{
		Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: unix.NLM_F_ACK,
		Body: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	}
	err = e.ask.Dump(context.Background(), m, nil, func(_ uint16, body []byte) error {
		n = generationOf(body)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("ask nftables for its generation: %w", err)
	}
	return n, nil
}

func generationOf(body []byte) uint32 {
	for typ, v := range nlsock.Attrs(body[min(4, len(body)):]) {
		if typ == unix.NFTA_GEN_ID {
			return nlsock.BE32(v)
		}
	}
	return 0
}

func (e *events) forget(*family) error { return nil }

func (e *events) wrote(_ *family, _ string, write func() error) error {
	if err := e.begin(); err != nil {
		return err
	}
	err := write()
	return errors.Join(err, e.end(err == nil))
}

func (e *events) begin() (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.writing == 0 {
		if e.before, err = e.generation(); err != nil {
			return err
		}
		e.made = 0
	}
	e.writing++
	return nil
}

func (e *events) end(made bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.writing--; made {
		e.made++
	}
	if e.writing > 0 {
		return nil
	}
	after, err := e.generation()
	if err != nil || after != e.before+e.made {
		return err
	}
	for i := range e.made {
		e.ours[e.before+1+i] = true
	}
	return nil
}

func (e *events) poll(families []*family) error {
	e.mu.Lock()
	seen, lost := e.seen, e.lost
	e.seen, e.lost = nil, false
	var foreign []nft.Change
	for _, g := range seen { // no write of ours is under way: what is ours is known to be
		if !e.ours[g.number] {
			foreign = append(foreign, g.changes...)
		}
		delete(e.ours, g.number)
	}
	if lost {
		clear(e.ours)
	}
	e.mu.Unlock()
	for _, f := range families {
		f.stale = f.stale || lost
		for _, c := range foreign {
			if c.Table.Family == nft.IP6 != f.v6 {
				continue
			}
			for _, t := range f.tables {
				if t.name == c.Table.Name && t.concerns(c.Name) {
					f.stale = true
					f.touch(t.name, c.Name)
				}
			}
		}
	}
	return nil
}

// concerns tells whether we have something in a chain, or in the table if no chain is named.
func (t *kernelTable) concerns(chain string) bool {
	if chain == "" {
		return !t.empty()
	}
	h, hooked := t.hooks[chain]
	return strings.HasPrefix(chain, prefixChains) || hooked && (h.wanted || len(h.ours) > 0)
}

// touch notes that others changed a chain, perhaps under the same hashes.
func (f *family) touch(table, chain string) {
	if f.touched[table] == nil {
		f.touched[table] = map[string]struct{}{}
	}
	f.touched[table][chain] = struct{}{}
}

func (e *events) follow(ctx context.Context, changed func()) error {
	return e.listen.Listen(ctx, func(m nlsock.Event) {
		if m.Kind == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
			if e.generationTold(generationOf(m.Body)) {
				changed()
			}
			return
		}
		if c, ok := nft.ReadChange(m); ok && (c.Table.Family == nft.IP4 || c.Table.Family == nft.IP6) {
			e.mu.Lock()
			e.pending = append(e.pending, c)
			e.mu.Unlock()
		}
	}, func() {
		e.mu.Lock()
		e.lost, e.pending = true, nil
		e.mu.Unlock()
		changed()
	})
}

// generationTold ends a generation. Whether it is ours is judged when no write of ours is under way.
func (e *events) generationTold(n uint32) (news bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pending) == 0 && !e.ours[n] {
		return false
	}
	e.seen = append(e.seen, generation{n, e.pending})
	e.pending = nil
	return true
}
