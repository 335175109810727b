package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

var errBroken = errors.New("broken on purpose")

// world is a node and its typha in memory: everything that the server calls. Each call is a step; one step can be made to
// fail, before or after it took effect, since an answer can get lost as well as a request.
type world struct {
	mu        sync.Mutex
	steps     []string
	failAt    int  // number of the step that fails, from 1; 0: none
	after     bool // it takes effect all the same
	ready     []string
	open      bool
	missing   error
	inside    map[string]int // calls under way by interface
	clashed   bool           // two calls were under way for one interface
	next      byte
	exclude   func(string) // called within Wire
	netnsErr  error
	checkErr  error
	verifyErr error
	asked     map[string]*view.AddressRequest // by UID
	expected  map[string]bool
	foretold  []string     // the steps before Expect was called
	unserved  netip.Prefix // pods of these addresses would have no network

	applied  map[string]server.Applied
	hosts    []server.Host
	local    map[string]state.Endpoint
	links    map[string]bool
	records  map[string]state.Endpoint
	assigned map[string][]netip.Addr // by handle
	releases map[string]bool         // queued
}

func newWorld() *world {
	return &world{
		open: true, expected: map[string]bool{}, inside: map[string]int{}, local: map[string]state.Endpoint{}, links: map[string]bool{},
		records: map[string]state.Endpoint{}, assigned: map[string][]netip.Addr{}, releases: map[string]bool{},
	}
}

func (w *world) server() *server.Server {
	return &server.Server{
		Agent: (*agentOf)(w), Pods: (*podsOf)(w), IPAM: (*ipamOf)(w), Records: (*recordsOf)(w), Releases: (*releasesOf)(w),
		Log: slog.New(slog.DiscardHandler), Software: "test",
	}
}

// step counts a call and fails it if it is its turn. A dead context fails it too, as it would a real call.
func (w *world) step(ctx context.Context, name string, do func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.steps = append(w.steps, name)
	fails := len(w.steps) == w.failAt
	if !fails || w.after {
		do()
	}
	if fails {
		return fmt.Errorf("%s: %w", name, errBroken)
	}
	return nil
}

// leftovers are what is on the node and nobody is going to take away.
func (w *world) leftovers() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range w.local {
		out = append(out, "endpoint "+name)
	}
	for name := range w.expected {
		out = append(out, "expected "+name)
	}
	for name := range w.links {
		out = append(out, "link "+name)
	}
	for name := range w.records {
		out = append(out, "record "+name)
	}
	for handle := range w.assigned {
		if !w.releases[handle] {
			out = append(out, "addresses of "+handle)
		}
	}
	return out
}

type agentOf world

func (a *agentOf) SetLocal(ctx context.Context, e state.Endpoint) error {
	w := (*world)(a)
	return w.step(ctx, "SetLocal", func() { w.local[e.Interface] = e; delete(w.expected, e.Interface) })
}

func (a *agentOf) DeleteLocal(ctx context.Context, iface string) error {
	w := (*world)(a)
	return w.step(ctx, "DeleteLocal", func() { delete(w.local, iface); delete(w.expected, iface) })
}

func (a *agentOf) Forgotten(ctx context.Context, _ []netip.Addr) error {
	return (*world)(a).step(ctx, "Forgotten", func() {})
}

func (a *agentOf) Asked(_ context.Context, e state.Endpoint) (*view.AddressRequest, error) {
	return a.asked[e.UID], nil
}

func (a *agentOf) Expect(ctx context.Context, e state.Endpoint) {
	w := (*world)(a)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected[e.Interface] = true
	w.foretold = slices.Clone(w.steps)
}

func (a *agentOf) Verify(context.Context, state.Endpoint) error { return a.verifyErr }

func (a *agentOf) PodCIDRs(context.Context) ([]netip.Prefix, error) {
	return []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}, nil
}

func (a *agentOf) WaitOpen(ctx context.Context, _ string) error {
	if a.open {
		return nil
	}
	<-ctx.Done()
	return a.missing
}

func (a *agentOf) Local(context.Context) (map[string]state.Endpoint, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.local), nil
}

func (a *agentOf) Foreseen(context.Context, state.Endpoint) {}

func (a *agentOf) Serves(_ context.Context, addrs, _ []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.ContainsFunc(addrs, a.unserved.Contains) {
		return status.Error(codes.Unimplemented, "node x: kernel has no ipip")
	}
	return nil
}

func (a *agentOf) PodMTU(context.Context) (int, error) { return 1450, nil }

func (a *agentOf) Dump(context.Context) ([]server.Difference, error) {
	return []server.Difference{
		{Section: "route", Key: "10.0.0.0/26", Desired: "blackhole", Actual: "blackhole"},
		{Section: "route", Key: "10.0.1.0/26", Desired: "blackhole", Actual: "", Error: "no"},
		{Section: "link", Key: "cali1", Desired: "up", Actual: "down"},
	}, nil
}

func (a *agentOf) Hosts(context.Context) ([]server.Host, error) { return a.hosts, nil }

func (a *agentOf) Applied(_ context.Context, iface string) (server.Applied, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied[iface], nil
}

func (a *agentOf) Explain(_ context.Context, section, key string) ([]server.Reason, error) {
	if section != "route" {
		return nil, status.Error(codes.InvalidArgument, "no such section")
	}
	return []server.Reason{{What: "route " + key, Because: "pod shop/web has the address"}}, nil
}

func (a *agentOf) Ready() []string { return a.ready }

type podsOf world

func (p *podsOf) Reach(string) error { return p.netnsErr }

func (p *podsOf) Wire(ctx context.Context, e state.Endpoint, _ string) error {
	w := (*world)(p)
	w.enter(e.Interface)
	defer w.leave(e.Interface)
	if w.exclude != nil {
		w.exclude(e.Interface)
	}
	// As promised it leaves nothing behind if it fails, so it never fails after the fact.
	w.mu.Lock()
	after := w.after
	w.after = false
	w.mu.Unlock()
	defer func() { w.mu.Lock(); w.after = after; w.mu.Unlock() }()
	return w.step(ctx, "Wire", func() { w.links[e.Interface] = true })
}

func (p *podsOf) Unwire(ctx context.Context, e state.Endpoint, _ string) error {
	w := (*world)(p)
	w.enter(e.Interface)
	defer w.leave(e.Interface)
	return w.step(ctx, "Unwire", func() { delete(w.links, e.Interface) })
}

func (p *podsOf) Check(context.Context, state.Endpoint, string) error { return p.checkErr }

func (w *world) enter(iface string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inside[iface]++
	w.clashed = w.clashed || w.inside[iface] > 1
}

func (w *world) leave(iface string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inside[iface]--
}

type ipamOf world

func (i *ipamOf) Assign(ctx context.Context, want server.Want) (out []netip.Addr, sure func() error, err error) {
	w := (*world)(i)
	err = w.step(ctx, "Assign", func() {
		w.next++
		if want.Fixed.IsValid() {
			out = append(out, want.Fixed)
		}
		if want.IPv4 && !want.Fixed.IsValid() {
			out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, w.next}))
		}
		if want.IPv6 && !want.Fixed.IsValid() {
			out = append(out, netip.AddrFrom16([16]byte{0: 0xfd, 15: w.next}))
		}
		w.assigned[want.Handle] = out
	})
	if err != nil {
		out = nil
	}
	return out, func() error { return w.step(context.Background(), "Sure", func() {}) }, err
}

func (i *ipamOf) Release(context.Context, string) error { return nil }

type recordsOf world

func (r *recordsOf) Save(name string, e state.Endpoint) error {
	w := (*world)(r)
	return w.step(context.Background(), "Save", func() { w.records[name] = e })
}

func (r *recordsOf) Delete(name string) error {
	w := (*world)(r)
	return w.step(context.Background(), "Delete", func() { delete(w.records, name) })
}

type releasesOf world

func (r *releasesOf) Add(handle string) error {
	w := (*world)(r)
	w.mu.Lock()
	w.releases[handle] = true // whatever the disk says
	w.mu.Unlock()
	return w.step(context.Background(), "Release", func() {})
}

// Clear frees what nobody is waiting for.
func (r *releasesOf) Clear(_ context.Context, handle string) {
	w := (*world)(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.assigned, handle)
	delete(w.releases, handle)
}

func (r *releasesOf) Cancel(ctx context.Context, handle string) error {
	w := (*world)(r)
	return w.step(ctx, "Cancel", func() { delete(w.releases, handle) })
}

// pod is an ADD of a Kubernetes pod's sandbox.
func pod(name, container string) *felixv1.AddRequest {
	return &felixv1.AddRequest{
		Attachment: &felixv1.Attachment{Network: "net", ContainerId: container, Interface: "eth0"}, Netns: "/run/netns/" + container,
		Args:   map[string]string{"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": name},
		Config: &felixv1.NetworkConfig{AssignIpv4: true, AssignIpv6: true, KubernetesPolicy: true, PolicyWait: durationpb.New(0)},
	}
}

func del(add *felixv1.AddRequest) *felixv1.DeleteRequest {
	return &felixv1.DeleteRequest{Attachment: add.GetAttachment(), Netns: add.GetNetns(), Args: add.GetArgs()}
}

func added(t *testing.T, s *server.Server, req *felixv1.AddRequest) *felixv1.AddResponse {
	t.Helper()
	resp, err := s.Add(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
