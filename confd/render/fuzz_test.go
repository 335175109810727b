package render

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePeerIP(t *testing.T) {
	for text, want := range map[string]struct {
		address string
		port    uint16
	}{
		"10.0.0.1":         {"10.0.0.1", 0},
		"10.0.0.1:1179":    {"10.0.0.1", 1179},
		"fd00::1":          {"fd00::1", 0},
		"[fd00::1]":        {"fd00::1", 0},
		"[fd00::1]:1179":   {"fd00::1", 1179},
		"::ffff:10.0.0.1":  {"10.0.0.1", 0},
		"10.0.0.1:0":       {},
		"10.0.0.1:70000":   {},
		"fe80::1":          {},
		"fe80::1%eth0":     {},
		"fd00::1%eth0":     {},
		"tor.example":      {},
		"":                 {},
		"[fd00::1":         {},
		"224.0.0.5":        {},
		"0.0.0.0":          {},
		"[10.0.0.1]:1179x": {},
	} {
		a, port, ok := parsePeerIP(text)
		require.Equal(t, want.address != "", ok, text)
		if ok {
			require.Equal(t, netip.MustParseAddr(want.address), a, text)
			require.Equal(t, want.port, port, text)
		}
	}
}

// FuzzParsePeerIP checks that whatever is taken is an address that can be dialled, and is read the same again.
func FuzzParsePeerIP(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.1:179", "[fd00::1]:179", "fd00::1", "[::]", "1.2.3.4:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, port, ok := parsePeerIP(s)
		if !ok {
			return
		}
		require.True(t, a.IsValid() && a.Zone() == "" && !a.IsMulticast())
		again := a.String()
		if port != 0 {
			again = netip.AddrPortFrom(a, port).String()
		}
		b, samePort, ok := parsePeerIP(again)
		require.True(t, ok)
		require.Equal(t, a, b)
		require.Equal(t, port, samePort)
	})
}
