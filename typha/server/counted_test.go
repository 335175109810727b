package server_test

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// counted is a datastore that counts what is asked of it.
type counted struct {
	datastore.Client
	mu    sync.Mutex     // guards asked
	asked map[string]int // by "get Kind" and the like
}

func (c *counted) note(verb, kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked[verb+" "+kind]++
}

// take is what was asked about some kinds since the last time.
func (c *counted) take(kinds ...string) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]int{}
	for what, n := range c.asked {
		if _, kind, _ := strings.Cut(what, " "); slices.Contains(kinds, kind) {
			out[what] = n
		}
	}
	clear(c.asked)
	return out
}

func (c *counted) Get(ctx context.Context, k api.Key) (api.Object, error) {
	c.note("get", k.Kind)
	return c.Client.Get(ctx, k)
}

func (c *counted) List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error) {
	c.note("list", kind)
	return c.Client.List(ctx, kind, opts)
}

func (c *counted) Create(ctx context.Context, o api.Object) (api.Object, error) {
	c.note("create", api.KeyOf(o).Kind)
	return c.Client.Create(ctx, o)
}

func (c *counted) Update(ctx context.Context, o api.Object) (api.Object, error) {
	c.note("update", api.KeyOf(o).Kind)
	return c.Client.Update(ctx, o)
}

func (c *counted) Delete(ctx context.Context, k api.Key, pre datastore.Precondition) (api.Object, error) {
	c.note("delete", k.Kind)
	return c.Client.Delete(ctx, k, pre)
}
