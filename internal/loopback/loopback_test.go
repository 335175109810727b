package loopback_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/loopback"
)

func TestAddressesAreFreeAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		a := loopback.Address()
		require.False(t, seen[a], a)
		seen[a] = true
		parsed, err := netip.ParseAddrPort(a)
		require.NoError(t, err)
		require.True(t, parsed.Addr().IsLoopback(), a)
		l, err := net.Listen("tcp", a)
		require.NoError(t, err)
		defer l.Close()
	}
}
