//go:build storm || secondkernel

package client

import (
	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// SpeakBefore has a client open its streams as the version before did, as long as before says so: it names all that it has in its
// hello. For tests of upgrades.
func SpeakBefore(c *Client, before func() bool) {
	c.hello = func(s *session) error {
		if before() {
			return s.helloBefore()
		}
		return s.hello()
	}
}

func (s *session) helloBefore() error {
	hello := &typhav1.Hello{
		Node: s.client.cfg.Node, View: typhav1.View(s.client.cfg.View), Software: "before", Checkpoint: wire.EncodeCheckpoint(s.asm.point),
	}
	all := make([]uint8, len(view.Digests{}))
	for i := range all {
		all[i] = uint8(i)
	}
	for k, v := range s.asm.have(all) {
		if len(hello.Have) == havePart {
			hello.More = true
			if err := s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: hello}}); err != nil {
				return err
			}
			hello = &typhav1.Hello{}
		}
		hello.Have = append(hello.Have, &typhav1.Have{Key: wire.EncodeKey(k), Version: v[:]})
	}
	return s.send(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: hello}})
}
