package policysync_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/csi/client"
	"github.com/muslin-net/muslin/felix/policysync"
	"github.com/muslin-net/muslin/felix/scope"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// loop is the agent as far as policy sync sees it.
type loop struct {
	mu        sync.Mutex
	state     *state.State
	followers map[*scope.Follower]func()
}

func (l *loop) Follow(_ context.Context, f *scope.Follower, wake func()) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.followers[f] = wake
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.followers, f)
	}
}

func (l *loop) Next(_ context.Context, f *scope.Follower) (scope.Update, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.Next(l.state), nil
}

func (l *loop) Deciders(_ context.Context, pod scope.Pod) (map[string]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return scope.Deciders(l.state, pod), nil
}

func (l *loop) apply(b view.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Apply(b)
	changed := l.state.ChangedFirewall()
	for f, wake := range l.followers {
		if f.Note(changed) {
			wake()
		}
	}
}

func (l *loop) put(items ...view.Item) { l.apply(view.Batch{Updates: items, InSync: true}) }

func (l *loop) following() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.followers)
}

// world is a node with pods' volumes.
type world struct {
	*loop
	t      *testing.T
	home   client.Home
	dir    string
	server *policysync.Server
	stop   func() // felix
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "nodeagent")
	w := &world{t: t, dir: dir, home: client.HomeAt(dir), loop: &loop{state: state.New("worker-1"), followers: map[*scope.Follower]func(){}}}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start runs felix's side.
func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w.server = policysync.New(w.loop, slog.New(slog.NewTextHandler(w.t.Output(), nil)))
	w.server.SetHome(w.dir)
	server := w.server
	go func() { done <- server.Run(ctx) }()
	w.stop = func() {
		cancel()
		require.NoError(w.t, <-done)
		w.stop = func() {}
	}
}

func pod(name string) client.Pod {
	return client.Pod{UID: "uid-" + name, Name: name, Namespace: "shop", ServiceAccount: "default"}
}

// publish is what the CSI driver does of a volume.
func (w *world) publish(name string) {
	require.NoError(w.t, w.home.Prepare())
	require.NoError(w.t, os.MkdirAll(w.home.Directory("csi-"+name), 0o755))
	require.NoError(w.t, w.home.Save("csi-"+name, pod(name)))
}

func (w *world) unpublish(name string) {
	require.NoError(w.t, w.home.Forget("csi-"+name))
	require.NoError(w.t, os.RemoveAll(w.home.Directory("csi-"+name)))
}

func (w *world) socket(name string) string {
	return filepath.Join(w.home.Directory("csi-"+name), client.SocketName)
}

// dial is a pod's process.
func (w *world) dial(name string) felixv1.PolicySyncServiceClient {
	conn, err := rpc.DialUnix(w.socket(name))
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return felixv1.NewPolicySyncServiceClient(conn)
}

// listener is a proxy in a pod.
type listener struct {
	t      *testing.T
	stream grpc.ServerStreamingClient[felixv1.SyncResponse]
}

func (w *world) listen(name string) listener {
	s, err := w.dial(name).Sync(w.t.Context(), &felixv1.SyncRequest{}, grpc.WaitForReady(true))
	require.NoError(w.t, err)
	return listener{w.t, s}
}

// change returns what one change tells, in words.
func (l listener) change() (told []string) {
	l.t.Helper()
	for {
		part, err := l.stream.Recv()
		require.NoError(l.t, err)
		for _, item := range part.GetItem() {
			text := item.GetId()
			if s := item.GetIpSet(); s != nil {
				text += fmt.Sprintf(" %d", len(s.GetMembers()))
			}
			if d := item.GetIpSetDelta(); d != nil {
				text += fmt.Sprintf(" +%d -%d", len(d.GetAdded()), len(d.GetRemoved()))
			}
			told = append(told, text)
		}
		for _, key := range part.GetGone() {
			told = append(told, "-"+key.GetId())
		}
		if part.GetInSync() {
			told = append(told, "in sync")
		}
		if part.GetComplete() {
			return told
		}
	}
}

// ended waits for the stream's end.
func (l listener) ended() error {
	for {
		if _, err := l.stream.Recv(); err != nil {
			require.NotErrorIs(l.t, err, io.EOF)
			return err
		}
	}
}

func workload(name, list string) view.WorkloadEndpoint {
	return view.WorkloadEndpoint{
		ID:  view.EndpointID{Orchestrator: "k8s", Workload: "shop/" + name, Endpoint: "eth0"},
		UID: "uid-" + name, PolicyList: list, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
}

func members(n int) (out []view.Member) {
	for i := range n {
		out = append(out, view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)})
	}
	return out
}

// shop are two pods with a policy each.
func shop() []view.Item {
	return []view.Item{
		view.IPSet{ID: "s:1", Type: view.SetNet, Members: members(2)},
		view.Policy{ID: "np/shop/db", Ingress: []view.Rule{{Action: view.Deny}}},
		view.Policy{ID: "np/shop/web", Ingress: []view.Rule{{
			Action: view.Allow, Source: view.Match{Sets: []string{"s:1"}}, HTTP: &view.HTTP{Methods: []string{"GET"}, Paths: []view.HTTPPath{{Prefix: "/a"}}},
		}}},
		view.PolicyList{ID: "l-db", Tiers: []view.TierPolicies{{Name: "default", Ingress: []string{"np/shop/db"}}}},
		view.PolicyList{ID: "l-web", Tiers: []view.TierPolicies{{Name: "default", Ingress: []string{"np/shop/web"}}}},
		workload("web", "l-web"), workload("db", "l-db"),
	}
}
