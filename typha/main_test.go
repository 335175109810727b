package main

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
)

// certificates makes a CA, typha's certificate and a node's, and returns the directory.
func certificates(t *testing.T) string {
	dir := t.TempDir()
	ca, err := pki.NewCA("test", time.Now())
	require.NoError(t, err)
	require.NoError(t, ca.Write(dir))
	for name, role := range map[string]pki.Role{"typha": pki.Typha(netip.MustParseAddr("127.0.0.1")), "node": pki.Node("n1")} {
		pair, err := ca.Issue(role, time.Now())
		require.NoError(t, err)
		require.NoError(t, pair.Write(filepath.Join(dir, name)))
	}
	return dir
}

func files(dir, name string) rpc.Files {
	at := func(f string) string { return filepath.Join(dir, name, f) }
	return rpc.Files{CA: at("ca.crt"), Cert: at("tls.crt"), Key: at("tls.key")}
}

// start runs typha until ctx ends, and returns its exit code.
func start(ctx context.Context, out io.Writer, args ...string) int {
	var cfg settings
	return daemon.Run("typha", "", &cfg, func(signals context.Context, d *daemon.Daemon) error {
		signals, cancel := context.WithCancel(signals)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return run(signals, d, cfg)
	}, args, out)
}

func TestTroubleAtTheStartIsOneClearLine(t *testing.T) {
	t.Setenv("KUBECONFIG", "") // whoever runs this may have a cluster
	dir := certificates(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	tls := files(dir, "typha")
	good := map[string]string{
		"listen": "127.0.0.1:0", "ca": tls.CA, "cert": tls.Cert, "key": tls.Key, "datastore": "embedded", "log-level": "error",
	}
	for _, c := range []struct {
		name string
		set  map[string]string
		says []string
	}{
		{"port in use", map[string]string{"listen": taken.Addr().String()}, []string{"setting listen", taken.Addr().String(), "address already in use", "choose a free"}},
		{"enrolment port in use", map[string]string{"enroll-listen": taken.Addr().String(), "ca-key": filepath.Join(dir, "ca.key")}, []string{"setting enroll-listen", "choose a free"}},
		{"no certificate", map[string]string{"cert": ""}, []string{"missing certificate", "--cert"}},
		{"no such CA", map[string]string{"ca": "/nonexistent"}, []string{"CA certificate", "/nonexistent", "--ca"}},
		{"key of another certificate", map[string]string{"key": filepath.Join(dir, "node", "tls.key")}, []string{"tls.crt", "tls.key"}},
		{"CA key of another CA", map[string]string{"ca-key": tls.Key}, []string{"CA key", "--ca-key"}},
		{"enrolment without a CA key", map[string]string{"enroll-listen": "127.0.0.1:0"}, []string{"--ca-key"}},
		{"unknown datastore", map[string]string{"datastore": "mongodb"}, []string{"mongodb", "etcdv3"}},
		{"embedded without a directory", map[string]string{"datastore-dir": ""}, []string{"directory"}},
		{"unreachable datastore", map[string]string{"datastore": "etcdv3", "datastore-endpoints": "http://" + loopback.Address()}, []string{"cannot be reached"}},
		{"cluster addresses that are no range", map[string]string{"advertise-cluster-ips": "10.96.0.1"}, []string{"setting advertise-cluster-ips", "not a CIDR"}},
		{"no such kubeconfig", map[string]string{"kubeconfig": "/nonexistent"}, []string{"setting kubeconfig", "/nonexistent"}},
		{"token without a store", map[string]string{"new-token": "n1"}, []string{"setting tokens"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			set := map[string]string{"datastore-dir": filepath.Join(t.TempDir(), "data")}
			for _, from := range []map[string]string{good, c.set} {
				maps.Copy(set, from)
			}
			var args []string
			for k, v := range set {
				if v != "" {
					args = append(args, "--"+k+"="+v)
				}
			}
			var out bytes.Buffer
			assert.Equal(t, 1, start(t.Context(), &out, args...))
			said := strings.TrimSpace(out.String())
			assert.Equal(t, 0, strings.Count(said, "\n"), "one line: %s", said)
			for _, s := range append(c.says, "typha: ") {
				assert.Contains(t, said, s)
			}
		})
	}
}

func TestTyphaWithItsOwnDatastore(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	dir := certificates(t)
	tls, listen, enroll, store, tokens := files(dir, "typha"), loopback.Address(), loopback.Address(), loopback.Address(), filepath.Join(dir, "tokens")
	args := []string{
		"--listen=" + listen, "--enroll-listen=" + enroll, "--ca=" + tls.CA, "--cert=" + tls.Cert, "--key=" + tls.Key,
		"--ca-key=" + filepath.Join(dir, "ca.key"), "--tokens=" + tokens,
		"--datastore=embedded", "--datastore-dir=" + filepath.Join(dir, "data"), "--datastore-listen=" + store, "--log-level=error",
	}
	for _, round := range []string{"a first start", "a restart"} {
		ctx, stop := context.WithCancel(t.Context())
		var out bytes.Buffer
		ended := make(chan int, 1)
		go func() { ended <- start(ctx, &out, args...) }()

		c, err := client.New(client.Config{Addresses: []string{listen}, Files: files(dir, "node"), Node: "n1"})
		require.NoError(t, err)
		var got client.Registered
		require.Eventually(t, func() bool {
			got, err = c.Register(ctx, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24"), ReadOnly: round == "a restart"})
			return err == nil
		}, time.Minute, 20*time.Millisecond, "%s: %v", round, err)
		assert.Equal(t, "10.0.0.1/24", got.Node.Spec.BGP.IPv4Address, round)
		require.NoError(t, c.Close())

		// Others reach the datastore at the address given, as calicoctl does.
		other, err := etcd.New(ctx, etcd.Config{Endpoints: []string{"http://" + store}})
		require.NoError(t, err)
		list, err := other.List(ctx, "Node", datastore.ListOptions{})
		require.NoError(t, err)
		assert.Len(t, list.Items, 1)
		_, err = other.Get(ctx, api.Key{Kind: "ClusterInformation", Name: "default"})
		require.NoError(t, err)
		require.NoError(t, other.Close())

		stop()
		assert.Equal(t, 0, <-ended, "%s: %s", round, out.String())
	}
}

func TestTokensAreMadeByTheBinary(t *testing.T) {
	tokens := filepath.Join(t.TempDir(), "tokens")
	var out bytes.Buffer
	assert.Equal(t, 0, start(t.Context(), &out, "--new-token=n1", "--tokens="+tokens, "--log-level=error"))
	body, err := os.ReadFile(tokens)
	require.NoError(t, err)
	assert.Contains(t, string(body), " n1 ")
}
