package verb

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
)

// cutOff is a datastore that is gone after some writes; the last one is done, but nobody hears of it.
type cutOff struct {
	datastore.Client
	writes int
}

var errCutOff = errors.New("cut off")

func (c *cutOff) write(do func() (api.Object, error)) (api.Object, error) {
	c.writes--
	if c.writes > 0 {
		return do()
	}
	if c.writes == 0 {
		_, _ = do()
	}
	return nil, errCutOff
}

func (c *cutOff) Create(ctx context.Context, o api.Object) (api.Object, error) {
	return c.write(func() (api.Object, error) { return c.Client.Create(ctx, o) })
}

func (c *cutOff) Update(ctx context.Context, o api.Object) (api.Object, error) {
	return c.write(func() (api.Object, error) { return c.Client.Update(ctx, o) })
}

func (c *cutOff) Delete(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	return c.write(func() (api.Object, error) { return c.Client.Delete(ctx, key, pre) })
}

// A split that was interrupted, wherever that was, comes to the same end when it is repeated.
func TestSplitGoesOnAfterAnInterruption(t *testing.T) {
	t.Parallel()
	s, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	c, err := s.Client(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, datastore.Init(t.Context(), c))
	info, err := information(t.Context(), c)
	require.NoError(t, err)
	locked := false
	info.Spec.DatastoreReady = &locked
	_, err = c.Update(t.Context(), info)
	require.NoError(t, err)

	const writes = 4 // disabled, two parts, removed
	for cut := range writes + 1 {
		whole := &api.IPPool{}
		whole.Name, whole.Spec.CIDR = "whole", "10.0.0.0/24"
		whole.Default()
		_, err := c.Create(t.Context(), whole)
		require.NoError(t, err)
		split := func(c datastore.Client) error { return splitPool(t.Context(), io.Discard, c, "whole", "", 2) }

		require.ErrorIs(t, split(&cutOff{c, cut}), errCutOff, "after %d writes", cut)
		if err := split(c); cut == writes {
			require.ErrorIs(t, err, datastore.ErrNotFound, "all was done, though nobody heard of it")
		} else {
			require.NoError(t, err, "after %d writes", cut)
		}

		var pools []*api.IPPool
		require.NoError(t, readAll(t.Context(), c, "IPPool", &pools))
		got := map[string]string{}
		for _, p := range pools {
			require.False(t, p.Spec.Disabled, "%s after %d writes", p.Name, cut)
			got[p.Name] = p.Spec.CIDR
			_, err := c.Delete(t.Context(), api.KeyOf(p), datastore.Precondition{})
			require.NoError(t, err)
		}
		require.Equal(t, map[string]string{"split-whole-0": "10.0.0.0/25", "split-whole-1": "10.0.0.128/25"}, got, "after %d writes", cut)
	}
}
