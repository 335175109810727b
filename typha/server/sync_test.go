package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

func TestViewIsServedAndKeptUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	f := w.follow("n1", []string{r.address})
	r.put("n2", 3, policy("other", "x"))
	r.put("n1", 5, policy("a", "1"), policy("b", "1"))
	assert.Contains(t, []string{"@3 in sync", "+np/a=1 +np/b=1 @5 in sync"}, text(f.first(5)))
	r.put("n1", 6, policy("a", "2"))
	assert.Equal(t, "+np/a=2 @6 in sync", text(f.next()))
	r.put("n2", 7, policy("other", "y"))
	r.drop("n1", 8, policyKey("b"))
	assert.Equal(t, "-np/b @8 in sync", text(f.next()), "another node's changes are not sent")
	f.silent()
}

// first skips batches that only say that there was nothing before the revision.
func (f *follower) first(revision uint64) client.Batch {
	for {
		if b := f.next(); b.Checkpoint["etcd"] >= revision {
			return b
		}
	}
}

func TestNothingIsServedBeforeAllIsKnown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.views.Commit(views.Change{Checkpoint: at(1)}) // not in sync
	f := w.follow("n1", []string{r.address})
	eventually(t, "connected", func() bool { return f.client.Status().Address != "" })
	f.silent()
	assert.False(t, f.client.Status().InSync)
	r.put("n1", 2, policy("a", "1"))
	assert.Equal(t, "+np/a=1 @2 in sync", text(f.next()))
	eventually(t, "in sync", func() bool { return f.client.Status().InSync })
}

func TestResumeOnAnotherReplicaSendsOnlyDifferences(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := w.replica(), w.replica()
	for _, r := range []*replica{one, two} {
		r.put("n1", 5, policy("same", "1"), policy("changed", "1"), policy("gone", "1"))
	}
	f := w.follow("n1", []string{one.address, two.address})
	assert.Equal(t, "+np/changed=1 +np/gone=1 +np/same=1 @5 in sync", text(f.next()))
	here, there := one, two
	if f.client.Status().Address == two.address {
		here, there = two, one
	}
	there.put("n1", 6, policy("changed", "2"), policy("new", "2"))
	there.drop("n1", 7, policyKey("gone"))
	here.stop()
	assert.Equal(t, "+np/changed=2 +np/new=2 -np/gone @7 in sync", text(f.next()))
}

func TestReplicaBehindTheClientIsNotUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	behind := w.replica(func(c *server.Config) {
		c.CheckpointWait = 50 * time.Millisecond
		c.Replicas = []string{loopback.Address(), "10.0.0.9:5473"}
	})
	behind.put("n1", 4, policy("a", "old"))
	stream := w.stream("n1", behind.address)
	stream.hello(&typhav1.Hello{Checkpoint: &typhav1.Checkpoint{Revisions: at(5)}})
	_, err := stream.Recv()
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
	assert.Contains(t, err.Error(), "etcd:5")
	details := status.Convert(err).Details()
	require.Len(t, details, 1)
	assert.Equal(t, "10.0.0.9:5473", details[0].(*typhav1.Replicas).GetReplicas()[1].GetAddress())
}

func TestReplicaBehindTheClientCatchesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 4, policy("a", "old"))
	stream := w.stream("n1", r.address)
	stream.hello(&typhav1.Hello{Checkpoint: &typhav1.Checkpoint{Revisions: at(5)}})
	got := make(chan *typhav1.SyncResponse, 1)
	go func() {
		m, _ := stream.Recv()
		got <- m
	}()
	select {
	case m := <-got:
		t.Fatalf("the past was served: %v", m)
	case <-time.After(100 * time.Millisecond):
	}
	r.put("n1", 5, policy("a", "new"))
	assert.NotNil(t, (<-got).GetWelcome())
}

func TestClientIsNotHeldUpByKindsWithoutNews(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica(func(c *server.Config) { c.CheckpointWait = time.Hour })
	r.views.Commit(views.Change{Checkpoint: at(9), Floor: at(3), InSync: true}) // some kind was last heard of at 3
	file := viewFile(t)
	f := w.follow("n1", []string{r.address}, saved(file))
	require.Equal(t, "@9 in sync", text(f.next()))
	eventually(t, "saved", func() bool { return exists(t, file) })
	f.stop()
	f = w.follow("n1", []string{r.address}, saved(file))
	assert.Equal(t, "@9 in sync saved", text(f.next()))
	assert.Equal(t, "@9 in sync", text(f.next()), "this replica knows that it is not behind itself")
}

// rawStream speaks the protocol by hand.
type rawStream struct {
	typhav1.SyncService_SyncClient
	t    testing.TB
	node string
}

func (w *world) stream(node, address string) rawStream {
	config, err := rpc.ClientTLS(w.files(pki.Node(node)), "127.0.0.1")
	require.NoError(w.t, err)
	conn, err := rpc.Dial(address, config)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	s, err := typhav1.NewSyncServiceClient(conn).Sync(ctx)
	require.NoError(w.t, err)
	return rawStream{s, w.t, node}
}

func (s rawStream) hello(h *typhav1.Hello) {
	if h.GetNode() == "" {
		h.Node = s.node
	}
	if h.GetView() == 0 {
		h.View = typhav1.View_VIEW_NODE
	}
	s.say(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: h}})
}

func (s rawStream) say(m *typhav1.SyncRequest) {
	s.t.Helper()
	require.NoError(s.t, s.Send(m))
}

// chunk is the next chunk.
func (s rawStream) chunk() *typhav1.Chunk {
	s.t.Helper()
	for {
		m, err := s.Recv()
		require.NoError(s.t, err)
		if c := m.GetChunk(); c != nil {
			return c
		}
	}
}

func TestHelloIsJudged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	ack := &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: &typhav1.Ack{}}}
	hello := func(h *typhav1.Hello) *typhav1.SyncRequest {
		return &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: h}}
	}
	for _, c := range []struct {
		name string
		say  []*typhav1.SyncRequest
		code codes.Code
		text string
	}{
		{"another node's view", []*typhav1.SyncRequest{hello(&typhav1.Hello{Node: "n2", View: 1})}, codes.PermissionDenied, `"n1"`},
		{"no node", []*typhav1.SyncRequest{hello(&typhav1.Hello{View: 1})}, codes.PermissionDenied, `""`},
		{"no view", []*typhav1.SyncRequest{hello(&typhav1.Hello{Node: "n1"})}, codes.InvalidArgument, "VIEW_NODE"},
		{"a view of a later version", []*typhav1.SyncRequest{hello(&typhav1.Hello{Node: "n1", View: 9})}, codes.InvalidArgument, "9"},
		{"no hello", []*typhav1.SyncRequest{ack}, codes.InvalidArgument, "hello"},
		{"half a hello", []*typhav1.SyncRequest{hello(&typhav1.Hello{Node: "n1", View: 1, More: true}), ack}, codes.InvalidArgument, "hello"},
		{"a version of 3 bytes", []*typhav1.SyncRequest{hello(&typhav1.Hello{Node: "n1", View: 1, Have: []*typhav1.Have{
			{Key: &typhav1.ItemKey{Kind: 5, Id: "x"}, Version: []byte{1, 2, 3}},
		}})}, codes.InvalidArgument, "16 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := w.stream("n1", r.address)
			for _, m := range c.say {
				s.say(m)
			}
			_, err := s.Recv()
			assert.Equal(t, c.code, status.Code(err), "%v", err)
			assert.Contains(t, status.Convert(err).Message(), c.text)
		})
	}
}

// A client of an earlier version names all that it has in its hello.
func TestHelloInParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1, policy("a", "1"), policy("b", "1"))
	have := func(p view.Policy) []*typhav1.Have {
		v := view.VersionOf(p)
		return []*typhav1.Have{
			{Key: &typhav1.ItemKey{Kind: typhav1.ItemKind_ITEM_KIND_POLICY, Id: p.ID}, Version: v[:]},
			{Key: &typhav1.ItemKey{Kind: 77, Id: "of a later version"}, Version: v[:]},
		}
	}
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{Have: have(policy("a", "1")), More: true})
	s.hello(&typhav1.Hello{Have: have(policy("gone", "1"))})
	c := s.chunk()
	assert.Len(t, c.GetItems(), 1, "only b is missing")
	require.Len(t, c.GetRemoves(), 1)
	assert.Equal(t, "np/gone", c.GetRemoves()[0].GetId())
	assert.True(t, c.GetInSync())
}

// What all nodes have comes among what one node has in the order of kinds; who comes after a change gets what is then.
func TestCommonItemsAmongOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	node := func(n, last int) view.Node {
		return view.Node{Name: fmt.Sprintf("node-%d", n), IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), byte(last)}), 24)}
	}
	route := func(n int) view.Route {
		return view.Route{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n), 0}), 24), Type: view.RouteBlock, Node: node(n, 1).Name}
	}
	want := map[string]map[view.Key]view.Version{}
	put := func(node string, d *views.Delta, items ...view.Item) {
		for _, it := range items {
			d.Put = append(d.Put, views.NewEntry(it))
			for _, n := range []string{"n1", "n2"} {
				if want[n] == nil {
					want[n] = map[view.Key]view.Version{}
				}
				if node == "" || node == n {
					want[n][it.Key()] = view.VersionOf(it)
				}
			}
		}
	}
	c := views.Change{InSync: true, Checkpoint: at(1), Floor: at(1), Scopes: map[views.Scope]*views.Delta{}}
	for _, n := range []string{"n1", "n2"} {
		d := &views.Delta{}
		c.Scopes[views.Scope{Node: n, View: views.NodeView}] = d
		put(n, d, view.IPSet{ID: "s:" + n, Type: view.SetNet}, policy(n, "1"), view.PolicyList{ID: n}, view.WorkloadEndpoint{ID: view.EndpointID{Workload: "a/" + n}})
	}
	for n := range 1000 { // more than a chunk
		put("", &c.Common[views.NodeView], node(n, 1))
	}
	for n := range 200 {
		put("", &c.Common[views.NodeView], route(n))
	}
	r.views.Commit(c)
	come := func(name string) {
		t.Helper()
		s := w.stream(name, r.address)
		s.hello(&typhav1.Hello{})
		got := map[view.Key]view.Version{}
		last := view.Kind(0)
		for inSync := false; !inSync; {
			c := s.chunk()
			assert.Equal(t, uint64(1), c.GetBatch())
			for _, b := range c.GetItems() {
				it, err := wire.Decode(b)
				require.NoError(t, err)
				require.GreaterOrEqual(t, it.Key().Kind, last)
				require.NotContains(t, got, it.Key(), "once")
				last, got[it.Key()] = it.Key().Kind, it.Version
			}
			inSync = c.GetInSync()
		}
		assert.Equal(t, want[name], got)
	}
	come("n1")
	come("n2")
	change := views.Change{Checkpoint: at(2), Floor: at(2)}
	put("", &change.Common[views.NodeView], node(5, 2))
	r.views.Commit(change)
	come("n1")
}

// A client that says by digests what it has names its items only where they differ.
func TestDigestsInAHello(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	var digests view.Digests
	for i := range 1000 {
		p := policy(fmt.Sprint(i), "1")
		r.put("n1", 1, p)
		digests.Add(p.Key(), view.VersionOf(p))
	}
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{Digests: digests.Bytes()})
	c := s.chunk()
	assert.Empty(t, c.GetItems(), "it has all")
	assert.Empty(t, c.GetRemoves())
	assert.True(t, c.GetInSync())

	changed, gone := policy("7", "2"), policy("gone", "1")
	r.put("n1", 2, changed)
	digests.Add(gone.Key(), view.VersionOf(gone))
	s = w.stream("n1", r.address)
	s.hello(&typhav1.Hello{Digests: digests.Bytes()})
	m, err := s.Recv()
	require.NoError(t, err)
	parts := m.GetName().GetParts()
	assert.ElementsMatch(t, []byte{view.PartOf(changed.Key()), view.PartOf(gone.Key())}, parts)
	var have []*typhav1.Have
	for i := range 1001 {
		p := policy(fmt.Sprint(i), "1")
		if i == 1000 {
			p = gone
		}
		if bytes.IndexByte(parts, view.PartOf(p.Key())) >= 0 {
			v := view.VersionOf(p)
			have = append(have, &typhav1.Have{Key: &typhav1.ItemKey{Kind: typhav1.ItemKind_ITEM_KIND_POLICY, Id: p.ID}, Version: v[:]})
		}
	}
	assert.Less(t, len(have), 30)
	s.say(&typhav1.SyncRequest{Request: &typhav1.SyncRequest_Named{Named: &typhav1.Named{Have: have[:3], More: true}}})
	s.say(named(have[3:]...))
	c = s.chunk()
	assert.Len(t, c.GetItems(), 1)
	require.Len(t, c.GetRemoves(), 1)
	assert.Equal(t, "np/gone", c.GetRemoves()[0].GetId())
	assert.True(t, c.GetInSync())
}

func TestManyItemsAreResumed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	var items []view.Item
	for i := range 9000 {
		items = append(items, policy(fmt.Sprint(i), ""))
	}
	r.put("n1", 1, items...)
	file := viewFile(t)
	f := w.follow("n1", []string{r.address}, saved(file))
	require.Len(t, f.first(1).Updates, len(items))
	eventually(t, "saved", func() bool { return exists(t, file) })
	f.stop()
	r.put("n1", 2, policy("new", ""))
	f = w.follow("n1", []string{r.address}, saved(file))
	b := f.next()
	require.True(t, b.Saved)
	require.Len(t, b.Updates, len(items))
	assert.Equal(t, "+np/new @2 in sync", text(f.next()))
}

func TestOnlyKnownCertificatesGetIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	other, err := pki.NewCA("other", time.Now())
	require.NoError(t, err)
	stranger := &world{t: t, ca: other, dir: t.TempDir()}
	files := stranger.files(pki.Node("n1"))
	files.CA = w.files(pki.Node("n1")).CA // it trusts us, we do not trust it
	c, err := client.New(client.Config{Addresses: []string{r.address}, Files: files})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Replicas(t.Context())
	require.ErrorIs(t, err, client.ErrUnavailable)

	for name, files := range map[string]rpc.Files{
		"operator": w.files(pki.Operator("ada")), "no role": w.files(pki.Role{CommonName: "n1"}),
	} {
		c, err := client.New(client.Config{Addresses: []string{r.address}, Files: files})
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Replicas(t.Context())
		require.ErrorIs(t, err, client.ErrDenied, name)
	}
	_, err = w.node("n1", r.address).Followers(t.Context())
	require.ErrorIs(t, err, client.ErrDenied, "a node is no operator")
	assert.InDelta(t, 3, refused(t, r, "identity")+refused(t, r, "denied"), 0)
}

func TestANodeIsNoTypha(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	impostor := w.replica(func(c *server.Config) { c.Files = w.files(pki.Node("n2")) })
	_, err := w.node("n1", impostor.address).Replicas(t.Context())
	require.ErrorIs(t, err, client.ErrUnavailable)
}

func TestStoppingReplicaSendsItsClientsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := loopback.Address(), loopback.Address()
	one := w.replica(func(c *server.Config) { c.Replicas = []string{a, b}; c.StopWait = patience })
	one.put("n1", 1, policy("a", "1"))
	f := w.follow("n1", []string{a}) // it learns of the other one
	require.Equal(t, "+np/a=1 @1 in sync", text(f.next()))
	two := w.replica(func(c *server.Config) { c.Replicas = []string{b, a} })
	two.put("n1", 1, policy("a", "1"))
	begin := time.Now()
	one.stop()
	assert.Less(t, time.Since(begin), patience/2, "it does not wait when all have gone")
	assert.Equal(t, "@1 in sync", text(f.next()), "resumed, nothing to send")
	assert.Equal(t, b, f.client.Status().Address)
}

func TestEndOfStreamIsOrderly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	s := w.stream("n1", r.address)
	s.hello(&typhav1.Hello{})
	s.chunk()
	require.NoError(t, s.CloseSend())
	_, err := s.Recv()
	assert.ErrorIs(t, err, io.EOF)
	eventually(t, "the session is gone", func() bool { return metric(t, r, "typha_clients") == 0 })
}
