//go:build lab

package etcd_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/conformance"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/internal/loopback"
)

// member is one process of the etcd that the distribution ships.
type member struct {
	args             []string
	client, peer, id string
	log              string
	cmd              *exec.Cmd
}

// cluster is some of them on loopback.
type cluster struct{ members []*member }

// startCluster runs n members, with further flags, until the end of the test.
func startCluster(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	binary, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatal("this test needs the etcd program; install the package etcd-server")
	}
	c := &cluster{}
	var peers []string
	for i := range n {
		m := &member{id: fmt.Sprint("m", i), client: "http://" + loopback.Address(), peer: "http://" + loopback.Address()}
		peers = append(peers, m.id+"="+m.peer)
		c.members = append(c.members, m)
	}
	dir := t.TempDir()
	for _, m := range c.members {
		m.log = filepath.Join(dir, m.id+".log")
		m.args = []string{
			binary, "--name", m.id, "--data-dir", filepath.Join(dir, m.id),
			"--listen-client-urls", m.client, "--advertise-client-urls", m.client,
			"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer,
			"--initial-cluster", strings.Join(peers, ","), "--initial-cluster-state", "new",
			"--heartbeat-interval", "100", "--election-timeout", "2000", // a busy machine rests for a second now and then
			"--unsafe-no-fsync", // processes are killed here, not machines, whose disks may be slow
			"--logger", "zap", "--log-level", "error", "--log-outputs", m.log,
			"--experimental-watch-progress-notify-interval", "300ms",
		}
		m.args = append(m.args, flags...)
		m.start(t)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.kill()
		}
	})
	c.ready(t)
	return c
}

func (m *member) start(t *testing.T) {
	t.Helper()
	m.cmd = exec.Command(m.args[0], m.args[1:]...)
	require.NoError(t, m.cmd.Start())
}

// kill is kill -9.
func (m *member) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

func (c *cluster) endpoints() (eps []string) {
	for _, m := range c.members {
		eps = append(eps, m.client)
	}
	return eps
}

// raw runs a request of etcd's own client.
func (c *cluster) raw(do func(context.Context, *clientv3.Client) error) error {
	conn, err := clientv3.New(clientv3.Config{Endpoints: c.endpoints(), Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return do(ctx, conn)
}

// ready waits until the cluster takes writes.
func (c *cluster) ready(t *testing.T) {
	t.Helper()
	var err error
	for range 10 {
		err = c.raw(func(ctx context.Context, conn *clientv3.Client) error {
			_, err := conn.Put(ctx, "/ready", "")
			return err
		})
		if err == nil {
			return
		}
	}
	for _, m := range c.members {
		text, _ := os.ReadFile(m.log)
		t.Logf("%s:\n%s", m.id, text)
	}
	require.NoError(t, err, "etcd does not come up")
}

func (c *cluster) leader(t *testing.T) *member {
	t.Helper()
	var found *member
	require.Eventually(t, func() bool { // there may be none for a moment
		err := c.raw(func(ctx context.Context, conn *clientv3.Client) error {
			for _, m := range c.members {
				s, err := conn.Status(ctx, m.client)
				if err != nil {
					return err
				}
				if s.Leader == s.Header.MemberId {
					found = m
				}
			}
			return nil
		})
		return err == nil && found != nil
	}, time.Minute, 10*time.Millisecond, "no leader")
	return found
}

// compact drops what was before the present revision.
func (c *cluster) compact(t *testing.T) {
	t.Helper()
	require.NoError(t, c.raw(func(ctx context.Context, conn *clientv3.Client) error {
		resp, err := conn.Get(ctx, "/", clientv3.WithCountOnly())
		if err == nil {
			_, err = conn.Compact(ctx, resp.Header.Revision)
		}
		return err
	}))
}

func (c *cluster) subject(restart func(*testing.T)) func(*testing.T) conformance.Subject {
	return func(t *testing.T) conformance.Subject {
		require.NoError(t, c.raw(func(ctx context.Context, conn *clientv3.Client) error {
			_, err := conn.Delete(ctx, "/calico/", clientv3.WithPrefix())
			return err
		}))
		backend, err := etcd.New(t.Context(), etcd.Config{Endpoints: c.endpoints(), PageSize: 100, BookmarkEvery: 100 * time.Millisecond})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, backend.Close()) })
		return conformance.Subject{
			Client:    backend,
			Restart:   restart,
			Compact:   c.compact,
			Bookmarks: time.Second,
		}
	}
}

// TestSingleServer runs the suite on one etcd, which Restart kills.
func TestSingleServer(t *testing.T) {
	c := startCluster(t, 1)
	conformance.Run(t, c.subject(func(t *testing.T) {
		c.members[0].kill()
		c.members[0].start(t)
		c.ready(t)
	}))
}

// TestLeaderLoss runs the suite on three members; Restart kills the leader, and brings it back once another one leads.
func TestLeaderLoss(t *testing.T) {
	c := startCluster(t, 3)
	conformance.Run(t, c.subject(func(t *testing.T) {
		old := c.leader(t)
		old.kill()
		c.ready(t)
		old.start(t)
		c.ready(t)
	}))
}

// TestNoLeader leaves a client alone with a member that has lost its cluster: requests must fail in time and say why, and
// the watch must go on without a gap when the cluster is back.
func TestNoLeader(t *testing.T) {
	c := startCluster(t, 3)
	only := c.members[0]
	backend := client(t, etcd.Config{Endpoints: []string{only.client}, OpTimeout: 5 * time.Second})
	w, err := backend.Watch(t.Context(), "IPPool", datastore.WatchOptions{})
	require.NoError(t, err)
	defer w.Stop()
	_, err = backend.Create(t.Context(), pool("before"))
	require.NoError(t, err)
	require.Equal(t, "before", (<-w.Events()).Key.Name)

	for _, m := range c.members[1:] {
		m.kill()
	}
	require.Eventually(t, func() bool { // until it notices, it only waits
		leaderless := false
		return c.raw(func(ctx context.Context, conn *clientv3.Client) error {
			s, err := conn.Status(ctx, only.client)
			leaderless = err == nil && s.Leader == 0
			return err
		}) == nil && leaderless
	}, time.Minute, 50*time.Millisecond)
	begin := time.Now()
	_, err = backend.Get(t.Context(), api.Key{Kind: "IPPool", Name: "before"})
	require.ErrorIs(t, err, datastore.ErrUnavailable)
	require.ErrorContains(t, err, only.client)
	require.ErrorContains(t, err, "leader")
	_, err = backend.Create(t.Context(), pool("during"))
	require.ErrorIs(t, err, datastore.ErrUnavailable)
	require.ErrorContains(t, err, "not known")
	require.Error(t, backend.Ready(t.Context()))
	require.Less(t, time.Since(begin), time.Minute, "none waits for ever")

	for _, m := range c.members[1:] {
		m.start(t)
	}
	c.ready(t)
	require.Eventually(t, func() bool { return backend.Ready(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	_, err = backend.Create(t.Context(), pool("after"))
	require.NoError(t, err)
	for e := range w.Events() {
		if e.Type == datastore.Added && e.Key.Name == "during" {
			continue // it was not known whether it would be done
		}
		if e.Type != datastore.Bookmark {
			require.Equal(t, "after", e.Key.Name)
			break
		}
	}
}

// TestAuthentication turns on etcd's users: one for the project's keys, one who may do nothing.
func TestAuthentication(t *testing.T) {
	server := startCluster(t, 1, "--bcrypt-cost", "4")
	raw, err := clientv3.New(clientv3.Config{Endpoints: server.endpoints(), Logger: zap.NewNop()})
	require.NoError(t, err)
	defer raw.Close()
	ctx := t.Context()
	must := func(_ any, err error) { t.Helper(); require.NoError(t, err) }
	must(raw.RoleAdd(ctx, "root"))
	must(raw.UserAdd(ctx, "root", "secret"))
	must(raw.UserGrantRole(ctx, "root", "root"))
	must(raw.RoleAdd(ctx, "calico"))
	must(raw.RoleGrantPermission(ctx, "calico", "/calico/", "/calico0", 2))
	for _, user := range []string{"calico", "nobody"} {
		must(raw.UserAdd(ctx, user, "secret"))
	}
	must(raw.UserGrantRole(ctx, "calico", "calico"))
	must(raw.AuthEnable(ctx))

	as := func(user, password string) *etcd.Client {
		return client(t, etcd.Config{Endpoints: server.endpoints(), Username: user, Password: password, BookmarkEvery: 50 * time.Millisecond, Logger: quiet()})
	}
	c := as("calico", "secret")
	require.NoError(t, c.Ready(ctx))
	w, err := c.Watch(ctx, "IPPool", datastore.WatchOptions{})
	require.NoError(t, err)
	defer w.Stop()
	_, err = c.Create(ctx, pool("a"))
	require.NoError(t, err)
	require.Equal(t, "a", (<-w.Events()).Key.Name)
	for _, kind := range api.Kinds() {
		_, err := c.List(ctx, kind.Name, datastore.ListOptions{})
		require.NoError(t, err, kind.Name)
	}

	for user, want := range map[string]string{"nobody": "readwrite", "": "ETCD_USERNAME", "wrong": "ETCD_PASSWORD"} {
		password := "secret"
		if user == "wrong" {
			user, password = "calico", "wrong"
		}
		if user == "" {
			password = ""
		}
		bad := as(user, password)
		_, err := bad.Get(ctx, api.Key{Kind: "IPPool", Name: "a"})
		require.ErrorContains(t, err, want)
		require.NotErrorIs(t, err, datastore.ErrUnavailable)
		w, err := bad.Watch(ctx, "IPPool", datastore.WatchOptions{Revision: "1"})
		if err == nil {
			for range w.Events() {
			}
			err = w.Err()
		}
		require.ErrorContains(t, err, want, "a watch that is refused ends")
	}
}

// TestPromptOldServer: Debian's etcd does not tell progress exactly, so an idle watch is moved on by reading.
func TestPromptOldServer(t *testing.T) {
	servers := startCluster(t, 1, "--experimental-watch-progress-notify-interval", "1h")
	prompted(t, client(t, etcd.Config{Endpoints: servers.endpoints(), BookmarkEvery: time.Hour, Logger: quiet()}))
}

// TestCompactedUnderAnIdleWatch: where such a watch has reached is compacted. What waits for it to be complete at a later revision must
// not wait until the server says so of itself.
func TestCompactedUnderAnIdleWatch(t *testing.T) {
	servers := startCluster(t, 1, "--experimental-watch-progress-notify-interval", "1h")
	c := client(t, etcd.Config{Endpoints: servers.endpoints(), BookmarkEvery: time.Hour, Logger: quiet()})
	_, err := c.Create(t.Context(), pool("there"))
	require.NoError(t, err)
	reached := make(chan string, 100)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- datastore.Follow(ctx, c, "IPPool", datastore.FollowOptions{Logger: quiet()}, func(d datastore.Delta[api.Object]) error {
			if len(d.Changes) > 1 {
				return fmt.Errorf("%d changes of one pool", len(d.Changes))
			}
			reached <- d.Revision
			return nil
		})
	}()
	<-reached
	other, err := c.Create(t.Context(), &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	require.NoError(t, err)
	servers.compact(t)
	want, err := strconv.ParseUint(other.GetResourceVersion(), 10, 64)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		c.Prompt()
		select {
		case at := <-reached:
			is, err := strconv.ParseUint(at, 10, 64)
			return err == nil && is >= want
		case <-time.After(50 * time.Millisecond):
			return false
		}
	}, time.Minute, time.Millisecond)
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)
}
