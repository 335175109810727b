package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// enrolled is where a node that enrols keeps its files; the CA's certificate is there already.
func (w *world) enrollment(node, token string, r *replica) client.Enrollment {
	dir := w.t.TempDir()
	ca, err := os.ReadFile(filepath.Join(w.dir, "ca.crt"))
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600))
	return client.Enrollment{
		Addresses: []string{r.enroll}, Node: node, JoinToken: token,
		Files: rpc.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")},
	}
}

func (w *world) token(node string, life time.Duration) string {
	token, err := server.NewJoinToken(filepath.Join(w.dir, "tokens"), node, life)
	require.NoError(w.t, err)
	return token
}

func TestNodeEnrolsWithAJoinToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1, policy("a", "1"))
	e := w.enrollment("n1", w.token("n1", time.Hour), r)
	renew, err := client.Enroll(t.Context(), e)
	require.NoError(t, err)

	pair, err := tls.LoadX509KeyPair(e.Files.Cert, e.Files.Key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	require.NoError(t, err)
	id, err := rpc.IdentityOf(cert)
	require.NoError(t, err)
	assert.Equal(t, "node/n1", id.String())
	assert.LessOrEqual(t, cert.NotAfter.Sub(cert.NotBefore), 24*time.Hour)
	assert.WithinDuration(t, time.Now().Add(-time.Hour), cert.NotBefore, time.Minute)
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage, "it cannot pass for typha")
	assert.True(t, renew.After(time.Now().Add(time.Hour)) && renew.Before(cert.NotAfter))
	for _, f := range []string{e.Files.Cert, e.Files.Key} {
		info, err := os.Stat(f)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	f := w.follow("n1", []string{r.address}, func(c *client.Config, _ *follower) { c.Files = e.Files })
	assert.Equal(t, "+np/a=1 @1 in sync", text(f.first(1)))

	_, err = client.Enroll(t.Context(), e)
	require.ErrorIs(t, err, client.ErrDenied)
	assert.Contains(t, err.Error(), "used already")

	// With the certificate it gets the next one, and keeps its key.
	key, err := os.ReadFile(e.Files.Key)
	require.NoError(t, err)
	_, err = f.client.Renew(t.Context())
	require.NoError(t, err)
	again, err := tls.LoadX509KeyPair(e.Files.Cert, e.Files.Key)
	require.NoError(t, err)
	assert.NotEqual(t, pair.Certificate[0], again.Certificate[0])
	same, err := os.ReadFile(e.Files.Key)
	require.NoError(t, err)
	assert.Equal(t, key, same)
}

func TestEnrolmentIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	for _, c := range []struct {
		name, node, token string
		is                error
		says              string
	}{
		{"unknown token", "n1", "guess", client.ErrDenied, "not known"},
		{"another's token", "n1", w.token("n2", time.Hour), client.ErrDenied, `another node than "n1"`},
		{"ended token", "n1", w.token("n1", -time.Second), client.ErrDenied, "ended at"},
		{"bad name", "N1/../n2", w.token("n3", time.Hour), client.ErrInvalid, "no node name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := w.enrollment(c.node, c.token, r)
			_, err := client.Enroll(t.Context(), e)
			require.ErrorIs(t, err, c.is)
			assert.Contains(t, err.Error(), c.says)
			assert.False(t, exists(t, e.Files.Cert))
		})
	}
	_, err := client.Enroll(t.Context(), w.enrollment("n2", w.token("n2", time.Hour), r))
	require.NoError(t, err, "what was refused used up nothing")

	_, err = w.node("n5", r.address).Renew(t.Context())
	require.NoError(t, err)
	c, err := client.New(client.Config{Addresses: []string{r.address}, Files: w.enrollment("n6", "", r).Files, Node: "n6"})
	require.ErrorContains(t, err, "certificate")
	assert.Nil(t, c)
}

func TestCertificateOfAnotherNodeCannotBeRenewedTo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	c, err := client.New(client.Config{Addresses: []string{r.address}, Files: w.files(pki.Node("n1")), Node: "n2"})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Renew(t.Context())
	require.ErrorIs(t, err, client.ErrDenied)
}

func TestTokensOthersCanReadAreNotUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := filepath.Join(w.dir, "tokens")
	w.token("n1", time.Hour)
	require.NoError(t, os.Chmod(path, 0o644))
	_, err := server.NewJoinToken(path, "n1", time.Hour)
	require.ErrorContains(t, err, "chmod 600")
}

func TestTokenStoreKeepsNoToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.token("n1", time.Hour)
	body, err := os.ReadFile(filepath.Join(w.dir, "tokens"))
	require.NoError(t, err)
	assert.NotContains(t, string(body), token)
	info, err := os.Stat(filepath.Join(w.dir, "tokens"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}
