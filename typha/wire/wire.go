// Package wire turns the values of package api/view into the messages of typha.v1 and back. Both ends of the stream use
// it: typha/server encodes each item once for all nodes, typha/client decodes it and encodes it again for the saved view.
//
// It refuses everything else: no connection, no file, no decision about what to do with an item that cannot be read.
// Bytes from the other side are not trusted: whatever they hold, decoding ends with an item or an error.
package wire

import (
	"errors"
	"fmt"
	"maps"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"

	"github.com/muslin-net/muslin/api/view"
)

// ErrUnknownKind is what decoding an item ends with if its kind, or a value that decides its meaning, is from a later
// version of the protocol. The receiver skips the item.
var ErrUnknownKind = errors.New("item is of a kind that this version does not know; upgrade this component")

// CapabilityPods is what a typha says to its clients that follows the pods of Kubernetes: each pod comes as a WorkloadEndpoint with
// its UID, and with what it asks for, when it is bound to its node.
const CapabilityPods = "pods"

// lastKind is the highest kind that this version knows.
const lastKind = view.KindOrigination

// EncodeKey returns a key's message.
func EncodeKey(k view.Key) *typhav1.ItemKey {
	return &typhav1.ItemKey{Kind: typhav1.ItemKind(k.Kind), Id: k.ID}
}

// EncodeKeys returns the messages of keys, nil for none.
func EncodeKeys(keys []view.Key) []*typhav1.ItemKey {
	var out []*typhav1.ItemKey
	for _, k := range keys {
		out = append(out, EncodeKey(k))
	}
	return out
}

// DecodeKey returns the key of a message. ok is false if its kind is not known.
func DecodeKey(m *typhav1.ItemKey) (k view.Key, ok bool) {
	kind := m.GetKind()
	if kind <= 0 || kind > typhav1.ItemKind(lastKind) {
		return view.Key{}, false
	}
	return view.Key{Kind: view.Kind(kind), ID: m.GetId()}, true
}

// DecodeKeys returns the keys of messages, without those of unknown kinds.
func DecodeKeys(list []*typhav1.ItemKey) []view.Key {
	var out []view.Key
	for _, m := range list {
		if k, ok := DecodeKey(m); ok {
			out = append(out, k)
		}
	}
	return out
}

// EncodeCheckpoint returns a checkpoint's message, nil for a nil checkpoint.
func EncodeCheckpoint(c view.Checkpoint) *typhav1.Checkpoint {
	if c == nil {
		return nil
	}
	return &typhav1.Checkpoint{Revisions: c}
}

// DecodeCheckpoint returns the checkpoint of a message, nil for a nil message.
func DecodeCheckpoint(m *typhav1.Checkpoint) view.Checkpoint {
	if m == nil {
		return nil
	}
	c := view.Checkpoint{}
	maps.Copy(c, m.GetRevisions())
	return c
}

// DecodeVersion returns a version from its 16 bytes.
func DecodeVersion(b []byte) (view.Version, error) {
	if len(b) != len(view.Version{}) {
		return view.Version{}, fmt.Errorf("a version has %d bytes, this one has %d", len(view.Version{}), len(b))
	}
	return view.Version(b), nil
}
