package etcd_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/internal/loopback"
)

// TestUnreachable checks that each way of not reaching etcd ends in time, in one line that names endpoint, cause and cure.
func TestUnreachable(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	cert, key := ca.issue(t, "server")
	strangerCert, strangerKey := other.issue(t, "stranger")
	plain, _ := server(t, embedded.Config{Logger: quiet()})
	secure, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), CertFile: cert, KeyFile: key, CAFile: ca.caFile, Logger: quiet()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, secure.Close()) })

	closed := loopback.Address()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never says a word
	require.NoError(t, err)
	t.Cleanup(func() { silent.Close() }) // not before the parallel tests below have ended

	for _, test := range []struct {
		name     string
		cfg      etcd.Config
		endpoint string
		want     []string
	}{
		{"nobody listens", etcd.Config{}, "http://" + closed, []string{"connection refused", "ETCD_ENDPOINTS"}},
		{"nobody listens, with a user", etcd.Config{Username: "a", Password: "b"}, "http://" + closed, []string{"connection refused"}},
		{"no such host", etcd.Config{}, "http://none.invalid:2379", []string{"none.invalid"}},
		{"no answer", etcd.Config{OpTimeout: 300 * time.Millisecond, DialTimeout: 200 * time.Millisecond}, "http://" + silent.Addr().String(), []string{"connected, but no answer"}},
		{"plain to TLS", etcd.Config{}, strings.Replace(secure.Endpoint(), "https", "http", 1), []string{"https"}},
		{"TLS to plain", etcd.Config{}, strings.Replace(plain.Endpoint(), "http", "https", 1), []string{"TLS"}},
		{"unknown CA", etcd.Config{CertFile: cert, KeyFile: key, CAFile: other.caFile}, secure.Endpoint(), []string{"TLS", "unknown authority", "ETCD_CA_CERT_FILE"}},
		{"no client certificate", etcd.Config{CAFile: ca.caFile}, secure.Endpoint(), []string{"TLS", "certificate", "ETCD_CERT_FILE"}},
		{"client certificate of a stranger", etcd.Config{CertFile: strangerCert, KeyFile: strangerKey, CAFile: ca.caFile}, secure.Endpoint(), []string{"TLS", "certificate", "ETCD_CERT_FILE"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.cfg.Endpoints = []string{test.endpoint}
			if test.cfg.OpTimeout == 0 { // long enough for a handshake while other tests have the processors
				test.cfg.OpTimeout, test.cfg.DialTimeout = 4*time.Second, 3*time.Second
			}
			c := client(t, test.cfg)
			for _, do := range []func() error{
				func() error { return c.Ready(t.Context()) },
				func() error { _, err := c.Get(t.Context(), api.Key{Kind: "IPPool", Name: "a"}); return err },
				func() error { _, err := c.List(t.Context(), "IPPool", datastore.ListOptions{}); return err },
				func() error { _, err := c.Watch(t.Context(), "IPPool", datastore.WatchOptions{}); return err },
				func() error { _, err := c.Create(t.Context(), pool("a")); return err },
			} {
				// On a machine that has no time for it the search for the cause ends without one: then the next error has to name it.
				require.EventuallyWithT(t, func(t *assert.CollectT) {
					begin := time.Now()
					err := do()
					require.Less(t, time.Since(begin), 30*time.Second)
					require.ErrorIs(t, err, datastore.ErrUnavailable)
					require.NotContains(t, err.Error(), "\n")
					for _, want := range append(test.want, test.endpoint) {
						require.ErrorContains(t, err, want)
					}
				}, 2*time.Minute, time.Millisecond)
			}
		})
	}
}

func pool(name string) *api.IPPool {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: "10.0.0.0/16"}}
	p.SetName(name)
	return p
}

func TestSecureConnection(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "server")
	cfg := embedded.Config{Dir: t.TempDir(), CertFile: cert, KeyFile: key, CAFile: ca.caFile}
	c, err := embedded.Open(t.Context(), cfg)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Create(t.Context(), pool("a"))
	require.NoError(t, err)

	clientCert, clientKey := ca.issue(t, "client")
	mine := client(t, etcd.Config{Endpoints: []string{c.Endpoint()}, CertFile: clientCert, KeyFile: clientKey, CAFile: ca.caFile})
	_, err = mine.Get(t.Context(), api.Key{Kind: "IPPool", Name: "a"})
	require.NoError(t, err)
}

func TestConfigErrors(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "client")
	eps := []string{"http://127.0.0.1:2379"}
	for _, test := range []struct {
		name string
		cfg  etcd.Config
		want string
	}{
		{"no endpoint", etcd.Config{}, "ETCD_ENDPOINTS"},
		{"only blanks", etcd.Config{Endpoints: []string{"", " "}}, "ETCD_ENDPOINTS"},
		{"bad endpoint", etcd.Config{Endpoints: []string{"ftp://a:1"}}, "ftp://a:1"},
		{"mixed schemes", etcd.Config{Endpoints: []string{"http://a:1", "https://b:1"}}, "mix"},
		{"missing CA", etcd.Config{Endpoints: eps, CAFile: "none.pem"}, "none.pem"},
		{"CA without certificate", etcd.Config{Endpoints: eps, CAFile: key}, "no PEM certificate"},
		{"certificate without key", etcd.Config{Endpoints: eps, CertFile: cert}, "ETCD_KEY_FILE"},
		{"key of another", etcd.Config{Endpoints: eps, CertFile: cert, KeyFile: cert}, "ETCD_CERT_FILE"},
		{"user without password", etcd.Config{Endpoints: eps, Username: "a"}, "ETCD_PASSWORD"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := etcd.New(t.Context(), test.cfg)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// TestCallerDeadline checks that the caller's own limit holds, also while nobody answers.
func TestCallerDeadline(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	c := client(t, etcd.Config{Endpoints: []string{silent.Addr().String()}})
	var g errgroup.Group
	begin := time.Now()
	for range 4 {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := c.Get(ctx, api.Key{Kind: "IPPool", Name: "a"})
			return err
		})
	}
	require.ErrorIs(t, g.Wait(), datastore.ErrUnavailable)
	require.Less(t, time.Since(begin), 30*time.Second)
}
