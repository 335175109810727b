package intake

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
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

// doorkeeper lets no step be taken, or every one, and remembers the last thing it was told.
type doorkeeper struct {
	open atomic.Bool
	last atomic.Pointer[Carriage]
}

func (d *doorkeeper) Changed([]cache.Change) {}
func (d *doorkeeper) Carried(c Carriage)     { d.last.Store(&c) }
func (d *doorkeeper) MayCarry(string, compute.Transport, compute.Transport) bool {
	return d.open.Load()
}

// TestStepsWaitForWhatTheyNeed has the observer hold a change of mode, and typha start in the middle of another.
func TestStepsWaitForWhatTheyNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in := New(nil, cache.New(), Options{Logger: slog.New(slog.DiscardHandler)})
		l, door := NewLoop(in, compute.New(), views.NewStore()), &doorkeeper{}
		l.Observe(door)
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
		p := &api.IPPool{}
		p.Name, p.Spec.CIDR, p.Spec.VXLANMode = "p", "10.0.0.0/16", api.VXLANAlways
		p.Default()
		p.Status = &api.IPPoolStatus{Transport: &api.PoolTransport{Send: "IPIP", Receive: []api.Encapsulation{"IPIP"}}}
		for _, kind := range kinds {
			if kind == "IPPool" {
				tell(kind, p)
			} else {
				tell(kind)
			}
		}
		expect := func(what string, moving bool, send view.Tunnel, receive ...view.Tunnel) {
			t.Helper()
			synctest.Wait()
			require.Equal(t, compute.Transport{Send: send, Receive: receive}, door.last.Load().Now, what)
			require.Equal(t, moving, door.last.Load().Moving, what)
		}
		const ipip, vxlan = view.TunnelIPIP, view.TunnelVXLAN
		expect("a new typha goes on from the record", true, ipip, ipip, vxlan)
		time.Sleep(firstStep + heldStep - heldLook)
		expect("the door is shut", true, ipip, ipip, vxlan)
		stage := door.last.Load().Stage
		touched := p.DeepCopy()
		touched.Status.Transport.Receive = append(touched.Status.Transport.Receive, "VXLAN")
		tell("IPPool", touched)
		require.Equal(t, stage, door.last.Load().Stage, "a status is no change of mode")
		door.open.Store(true)
		time.Sleep(heldLook)
		expect("the door is open, but what was lacking nodes must apply first", true, ipip, ipip, vxlan)
		require.NotEqual(t, stage, door.last.Load().Stage)
		require.NoError(t, l.Applied(ctx, "p", stage))
		expect("this was the stage before", true, ipip, ipip, vxlan)
		stage = door.last.Load().Stage
		require.NoError(t, l.Applied(ctx, "p", stage))
		expect("now they have", true, vxlan, ipip, vxlan)
		door.open.Store(false)
		require.NoError(t, l.Applied(ctx, "p", stage)) // late news of the stage before
		expect("nothing new", true, vxlan, ipip, vxlan)
		time.Sleep(modeStep + heldStep + heldLook)
		expect("it was shut for too long", false, vxlan, vxlan)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

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
			r := store.Get(views.Scope{Node: "n2"}, view.Key{Kind: view.KindRoute, ID: "10.0.0.0/26@n1"}).Item().(view.Route)
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
		require.NoError(t, l.Applied(ctx, "p", l.stage))
		expect(vxlan, direct, vxlan)
		require.NoError(t, l.Applied(ctx, "p", l.stage))
		expect(vxlan, vxlan)
		require.NoError(t, l.Applied(ctx, "p", l.stage))
		expect(vxlan, vxlan)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}
