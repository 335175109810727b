package server

import (
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

// commons are the chunks of what all clients of a kind of view are sent first, serialised once after a change for all who come: of
// a large cluster that is nearly all that they are sent.
type commons struct {
	mu sync.Mutex // guards of; who comes while they are made waits for them
	of map[views.ViewKind]commonChunks
}

type commonChunks struct {
	list   []*views.Entry // what they were made of
	chunks []commonChunk  // in the order of kinds
	size   int            // of the items, in bytes
	routed []*views.Entry // of the list, one for each thing that a session notes of what it sends
}

// commonChunk is a part of a stream's first batch. It has items of one kind.
type commonChunk struct {
	kind    view.Kind
	message *grpc.PreparedMsg
}

// sendCommon sends the common chunks, and before each the items of earlier kinds. It returns those that are left.
func (s *session) sendCommon(batch uint64, common commonChunks, items []frame) ([]frame, error) {
	for _, c := range common.chunks {
		n := slices.IndexFunc(items, func(f frame) bool { return f.kind >= c.kind })
		if n < 0 {
			n = len(items)
		}
		if err := s.sendChunks(chunks(batch, items[:n], nil)); err != nil {
			return nil, err
		}
		if err := s.stream.SendMsg(c.message); err != nil {
			return nil, err
		}
		items = items[n:]
	}
	return items, nil
}

// chunksOf returns the chunks of a view's common entries, of which there are some; none if they cannot be made.
func (c *commons) chunksOf(s *session, list []*views.Entry) commonChunks {
	c.mu.Lock()
	defer c.mu.Unlock()
	made := c.of[s.scope.View]
	if len(made.list) == len(list) && &made.list[0] == &list[0] {
		return made
	}
	made = commonChunks{list: list, routed: onePool(list)}
	for rest := list; len(rest) > 0; {
		kind := rest[0].Key.Kind
		n := slices.IndexFunc(rest, func(e *views.Entry) bool { return e.Key.Kind != kind })
		if n < 0 {
			n = len(rest)
		}
		items, size := s.encode(rest[:n])
		for m := range chunks(1, items, nil) {
			p := &grpc.PreparedMsg{}
			if err := p.Encode(s.stream, &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Chunk{Chunk: m}}); err != nil {
				s.server.log.Error("what all clients are sent is serialised for each by itself", "error", err)
				return commonChunks{}
			}
			made.chunks = append(made.chunks, commonChunk{kind, p})
		}
		made.size += size
		rest = rest[n:]
	}
	if c.of == nil {
		c.of = map[views.ViewKind]commonChunks{}
	}
	c.of[s.scope.View] = made
	return made
}

// onePool returns one node's addresses and, of each pool, one route.
func onePool(list []*views.Entry) (few []*views.Entry) {
	met := map[string]bool{}
	for _, e := range list {
		about := ""
		switch item := e.Item().(type) {
		case view.Node:
		case view.Route:
			about = "pool " + item.Pool
		default:
			continue
		}
		if !met[about] {
			met[about] = true
			few = append(few, e)
		}
	}
	return few
}
