package pki

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func pool(t *testing.T, pem []byte) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	require.True(t, p.AppendCertsFromPEM(pem))
	return p
}

func pair(t *testing.T, p Pair) tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(p.Cert, p.Key)
	require.NoError(t, err)
	return c
}

// handshake runs a real mutual TLS handshake over loopback and returns what the server saw and what the client got.
func handshake(t *testing.T, server, client *tls.Config) (peer *x509.Certificate, err error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	require.NoError(t, err)
	defer l.Close()
	seen := make(chan *x509.Certificate, 1)
	go func() {
		defer close(seen)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if err := c.(*tls.Conn).Handshake(); err == nil {
			seen <- c.(*tls.Conn).ConnectionState().PeerCertificates[0]
			_, _ = c.Write([]byte("x"))
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	tc := tls.Client(c, client)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(tc, make([]byte, 1)); err != nil { // a TLS 1.3 server refuses after the client's handshake
		return nil, err
	}
	return <-seen, nil
}

func TestMutualTLSByRole(t *testing.T) {
	now := time.Now()
	ca, err := NewCA("lab", now)
	require.NoError(t, err)
	other, err := NewCA("other lab", now)
	require.NoError(t, err)

	issue := func(ca *CA, r Role, at time.Time) Pair {
		p, err := ca.Issue(r, at)
		require.NoError(t, err)
		return p
	}
	typha := issue(ca, Typha(netip.MustParseAddr("10.30.0.10"), netip.MustParseAddr("fd00::10")), now)
	server := &tls.Config{
		Certificates: []tls.Certificate{pair(t, typha)},
		ClientCAs:    pool(t, ca.CertPEM()), ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}

	cases := []struct {
		name, serverName string
		client           Pair
		uri              string
		wantErr          bool
	}{
		{name: "node by DNS", serverName: "typha", client: issue(ca, Node("worker-1"), now), uri: "muslin://node/worker-1"},
		{name: "node by IPv4", serverName: "10.30.0.10", client: issue(ca, Node("worker-1"), now), uri: "muslin://node/worker-1"},
		{name: "node by IPv6", serverName: "fd00::10", client: issue(ca, Node("worker-1"), now), uri: "muslin://node/worker-1"},
		{name: "operator", serverName: "localhost", client: issue(ca, Operator("admin"), now), uri: "muslin://operator/admin"},
		{name: "server name not in certificate", serverName: "10.30.0.11", client: issue(ca, Node("worker-1"), now), wantErr: true},
		{name: "client of another authority", serverName: "typha", client: issue(other, Node("worker-1"), now), wantErr: true},
		{name: "expired client", serverName: "typha", client: issue(ca, Node("worker-1"), now.Add(-2*Lifetime)), wantErr: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			peer, err := handshake(t, server, &tls.Config{
				RootCAs: pool(t, ca.CertPEM()), ServerName: c.serverName,
				Certificates: []tls.Certificate{pair(t, c.client)}, MinVersion: tls.VersionTLS13,
			})
			if c.wantErr {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Len(t, peer.URIs, 1)
			assert.Equal(t, c.uri, peer.URIs[0].String())
		})
	}

	t.Run("a node's certificate cannot serve", func(t *testing.T) {
		bad := server.Clone()
		bad.Certificates = []tls.Certificate{pair(t, issue(ca, Node("worker-1"), now))}
		_, err := handshake(t, bad, &tls.Config{
			RootCAs: pool(t, ca.CertPEM()), ServerName: "typha",
			Certificates: []tls.Certificate{pair(t, issue(ca, Node("worker-2"), now))}, MinVersion: tls.VersionTLS13,
		})
		require.Error(t, err)
	})
}

func TestWrite(t *testing.T) {
	ca, err := NewCA("lab", time.Now())
	require.NoError(t, err)
	p, err := ca.Issue(Node("worker-1"), time.Now())
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "pki")
	require.NoError(t, p.Write(dir))
	require.NoError(t, ca.Write(dir))

	for name, mode := range map[string]os.FileMode{"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600} {
		st, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, mode, st.Mode().Perm(), name)
	}
	_, err = tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	require.NoError(t, err)
}
