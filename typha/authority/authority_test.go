package authority

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func leaf(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}

func newCA(t *testing.T, now time.Time) CA {
	t.Helper()
	ca, err := New(now)
	require.NoError(t, err)
	return ca
}

// What typha shows is trusted by whoever has the CA, for the names that it was given, and for serving only.
func TestAServingCertificateIsForItsNames(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	cert, key, err := ca.Serving(Names{DNS: []string{"typha", "calico-typha.kube-system.svc"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}, now)
	require.NoError(t, err)
	_, err = tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca.Certs))
	own := leaf(t, cert)
	for _, name := range []string{"typha", "calico-typha.kube-system.svc", "10.0.0.1"} {
		_, err := own.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
		require.NoError(t, err, name)
	}
	_, err = own.Verify(x509.VerifyOptions{Roots: roots, DNSName: "other"})
	require.Error(t, err)
	_, err = own.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	require.Error(t, err, "it cannot pass for a node")
	require.LessOrEqual(t, own.NotAfter.Sub(own.NotBefore), 24*time.Hour)
	require.WithinDuration(t, now.Add(-time.Hour), own.NotBefore, time.Second)
}

func TestWhenAServingCertificateIsDue(t *testing.T) {
	now := time.Now()
	ca, other := newCA(t, now), newCA(t, now)
	cert, _, err := ca.Serving(Names{DNS: []string{"typha"}}, now)
	require.NoError(t, err)
	both := CA{Certs: append(append([]byte{}, other.Certs...), ca.Certs...), Key: ca.Key}
	for _, c := range []struct {
		name string
		ca   CA
		cert []byte
		at   time.Time
		due  bool
	}{
		{"fresh", ca, cert, now, false},
		{"another CA is trusted too", both, cert, now, false},
		{"fourteen hours later", ca, cert, now.Add(14 * time.Hour), false},
		{"sixteen hours later", ca, cert, now.Add(16 * time.Hour), true},
		{"the clock was set back by two hours", ca, cert, now.Add(-2 * time.Hour), true},
		{"signed by another CA", other, cert, now, true},
		{"nothing is there", ca, nil, now, true},
		{"a damaged CA replaces nothing", CA{Certs: ca.Certs, Key: other.Key}, cert, now.Add(48 * time.Hour), false},
	} {
		require.Equal(t, c.due, c.ca.due(c.cert, c.at), c.name)
	}
}

func TestDamagedCAsAreRefused(t *testing.T) {
	ca, other := newCA(t, time.Now()), newCA(t, time.Now())
	k, err := NewKeeper(t.TempDir(), Names{DNS: []string{"typha"}}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, k.Take(ca))
	before, err := os.ReadFile(k.Files().Cert)
	require.NoError(t, err)
	for says, damaged := range map[string]CA{
		"belongs to none":    {Certs: ca.Certs, Key: other.Key},
		"it is not PEM":      {Certs: ca.Certs, Key: []byte("x")},
		"key of the CA: it ": {},
	} {
		require.ErrorContains(t, k.Take(damaged), says)
	}
	after, err := os.ReadFile(k.Files().Cert)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoError(t, k.Take(ca), "the same again")
	same, err := os.ReadFile(k.Files().Cert)
	require.NoError(t, err)
	require.Equal(t, before, same)
	require.NoError(t, k.Take(other))
	require.NoError(t, leaf(t, read(t, k.Files().Cert)).CheckSignatureFrom(leaf(t, other.Certs)))
	for _, path := range []string{k.CAKey(), k.Files().Key} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}
