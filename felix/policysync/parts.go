package policysync

import (
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/scope"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/client"
)

// A part of a change has about partSize bytes, and at most those of one item more: of a set, no more than partMembers. With
// that it fits into a message of gRPC, of 4 MiB at most for clients that do not say otherwise.
const (
	partSize    = 256 << 10
	partMembers = 8 << 10
)

// parts yields an update as messages, each encoded when its turn has come. Nothing to tell is no message.
func parts(u scope.Update) iter.Seq2[*felixv1.SyncResponse, error] {
	return func(yield func(*felixv1.SyncResponse, error) bool) {
		if u.Empty() {
			return
		}
		part, size := &felixv1.SyncResponse{}, 0
		for m, err := range messages(u.Items) {
			if err != nil {
				yield(nil, err)
				return
			}
			if size += proto.Size(m); size > partSize && len(part.GetItem()) > 0 {
				if !yield(part, nil) {
					return
				}
				part, size = &felixv1.SyncResponse{}, proto.Size(m)
			}
			part.Item = append(part.Item, m)
		}
		for _, key := range u.Gone {
			part.Gone = append(part.Gone, &typhav1.ItemKey{Kind: typhav1.ItemKind(key.Kind), Id: key.ID})
		}
		part.InSync, part.Complete = u.InSync, true
		yield(part, nil)
	}
}

// messages yields the messages of items; a large set has several.
func messages(items []view.Item) iter.Seq2[*typhav1.Item, error] {
	return func(yield func(*typhav1.Item, error) bool) {
		for _, item := range items {
			set, _ := item.(view.IPSet)
			for len(set.Members) > partMembers {
				first := set
				first.Members, set.Members = set.Members[:partMembers], set.Members[partMembers:]
				m, err := client.Message(first)
				if err == nil {
					m.GetIpSet().More = true
				}
				if item = set; !yield(m, err) {
					return
				}
			}
			if !yield(client.Message(item)) {
				return
			}
		}
	}
}
