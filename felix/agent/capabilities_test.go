package agent_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// What the kernel lacks is neither wanted of it nor promised to pods; when it comes, all is as if it had always been there.
func TestAPoolThatTheKernelCannotServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.SetCapabilities(t.Context(), state.Capabilities{Lacks: map[string]string{api.FeatureIPIP: "no such module"}})
		pool := &api.IPPool{}
		pool.Name, pool.Spec.CIDR, pool.Spec.IPIPMode = "pods", "10.77.0.0/16", api.IPIPAlways
		acked := false
		r.Batch(t.Context(), view.Batch{Updates: []view.Item{
			view.Resource{Object: pool},
			view.Node{Name: "worker-2", IPv4: netip.MustParsePrefix("10.30.0.56/24")},
			view.Route{Dst: netip.MustParsePrefix("10.77.2.0/26"), Type: view.RouteBlock, Node: "worker-2", Send: view.TunnelIPIP, Receive: []view.Tunnel{view.TunnelIPIP}},
		}}, func() { r.note(func() { acked = true }) })
		r.sync()
		r.SetHost(t.Context(), state.Host{Interfaces: map[string]state.Interface{
			"eth0": {Up: true, MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("10.30.0.206/24")}},
		}})
		synctest.Wait()
		require.True(t, r.is(&acked), "it is no failure that holds anything back")
		asked := []netip.Addr{netip.MustParseAddr("10.77.1.9")}
		require.ErrorContains(t, r.Serves(t.Context(), asked, nil), "node worker-1: kernel has no ipip; pool pods wants ipipMode Always; load module ipip, or set vxlanMode")
		require.NoError(t, r.Serves(t.Context(), []netip.Addr{netip.MustParseAddr("10.1.0.9")}, nil))
		differences, err := r.Dump(t.Context())
		require.NoError(t, err)
		last := differences[len(differences)-1]
		require.Equal(t, "pods", last.Key)
		require.Contains(t, last.Error, "kernel has no ipip")
		encaps := func() map[netip.Prefix]desired.Encap {
			synctest.Wait()
			return see(r.kernel, func(k *kernel) map[netip.Prefix]desired.Encap { return k.encaps })
		}
		require.Empty(t, encaps())

		r.SetCapabilities(t.Context(), state.Capabilities{Has: map[string]string{api.FeatureIPIP: "kernel module"}})
		require.NoError(t, r.Serves(t.Context(), asked, nil))
		require.Equal(t, map[netip.Prefix]desired.Encap{netip.MustParsePrefix("10.77.2.0/26"): {Remote: netip.MustParseAddr("10.30.0.56")}}, encaps())
		require.Equal(t, 1, see(r.kernel, func(k *kernel) int { return len(k.ipips) }))
		require.Equal(t, map[netip.Addr]desired.Decap{netip.MustParseAddr("10.30.0.56"): {}},
			see(r.kernel, func(k *kernel) map[netip.Addr]desired.Decap { return k.decaps }))
		r.Batch(t.Context(), view.Batch{Removes: []view.Key{{Kind: view.KindRoute, ID: "10.77.2.0/26@worker-2"}}}, func() {})
		require.Empty(t, encaps())
	})
}

func TestProbesGoOnWhileSomethingIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var lack error = &tunnel.CapabilityError{Feature: "IP-in-IP", Module: "ipip", Setting: "ipipMode", Err: errNo}
		tried := 0
		p := agent.Probes{
			VXLAN: func() (string, error) { return "kernel", errors.New("out of memory") },
			IPIP: func() (string, error) {
				mu.Lock()
				defer mu.Unlock()
				tried++
				return "kernel module", lack
			},
			Log: slog.New(slog.DiscardHandler),
		}
		first := p.Probe()
		require.Contains(t, first.Lacks[api.FeatureIPIP], "load the module ipip")
		require.Equal(t, map[string]string{api.FeatureVXLAN: "not found out"}, first.Has, "another failure is no lack")
		var told []state.Capabilities
		ctx := t.Context()
		go func() {
			_ = p.Run(ctx, first, func(c state.Capabilities) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, c)
			})
		}()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		mu.Lock()
		require.Len(t, told, 1)
		require.Greater(t, tried, 5)
		lack = nil
		mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		require.Len(t, told, 2)
		require.Empty(t, told[1].Lacks)
		require.Equal(t, "kernel module", told[1].Has[api.FeatureIPIP])
		before := tried
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, before, tried, "nothing is missing any more")
		mu.Unlock()
	})
}
