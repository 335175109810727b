//go:build lab

package ipset_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/ipset"
)

func TestKernel(t *testing.T) {
	ns := labtest.Enter(t)
	ctx := context.Background()
	k, err := ipset.Open()
	require.NoError(t, err)
	defer k.Close()
	nets := []view.Member{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("10.1.2.3/32")}}
	ports := []view.Member{
		{Prefix: netip.MustParsePrefix("fd00::1/128"), Protocol: 6, Port: 80}, {Prefix: netip.MustParsePrefix("fd00::1/128"), Protocol: 132, Port: 80},
	}
	require.NoError(t, k.Create(ctx, "cali40s:a", ipset.Header{Kind: view.SetNet, Max: 100}))
	require.NoError(t, k.Create(ctx, "cali60n:b", ipset.Header{Kind: view.SetIPPort, V6: true, Max: 100}))
	require.NoError(t, k.Change(ctx, "cali40s:a", nets, nil))
	require.NoError(t, k.Change(ctx, "cali40s:a", nets, nil), "again")
	require.NoError(t, k.Change(ctx, "cali60n:b", ports, nil))
	ns.Run(t, "ipset create other hash:ip")
	heads, err := k.Headers(ctx)
	require.NoError(t, err)
	assert.Equal(t, map[string]ipset.Header{
		"cali40s:a": {Kind: view.SetNet, Max: 100, Len: 2}, "cali60n:b": {Kind: view.SetIPPort, V6: true, Max: 100, Len: 2}, "other": {Max: 65536},
	}, heads)
	got, err := k.Entries(ctx, "cali60n:b")
	require.NoError(t, err)
	assert.Equal(t, set(ports), got)
	require.NoError(t, k.Change(ctx, "cali40s:a", nil, nets[1:]))
	require.NoError(t, k.Change(ctx, "cali40s:a", nil, nets[1:]), "again")
	got, err = k.Entries(ctx, "cali40s:a")
	require.NoError(t, err)
	assert.Equal(t, set(nets[:1]), got)

	require.NoError(t, k.Create(ctx, "cali4t0", ipset.Header{Kind: view.SetNet, Max: 1}))
	require.ErrorIs(t, k.Change(ctx, "cali4t0", nets, nil), ipset.ErrFull)
	require.NoError(t, k.Swap(ctx, "cali4t0", "cali40s:a"))
	ns.Run(t, "iptables-legacy -A INPUT -m set --match-set cali4t0 src")
	require.ErrorIs(t, k.Destroy(ctx, "cali4t0"), ipset.ErrBusy)
	require.NoError(t, k.Destroy(ctx, "cali40s:a"))
	require.NoError(t, k.Destroy(ctx, "cali40s:a"), "again")
	require.Error(t, k.Swap(ctx, "cali4t0", "cali40s:a"), "with what is not there")
	none, err := k.Entries(ctx, "cali40s:a")
	require.NoError(t, err)
	assert.Empty(t, none)
}

func set(members []view.Member) map[view.Member]struct{} {
	out := map[view.Member]struct{}{}
	for _, m := range members {
		out[m] = struct{}{}
	}
	return out
}
