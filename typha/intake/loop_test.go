package intake

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// TestPoolModeChangesInTwoPhases changes a pool's mode, and looks at a route of the pool as time goes by.
func TestPoolModeChangesInTwoPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in := New(nil, cache.New(), Options{Logger: slog.New(slog.DiscardHandler)})
		store := views.NewStore()
		l := NewLoop(in, compute.New(), store)
		done := make(chan error)
		go func() { done <- in.loop(ctx, func(b Batch) error { l.step(ctx, b); return nil }) }()
		tell := func(kind string, objects ...api.Object) {
			d := datastore.Delta[api.Object]{Revision: "1", InSync: true}
			for _, o := range objects {
				d.Changes = append(d.Changes, datastore.Change[api.Object]{Type: datastore.Modified, Key: api.KeyOf(o), Object: o})
			}
			require.NoError(t, in.send(ctx, message{kind: kind, delta: d}))
			synctest.Wait()
		}
		pool := func(mode api.VXLANMode) *api.IPPool {
			o := &api.IPPool{}
			o.Name, o.Spec.CIDR, o.Spec.VXLANMode = "p", "10.0.0.0/16", mode
			o.Default()
			return o
		}
		block := api.NewIPAMBlock(netip.MustParsePrefix("10.0.0.0/26"))
		affinity := "host:n1"
		block.Spec.Affinity = &affinity

		tell("IPPool", pool(api.VXLANNever))
		tell("IPPool", pool(api.VXLANCrossSubnet)) // before everything is there a mode is taken as it is
		tell("IPAMBlock", block)
		for _, kind := range kinds {
			tell(kind)
		}
		route := func() (send view.Tunnel, receive []view.Tunnel) {
			synctest.Wait()
			r := store.Get(views.Scope{Node: "n2"}, view.Key{Kind: view.KindRoute, ID: "10.0.0.0/26@n1"}).Item.(view.Route)
			return r.Send, r.Receive
		}
		expect := func(send view.Tunnel, receive ...view.Tunnel) {
			t.Helper()
			s, r := route()
			require.Equal(t, send, s)
			require.Equal(t, receive, r)
		}
		const direct, vxlan = view.TunnelNone, view.TunnelVXLAN
		expect(vxlan, direct, vxlan)

		// In their own time.
		tell("IPPool", pool(api.VXLANAlways))
		expect(vxlan, direct, vxlan)
		time.Sleep(modeStep)
		expect(vxlan, direct, vxlan)
		time.Sleep(modeStep)
		expect(vxlan, vxlan)
		tell("IPPool", pool(api.VXLANNever))
		expect(vxlan, direct, vxlan)
		time.Sleep(modeStep - 1)
		expect(vxlan, direct, vxlan)
		time.Sleep(time.Nanosecond)
		expect(direct, direct, vxlan)
		time.Sleep(modeStep)
		expect(direct, direct)
		time.Sleep(time.Hour)
		expect(direct, direct)

		// Sooner, when all nodes have applied it.
		tell("IPPool", pool(api.VXLANAlways))
		expect(direct, direct, vxlan)
		require.NoError(t, l.Applied(ctx, "p"))
		expect(vxlan, direct, vxlan)
		require.NoError(t, l.Applied(ctx, "p"))
		expect(vxlan, vxlan)
		require.NoError(t, l.Applied(ctx, "p"))
		expect(vxlan, vxlan)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}
