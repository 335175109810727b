package server

import (
	"iter"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

// chunkSize bounds the items of a chunk, in bytes. With what is around them they fit into the 32 KiB buffers that gRPC keeps; what
// is larger would take one of 1 MiB, for each of a thousand clients that come at once.
const chunkSize = 30 << 10

// sendBatch takes what the view has for the client, if the client has room, and sends it. more is true if it did
// something, so that it is worth looking again.
func (s *session) sendBatch() (more bool, err error) {
	s.mu.Lock()
	waits := s.dirty && s.unacked >= window
	s.cramped = waits
	ready := s.dirty && !waits
	resend, startOver := s.resend, s.startOver
	if ready {
		s.dirty, s.resend, s.startOver, s.taking = false, nil, false, true
	}
	s.mu.Unlock()
	s.setBehind(waits)
	if !ready {
		return false, nil
	}
	switch {
	case startOver:
		s.sub.Resend()
		if err := s.stream.Send(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Welcome{Welcome: &typhav1.Welcome{}}}); err != nil {
			return false, err
		}
	case len(resend) > 0:
		s.sub.Resend(resend...)
	}
	cut, ok := s.sub.Next()
	if !ok {
		s.mu.Lock()
		s.taking = false
		s.mu.Unlock()
		return false, nil
	}
	// What all have is the same bytes for all in a stream's first batch.
	var common commonChunks
	if s.status.GetSent() == 0 && len(cut.Common) > 0 {
		common = s.server.commons.chunksOf(s, cut.Common)
	}
	own := cut.Updates
	if common.list == nil {
		own = cut.All()
	}
	items, size := s.encode(own)
	size += common.size + keysSize(cut.Removes)
	if err := s.waitForRoom(size); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.status.Sent++
	batch := s.status.Sent
	s.flight = append(s.flight, flight{batch: batch, bytes: size})
	s.unacked += size
	s.taking = false
	s.routed(batch, own)
	s.routed(batch, common.routed)
	s.mu.Unlock()
	cut.Checkpoint = s.server.stamped(cut.Checkpoint)
	if items, err = s.sendCommon(batch, common, items); err != nil {
		return false, err
	}
	if err := s.sendChunks(chunks(batch, items, &cut)); err != nil {
		return false, err
	}
	if batch == 1 {
		s.leave()
	}
	m := s.server.metrics
	m.batches.Inc()
	m.items.Add(float64(len(cut.Updates) + len(cut.Common) + len(cut.Removes)))
	m.bytes.Add(float64(size))
	return true, nil
}

func (s *session) sendChunks(parts iter.Seq[*typhav1.Chunk]) error {
	for c := range parts {
		if err := s.stream.Send(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Chunk{Chunk: c}}); err != nil {
			return err
		}
	}
	return nil
}

// frame is an item on the wire. A large set is several.
type frame struct {
	kind  view.Kind
	bytes []byte
}

// encode returns the items of entries, and their size. An entry is encoded once for all sessions.
func (s *session) encode(entries []*views.Entry) (items []frame, size int) {
	items = make([]frame, 0, len(entries))
	for _, e := range entries {
		for b := range wire.Items(e.Frame(s.server.frame)) {
			items = append(items, frame{e.Key.Kind, b})
			size += len(b)
		}
	}
	return items, size
}

// frame encodes an entry. One that has no encoding is left out and reported: it must not keep the others from the node.
func (s *Server) frame(e *views.Entry) []byte {
	b, err := wire.Frame(e.Item(), e.Version)
	if err != nil {
		s.log.Error("an item cannot be sent, nodes go without it", "item", e.Key, "error", err)
		return nil
	}
	return b
}

// keysSize is about how many bytes keys take on the wire.
func keysSize(keys []view.Key) int {
	size := 0
	for _, k := range keys {
		size += len(k.ID) + 8
	}
	return size
}

// waitForRoom waits until a batch fits into the window beside what is under way, or nothing is under way. What is to be
// said meanwhile is sent.
func (s *session) waitForRoom(size int) error {
	if s.fits(size) {
		return nil
	}
	s.setBehind(true)
	defer s.setBehind(false)
	for !s.fits(size) {
		select {
		case <-s.stream.Context().Done():
			return s.end(s.stream.Context().Err())
		case <-s.stir:
		}
		if err := s.end(nil); err != nil {
			return err
		}
		for _, m := range s.takeOutbox() {
			if err := s.stream.Send(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// setBehind says whether there is something for the client that has to wait for its acknowledgement.
func (s *session) setBehind(behind bool) {
	switch {
	case behind && !s.behind:
		s.server.metrics.behind.Inc()
	case !behind && s.behind:
		s.server.metrics.behind.Dec()
	}
	s.behind = behind
}

func (s *session) fits(size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cramped = s.unacked > 0 && s.unacked+size > window
	return !s.cramped
}

// chunks yields a batch in parts: updates, then removals, the checkpoint in the last one. Without a cut they are not all: there are
// no others than updates, and perhaps none.
func chunks(batch uint64, items []frame, cut *views.Cut) iter.Seq[*typhav1.Chunk] {
	return func(yield func(*typhav1.Chunk) bool) {
		var removes []view.Key
		if cut != nil {
			removes = cut.Removes
		}
		for cut != nil || len(items) > 0 {
			c := &typhav1.Chunk{Batch: batch}
			size := 0
			n := 0
			for n < len(items) && (size == 0 || size+len(items[n].bytes) <= chunkSize) {
				size += len(items[n].bytes)
				n++
			}
			c.Items = make([][]byte, n)
			for i, f := range items[:n] {
				c.Items[i] = f.bytes
			}
			items = items[n:]
			if len(items) == 0 {
				for len(removes) > 0 && size < chunkSize {
					c.Removes = append(c.Removes, wire.EncodeKey(removes[0]))
					size += keysSize(removes[:1])
					removes = removes[1:]
				}
			}
			last := len(items) == 0 && len(removes) == 0
			if last && cut != nil {
				c.Checkpoint, c.InSync = wire.EncodeCheckpoint(cut.Checkpoint), cut.InSync
			}
			if !yield(c) || last {
				return
			}
		}
	}
}
