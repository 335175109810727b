//go:build lab

package kubernetes_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/integration/k8s"
)

// wire counts requests, and can be cut.
type wire struct {
	lists, watches atomic.Int64
	mu             sync.Mutex
	conns          []net.Conn
}

func (w *wire) config(s *k8s.Server) *rest.Config {
	c := rest.CopyConfig(s.Config(k8s.Admin))
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			w.mu.Lock()
			w.conns = append(w.conns, conn)
			w.mu.Unlock()
		}
		return conn, err
	}
	c.Wrap(func(inner http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.URL.Query().Get("watch") == "true":
				w.watches.Add(1)
			case r.Method == http.MethodGet:
				w.lists.Add(1)
			}
			return inner.RoundTrip(r)
		})
	})
	return c
}

// cut breaks all connections.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// testResume cuts connections under a watch: it goes on where it was, and nothing is listed again.
func testResume(t *testing.T, s *k8s.Server) {
	var line wire
	watching := openWith(t, kubernetes.Config{REST: line.config(s)})
	c, ctx := open(t, s, ""), patient(t)
	l, err := watching.List(ctx, "GlobalNetworkSet", datastore.ListOptions{})
	require.NoError(t, err)
	w := watchFrom(t, watching, "GlobalNetworkSet", l.Revision)
	lists := line.lists.Load()
	for _, name := range []string{"r1", "r2", "r3", "r4"} {
		line.cut()
		create(t, c, set(name))
		e := next(t, w)
		require.Equal(t, datastore.Added, e.Type)
		require.Equal(t, name, e.Key.Name)
	}
	require.Equal(t, lists, line.lists.Load(), "a watch that resumes lists nothing")
	require.Greater(t, line.watches.Load(), int64(1))
}

// testForgotten asks for history that the server does not have.
func testForgotten(t *testing.T, s *k8s.Server) {
	c := open(t, s, "")
	w := watchFrom(t, c, "GlobalNetworkSet", "1")
	timeout := time.After(time.Minute)
	for open := true; open; {
		select {
		case _, open = <-w.Events():
		case <-timeout:
			require.FailNow(t, "the watch does not end")
		}
	}
	require.ErrorIs(t, w.Err(), datastore.ErrCompacted)
}

// testExpired has etcd and the API server forget the revision of a list that is being read: the list is read anew, and is whole.
func testExpired(t *testing.T, s *k8s.Server) {
	c := open(t, s, "")
	const want = 25
	for i := range want {
		create(t, c, set(fmt.Sprintf("expired-%02d", i)))
	}
	store, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Etcd()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer store.Close()
	forget := sync.OnceFunc(func() {
		create(t, c, set("meanwhile"))
		now, err := store.Get(patient(t), "x")
		require.NoError(t, err)
		_, err = store.Compact(patient(t), now.Header.Revision)
		require.NoError(t, err)
		restart(t, s) // it remembers on its own
	})
	var begun, expired atomic.Int64
	conf := rest.CopyConfig(s.Config(k8s.Admin))
	conf.Wrap(func(inner http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Query().Get("continue") != "" {
				forget()
			} else if r.URL.Path == "/apis/projectcalico.org/v3/globalnetworksets" {
				begun.Add(1)
			}
			answer, err := inner.RoundTrip(r)
			if err != nil { // the connection was one to the server before
				answer, err = inner.RoundTrip(r)
			}
			if err == nil && answer.StatusCode == http.StatusGone {
				expired.Add(1)
			}
			return answer, err
		})
	})
	paged := openWith(t, kubernetes.Config{REST: conf, PageSize: 20, OpTimeout: 2 * time.Minute})
	l, err := paged.List(patient(t), "GlobalNetworkSet", datastore.ListOptions{NamePrefix: "expired-"})
	require.NoError(t, err)
	require.Len(t, l.Items, want)
	require.Equal(t, int64(1), expired.Load())
	require.Equal(t, int64(2), begun.Load())
}

// testRestart kills the API server under those who follow many kinds. What happens afterwards is told, nothing is told twice, and
// resources are listed again once, if at all.
func testRestart(t *testing.T, s *k8s.Server) {
	var line wire
	c := openWith(t, kubernetes.Config{REST: line.config(s)})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	other := open(t, s, "")
	tier := &api.Tier{}
	tier.SetName("after")
	pool := &api.IPPool{}
	pool.SetName("after")
	pool.Spec.CIDR = "10.3.0.0/16"
	peer := &api.BGPPeer{}
	peer.SetName("after")
	peer.Spec.PeerIP = "192.0.2.1"
	policy := &api.NetworkPolicy{}
	policy.SetNamespace("shop")
	policy.SetName("after")
	for _, o := range []api.Object{tier, pool, peer, policy} {
		o.Default()
	}
	after := map[string]func(){ // by what is followed, what happens after the restart
		"GlobalNetworkSet": func() { create(t, other, set("after")) },
		"Tier":             func() { create(t, other, tier) },
		"IPPool":           func() { create(t, other, pool) },
		"BGPPeer":          func() { create(t, other, peer) },
		"NetworkPolicy":    func() { create(t, other, policy) },
		"Profile":          func() { namespace(t, s, "after", nil) },
		"Node": func() {
			require.NoError(t, s.Create(ctx, "/api/v1/nodes", object{"metadata": object{"name": "after"}}))
		},
		"WorkloadEndpoint": func() { require.NoError(t, s.Create(ctx, "/api/v1/namespaces/shop/pods", pod("after", "node-b"))) },
	}
	synced, told := make(chan string), make(chan api.Key, 1000)
	for kind := range after {
		go func() {
			_ = datastore.Follow(ctx, c, kind, datastore.FollowOptions{}, func(d datastore.Delta[api.Object]) error {
				if d.InSync {
					synced <- kind
					return nil
				}
				for _, ch := range d.Changes {
					told <- ch.Key
				}
				return nil
			})
		}()
	}
	for range after {
		<-synced
	}
	lists := line.lists.Load()
	restart(t, s)
	require.Eventually(t, func() bool { return other.Ready(t.Context()) == nil }, time.Minute, 50*time.Millisecond)
	for _, do := range after {
		do()
	}
	missing := map[string]bool{}
	for kind := range after {
		missing[kind] = true
	}
	timeout := time.After(2 * time.Minute)
	var all []api.Key
	for len(missing) > 0 {
		select {
		case key := <-told:
			delete(missing, key.Kind)
			all = append(all, key)
		case <-timeout:
			require.FailNow(t, "was not told", "%v", missing)
		}
	}
	require.Len(t, all, len(after), "nothing is told that has not changed: %v", all)
	const resources = 10 // two of the eight kinds are made of two
	t.Logf("%d kinds, %d resources: %d lists after the restart", len(after), resources, line.lists.Load()-lists)
	require.LessOrEqual(t, line.lists.Load()-lists, int64(2*resources)) // a server that comes up may refuse one at first
}
