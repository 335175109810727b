package server_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/node/certificate"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// boundTo takes every token for one that is bound to a node.
type boundTo string

func (b boundTo) Node(context.Context, string) (node, refused string, err error) {
	return string(b), "", nil
}

// calls asks typha as calico-node does: each time over a connection of its own.
type calls struct{ config client.Config }

func (c calls) Enroll(ctx context.Context, e client.Enrollment) (time.Time, error) {
	return client.Enroll(ctx, e)
}

func (c calls) Renew(ctx context.Context) (time.Time, error) {
	typha, err := client.New(c.config)
	if err != nil {
		return time.Time{}, err
	}
	defer typha.Close()
	return typha.Renew(ctx)
}

// A node's certificates are good for seconds here: its stream outlives them, new connections are made with the newest, and when
// nobody has renewed them the node enrols anew.
func TestCertificatesRotate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica(func(c *server.Config) { c.CertificateLife, c.TokenReviewer = 15*time.Second, boundTo("n1") })
	r.put("n1", 1, policy("a", "1"))

	dir := t.TempDir()
	files := rpc.Files{CA: filepath.Join(dir, "pki/ca.crt"), Cert: filepath.Join(dir, "pki/tls.crt"), Key: filepath.Join(dir, "pki/tls.key")}
	token := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(token, []byte("a.service-account.token\n"), 0o600))
	node := client.Config{Addresses: []string{r.address}, ServerName: "127.0.0.1", Files: files, Await: true, Node: "n1"}
	keeper := &certificate.Keeper{
		Node: "n1", Files: files, Typhas: []string{r.enroll}, TyphaName: "127.0.0.1", Authority: calls{node}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Settings: certificate.Settings{Token: token, Trust: filepath.Join(w.dir, "ca.crt")},
	}

	// The stream is wanted before there is a certificate: in which order a node's processes start does not matter.
	var broken atomic.Int32
	f := w.follow("n1", node.Addresses, func(c *client.Config, _ *follower) {
		c.Files, c.ServerName, c.Await = node.Files, node.ServerName, true
		var up atomic.Bool
		c.OnStatus = func(s client.Status) {
			if s.Err != nil && up.Load() {
				broken.Add(1)
			}
			if s.InSync {
				up.Store(true)
			}
		}
	})
	require.NoError(t, keeper.Ensure(t.Context()))
	require.Equal(t, "+np/a=1 @1 in sync", text(f.next()))
	first := leaf(t, files)
	before := rpc.Files{CA: files.CA, Cert: filepath.Join(dir, "first.crt"), Key: files.Key}
	body, err := os.ReadFile(files.Cert)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(before.Cert, body, 0o600))

	ctx, cancel := context.WithCancel(t.Context())
	var keeping sync.WaitGroup
	keeping.Go(func() { require.NoError(t, keeper.Keep(ctx)) })
	serials := map[string]bool{}
	require.Eventually(t, func() bool {
		serials[leaf(t, files).Serial] = true
		return len(serials) > 3 && time.Now().After(first.End)
	}, patience, 20*time.Millisecond)

	r.put("n1", 2, policy("b", "2"))
	require.Equal(t, "+np/b=2 @2 in sync", text(f.next()))
	require.Zero(t, broken.Load(), "one stream all the while")

	register := func(files rpc.Files) error {
		c := node
		c.Files = files
		typha, err := client.New(c)
		require.NoError(t, err)
		defer typha.Close()
		_, err = typha.Register(t.Context(), client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
		return err
	}
	require.NoError(t, register(files))
	require.ErrorContains(t, register(before), "ended at ", "connections need the newest")

	cancel()
	keeping.Wait()
	last := leaf(t, files)
	require.Eventually(t, func() bool { return time.Now().After(last.End) }, patience, 20*time.Millisecond)
	require.ErrorContains(t, register(files), "ended at ")
	require.NoError(t, keeper.Ensure(t.Context()))
	require.NoError(t, register(files))
	require.Zero(t, broken.Load())
}

// certificateOf is what the test wants to know of a certificate.
type certificateOf struct {
	Serial string
	End    time.Time
}

func leaf(t *testing.T, files rpc.Files) certificateOf {
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	require.NoError(t, err)
	return certificateOf{pair.Leaf.SerialNumber.String(), pair.Leaf.NotAfter}
}
