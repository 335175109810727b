package embedded

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/conformance"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/datastore/open"
)

// rig is a server that is shared by the tests of the suite and can be restarted at its address.
type rig struct {
	cfg    Config
	server *Server
}

func start(t *testing.T, cfg Config) *rig {
	t.Helper()
	cfg.Dir = filepath.Join(t.TempDir(), "data")
	r := &rig{cfg: cfg}
	var err error
	r.server, err = Start(t.Context(), cfg)
	require.NoError(t, err)
	r.cfg.Listen = strings.TrimPrefix(r.server.Endpoint(), "http://")
	t.Cleanup(func() { require.NoError(t, r.server.Close()) })
	return r
}

func (r *rig) restart(t *testing.T) {
	t.Helper()
	require.NoError(t, r.server.Close())
	var err error
	r.server, err = Start(t.Context(), r.cfg)
	require.NoError(t, err)
}

// raw runs a request of etcd's own client.
func (r *rig) raw(t *testing.T, do func(context.Context, *clientv3.Client) error) {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{r.server.Endpoint()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, do(t.Context(), c))
}

func (r *rig) subject(t *testing.T) conformance.Subject {
	t.Helper()
	r.raw(t, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Delete(ctx, "/", clientv3.WithPrefix())
		return err
	})
	c, err := etcd.New(t.Context(), etcd.Config{Endpoints: []string{r.server.Endpoint()}, PageSize: 100, BookmarkEvery: 100 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return conformance.Subject{
		Client:  c,
		Restart: r.restart,
		Compact: func(t *testing.T) {
			r.raw(t, func(ctx context.Context, c *clientv3.Client) error {
				resp, err := c.Get(ctx, "/", clientv3.WithCountOnly())
				if err != nil {
					return err
				}
				_, err = c.Compact(ctx, resp.Header.Revision)
				return err
			})
		},
		Bookmarks: time.Second,
	}
}

func TestConformance(t *testing.T) {
	r := start(t, Config{})
	conformance.Run(t, r.subject)
}

func TestDataSurvives(t *testing.T) {
	cfg := Config{Dir: filepath.Join(t.TempDir(), "deep", "data")}
	c, err := Open(t.Context(), cfg)
	require.NoError(t, err)
	info, err := os.Stat(cfg.Dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	pool := &api.IPPool{}
	pool.SetName("a")
	pool.Spec.CIDR = "10.0.0.0/16"
	stored, err := c.Create(t.Context(), pool)
	require.NoError(t, err)
	require.NoError(t, c.Close())

	c, err = Open(t.Context(), cfg)
	require.NoError(t, err)
	got, err := c.Get(t.Context(), api.KeyOf(pool))
	require.NoError(t, err)
	require.Equal(t, stored, got)
	require.NoError(t, c.Close())
}

func TestOneProcessPerDirectory(t *testing.T) {
	cfg := Config{Dir: t.TempDir()}
	c, err := Open(t.Context(), cfg)
	require.NoError(t, err)
	defer c.Close()
	_, err = Open(t.Context(), cfg)
	require.ErrorContains(t, err, cfg.Dir)
	require.ErrorContains(t, err, "in use by process")
	require.NotContains(t, err.Error(), "\n")
	require.NoError(t, c.Ready(t.Context()))
}

func TestStartErrors(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer busy.Close()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("text"), 0o600))
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"no directory", Config{}, []string{"no directory"}},
		{"directory is a file", Config{Dir: file}, []string{file, "not a directory"}},
		{"port in use", Config{Dir: dir, Listen: busy.Addr().String()}, []string{busy.Addr().String(), "in use"}},
		{"bad address", Config{Dir: dir, Listen: "localhost"}, []string{"localhost", "host:port"}},
		{"half a certificate", Config{Dir: dir, CertFile: file}, []string{"both a certificate and its key"}},
		{"bad certificate", Config{Dir: dir, CertFile: file, KeyFile: file}, []string{"certificate"}},
		{"missing certificate", Config{Dir: dir, CertFile: "none.pem", KeyFile: "none.pem"}, []string{"none.pem"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Start(t.Context(), test.cfg)
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
			require.NotContains(t, err.Error(), "\n")
		})
	}
	// None of them kept the directory.
	c, err := Open(t.Context(), Config{Dir: dir})
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

func TestOpenByType(t *testing.T) {
	cfg := open.Config{Type: open.TypeEmbedded, Directory: t.TempDir()}
	_, err := open.Open(t.Context(), cfg)
	require.ErrorContains(t, err, "ETCD_ENDPOINTS", "a program without the backend says what to do")
	c, err := open.Open(t.Context(), cfg, Backend())
	require.NoError(t, err)
	require.NoError(t, c.Ready(t.Context()))
	require.NoError(t, c.Close())
	require.ErrorContains(t, c.Ready(t.Context()), "closed")
	_, err = c.Get(t.Context(), api.Key{Kind: "IPPool", Name: "a"})
	require.NotErrorIs(t, err, datastore.ErrUnavailable)
}

func TestReachable(t *testing.T) {
	for listener, want := range map[string]string{
		"127.0.0.1:2379": "127.0.0.1:2379",
		"10.0.0.1:2379":  "10.0.0.1:2379",
		"0.0.0.0:2379":   "127.0.0.1:2379",
		"[::]:2379":      "[::1]:2379",
	} {
		require.Equal(t, want, reachable(listener))
	}
}

// TestKilled kills a process in the middle of its writes: what it acknowledged must be there, and the lock must not.
func TestKilled(t *testing.T) {
	const dirVariable = "MUSLIN_TEST_DIRECTORY"
	if dir := os.Getenv(dirVariable); dir != "" { // this is the process to be killed
		c, err := Open(t.Context(), Config{Dir: dir})
		require.NoError(t, err)
		for i := 0; ; i++ {
			set := &api.GlobalNetworkSet{}
			set.SetName(fmt.Sprint("set-", i))
			_, err := c.Create(t.Context(), set)
			require.NoError(t, err)
			fmt.Println("ack", set.Name)
		}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), dirVariable+"="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var acknowledged []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		name, ok := strings.CutPrefix(lines.Text(), "ack ")
		if !ok {
			continue
		}
		if acknowledged = append(acknowledged, name); len(acknowledged) == 50 {
			require.NoError(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait() // it was killed
	require.GreaterOrEqual(t, len(acknowledged), 50)

	c, err := Open(t.Context(), Config{Dir: dir})
	require.NoError(t, err)
	defer c.Close()
	for _, name := range acknowledged {
		_, err := c.Get(t.Context(), api.Key{Kind: "GlobalNetworkSet", Name: name})
		require.NoError(t, err)
	}
}
