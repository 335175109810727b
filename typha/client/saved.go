package client

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

// The saved view is a recorded stream: a line that says whose view it is, then the messages that typha would send to
// bring an empty client to it (replicas, chunks, the last with the checkpoint), each after its length, then the SHA-256
// of all before. Items are kept as typha sent them, so that after an upgrade nothing is missing that this version did
// not know, and the versions stay true.
const savedFormat = "muslin-view 1 %s %s\n"

// chunkSize is how many bytes of items a chunk of the file holds at most, as on the stream.
const chunkSize = 1 << 20

// savedView is what the file holds.
type savedView struct {
	node     string
	view     View
	items    map[view.Key]*entry
	point    view.Checkpoint
	inSync   bool
	replicas []Replica
	number   int              // of the last batch in it; not in the file
	puts     map[view.Key]put // what items say; only after decodeSaved
}

// encode returns the file's content.
func (v savedView) encode() ([]byte, error) {
	var out bytes.Buffer
	fmt.Fprintf(&out, savedFormat, v.view, v.node)
	record := func(m *typhav1.SyncResponse) error {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		out.Write(binary.AppendUvarint(nil, uint64(len(b))))
		out.Write(b)
		return nil
	}
	if err := record(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: encodeReplicas(v.replicas)}}); err != nil {
		return nil, err
	}
	chunk, size := &typhav1.Chunk{}, 0
	flush := func() error {
		err := record(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Chunk{Chunk: chunk}})
		chunk, size = &typhav1.Chunk{}, 0
		return err
	}
	for _, k := range slices.SortedFunc(maps.Keys(v.items), views.CompareKeys) {
		parts, err := v.items[k].encode()
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			if size > 0 && size+len(p) > chunkSize {
				if err := flush(); err != nil {
					return nil, err
				}
			}
			chunk.Items, size = append(chunk.Items, p), size+len(p)
		}
	}
	chunk.Checkpoint, chunk.InSync = wire.EncodeCheckpoint(v.point), v.inSync
	if err := flush(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(out.Bytes())
	return append(out.Bytes(), sum[:]...), nil
}

func (e *entry) encode() ([][]byte, error) {
	if e.raw != nil {
		return [][]byte{e.raw}, nil
	}
	return wire.Encode(*e.set, e.version)
}

// errDamaged is what a file that is torn or was tampered with ends with.
var errDamaged = errors.New("it is damaged (torn by a crash, or changed by someone)")

// decodeSaved reads a file's content.
func decodeSaved(b []byte, node string, which View) (*savedView, error) {
	if len(b) < sha256.Size {
		return nil, errDamaged
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(sum, want[:]) {
		return nil, errDamaged
	}
	rest, mine := bytes.CutPrefix(body, fmt.Appendf(nil, savedFormat, which, node))
	if !mine {
		line, _, _ := bytes.Cut(body, []byte("\n"))
		return nil, fmt.Errorf("it holds %q, not the %s view of node %s", line, which, node)
	}
	v := &savedView{node: node, view: which}
	a := newAssembler()
	for len(rest) > 0 {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return nil, errDamaged
		}
		var m typhav1.SyncResponse
		if err := proto.Unmarshal(rest[n:n+int(size)], &m); err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		rest = rest[n+int(size):]
		switch r := m.GetResponse().(type) {
		case *typhav1.SyncResponse_Replicas:
			v.replicas = decodeReplicas(r.Replicas)
		case *typhav1.SyncResponse_Chunk:
			for _, it := range r.Chunk.GetItems() {
				a.put(it)
			}
			if c := r.Chunk.GetCheckpoint(); c != nil {
				s, whole := a.checkpoint(wire.DecodeCheckpoint(c), r.Chunk.GetInSync())
				if !whole || v.items != nil {
					return nil, errDamaged
				}
				v.items, v.puts, v.point, v.inSync = a.items, s.puts, s.point, s.inSync
			}
		}
	}
	if v.items == nil {
		return nil, errDamaged
	}
	return v, nil
}
