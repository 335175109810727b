package alloc

import (
	"context"
	"errors"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// Known is what a watch has told of IPAMConfiguration, IPPools, IPReservations and Nodes, which are only read here. It may be a
// moment old, as what is read from the datastore is by the time of the write that follows: none of these kinds is part of a
// compare-and-swap. What is: blocks, affinities and handles, is read from the datastore, or was written by this process.
//
// A moment is longer with a watch, so nothing is refused because of what is known, and no block is claimed or given up: then all
// is read anew. What is left is what happens all the time: addresses out of blocks that the node has, and back into the blocks
// that they are of.
//
// The objects are shared: nobody changes them.
type Known interface {
	// Get returns an object, or nil if there is none; ok is false while that is not known.
	Get(key api.Key) (o api.Object, ok bool)
	// List returns all objects of a kind, in any order.
	List(kind string) (all []api.Object, ok bool)
}

// informed is the allocator that goes by what is known; the same one if nothing is.
func (a *Allocator) informed() *Allocator {
	if a.known == nil {
		return a
	}
	b := *a
	b.known, b.store = nil, store{overlay{a.ds, a.known}}
	return &b
}

// overlay answers from what is known where it can.
type overlay struct {
	Datastore
	known Known
}

func (d overlay) Get(ctx context.Context, key api.Key) (api.Object, error) {
	if key.Kind == kindConfiguration || key.Kind == kindNode {
		if o, ok := d.known.Get(key); ok {
			if o == nil {
				return nil, &datastore.Error{Op: "get", Key: key, Reason: datastore.ErrNotFound}
			}
			return o, nil
		}
	}
	return d.Datastore.Get(ctx, key)
}

func (d overlay) List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error) {
	if kind == kindPool || kind == kindReservation {
		if all, ok := d.known.List(kind); ok {
			return datastore.List{Items: all}, nil
		}
	}
	return d.Datastore.List(ctx, kind, opts)
}

func (d overlay) Remove(ctx context.Context, o api.Object) error {
	return datastore.Remove(ctx, d.Datastore, o)
}

// fromKnown assigns from blocks that the node has, of pools that are known. Who gets less than asked for, for whatever reason, asks
// the datastore for the rest.
func (a *Allocator) fromKnown(ctx context.Context, r Request) (Assignment, error) {
	none := Assignment{Family: r.Family, Requested: r.Count}
	if a.known == nil {
		return none, nil
	}
	s, err := a.informed().prepare(ctx, r, true)
	if err != nil {
		return none, nil
	}
	if err := s.fromOwnBlocks(ctx); errors.Is(err, errUncertain) { // more would be taken than is asked for
		return s.got, err
	}
	s.got.Messages = nil
	return s.got, nil
}
