package client

import (
	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// Message returns an item of a view as typha sends it, but without its version, for those to whom a node passes on a part of
// what it was told.
func Message(it view.Item) (*typhav1.Item, error) {
	m, err := wire.Message(it, view.Version{})
	if err != nil {
		return nil, err
	}
	m.Version = nil
	if d := m.GetIpSetDelta(); d != nil {
		d.From, d.To = nil, nil
	}
	return m, nil
}
