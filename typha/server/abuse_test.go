package server_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/internal/rpc/rpctest"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// refused is how often something was refused for a reason.
func refused(t testing.TB, r *replica, reason string) float64 {
	families, err := r.metrics.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "typha_refused_total" && m.GetLabel()[0].GetValue() == reason {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("typha_refused_total has no reason %q", reason)
	return 0
}

// refusalLog keeps what is logged of refusals, as "reason from".
type refusalLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *refusalLog) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}
func (l *refusalLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *refusalLog) WithGroup(string) slog.Handler      { return l }

func (l *refusalLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "refused a client" {
		return nil
	}
	var line []string
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "reason" || a.Key == "from" {
			line = append(line, a.Value.String())
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, strings.Join(line, " "))
	return nil
}

func (l *refusalLog) count(line string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.lines {
		if one == line {
			n++
		}
	}
	return n
}

// arena is a typha with an honest node, b, and those who misbehave.
type arena struct {
	*world
	*replica
	t     testing.TB
	log   *refusalLog
	b     *client.Client
	felix *follower
	warm  []client.Reservation // b's, under its epoch
	pod   netip.Addr           // b's, of the pod net.honest
	epoch uint64
}

func newArena(t *testing.T) *arena {
	w := newWorld(t)
	a := &arena{world: w, log: &refusalLog{}, t: t}
	a.replica = w.typha(func(c *server.Config) { c.Log, c.HelloWait = slog.New(a.log), 5*time.Second })
	w.create(pool("default", "192.168.0.0/16"))
	w.create(pool("six", "fd00:77::/64"))
	a.b = w.node("b", a.address)
	register(t, a.b, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.2/24"), OrchRefs: []api.OrchRef{{Orchestrator: "k8s", NodeName: "kube-b"}}})
	eventually(t, "typha knows the pools", func() bool { return a.state.Snapshot().Len("IPPool") == 2 })
	a.felix = w.follow("b", []string{a.address})
	a.felix.next()
	a.epoch = enter(t, a.b)
	var err error
	a.warm, err = a.b.Reserve(t.Context(), client.Reserve{Count4: 2, Epoch: a.epoch})
	require.NoError(t, err)
	a.pod = reserve(t, a.b, "honest")
	require.Empty(t, report(t, a.b, "felix-b", 1, pod("honest", a.pod)))
	w.eventuallyEndpoints("b-cni-honest-eth0")
	eventually(t, "b is connected", func() bool { return len(get[*api.Node](w, "Node", "b").Status.Conditions) > 0 })
	return a
}

// honest is all that the datastore has of b.
func (a *arena) honest() map[string]string {
	out := map[string]string{}
	for _, kind := range []string{"Node", "IPAMBlock", "IPAMHandle", "WorkloadEndpoint"} {
		l, err := a.store.List(a.t.Context(), kind, datastore.ListOptions{})
		require.NoError(a.t, err)
		for _, o := range l.Items {
			if n, isNode := o.(*api.Node); !isNode || n.Name == "b" {
				out[kind+" "+o.GetName()] = o.GetResourceVersion()
			}
		}
	}
	return out
}

// dial connects with a certificate.
func (w *world) dial(role pki.Role, address string) *grpc.ClientConn {
	config, err := rpc.ClientTLS(w.files(role), "127.0.0.1")
	require.NoError(w.t, err)
	conn, err := rpc.Dial(address, config)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

// attack is one who misbehaves, by one connection.
type attack struct {
	*arena
	t    testing.TB
	ctx  context.Context
	name string
	conn *grpc.ClientConn
}

// call calls a method with any message.
func (a *attack) call(method string, m proto.Message) error {
	return a.conn.Invoke(a.ctx, method, m, &emptypb.Empty{})
}

// sync opens a stream and says what is given; it returns how the stream ends.
func (a *attack) sync(say ...*typhav1.SyncRequest) error {
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	s, err := typhav1.NewSyncServiceClient(a.conn).Sync(ctx)
	if err != nil {
		return err
	}
	for _, m := range say {
		if s.Send(m) != nil {
			break // Recv tells why
		}
	}
	return end(s)
}

func end(s typhav1.SyncService_SyncClient) error {
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}

func hello(node string, change ...func(*typhav1.Hello)) *typhav1.SyncRequest {
	h := &typhav1.Hello{Node: node, View: typhav1.View_VIEW_NODE}
	for _, c := range change {
		c(h)
	}
	return &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Hello{Hello: h}}
}

func named(have ...*typhav1.Have) *typhav1.SyncRequest {
	return &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Named{Named: &typhav1.Named{Have: have}}}
}

func ack(received, applied uint64) *typhav1.SyncRequest {
	return &typhav1.SyncRequest{Request: &typhav1.SyncRequest_Ack{Ack: &typhav1.Ack{Received: received, Applied: applied}}}
}

// synced opens a stream, and says something when the first batch is there.
func (a *attack) synced(say ...*typhav1.SyncRequest) error {
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	s, err := typhav1.NewSyncServiceClient(a.conn).Sync(ctx)
	if err != nil {
		return err
	}
	stream := rawStream{s, a.t, a.name}
	stream.hello(&typhav1.Hello{})
	stream.chunk()
	for _, m := range say {
		if s.Send(m) != nil {
			break
		}
	}
	return end(s)
}

// bytes calls a method with bytes for a message.
func (a *attack) bytes(method string, b []byte) error {
	return rpctest.Call(a.ctx, a.conn, method, b)
}

// syncBytes sends bytes for a message down a stream.
func (a *attack) syncBytes(b []byte) error {
	return rpctest.Stream(a.ctx, a.conn, typhav1.SyncService_Sync_FullMethodName, b)
}

const (
	register1    = typhav1.NodesService_Register_FullMethodName
	reportStatus = typhav1.NodesService_ReportStatus_FullMethodName
	report1      = typhav1.EndpointsService_Report_FullMethodName
	reserve1     = typhav1.IpamService_Reserve_FullMethodName
	settle       = typhav1.IpamService_Settle_FullMethodName
	release      = typhav1.IpamService_Release_FullMethodName
	return1      = typhav1.IpamService_Return_FullMethodName
	enter1       = typhav1.IpamService_Enter_FullMethodName
	review       = typhav1.IpamService_Review_FullMethodName
	query        = typhav1.QueryService_Query_FullMethodName
	enroll       = typhav1.EnrollmentService_Enroll_FullMethodName
)

func conditionsOf(types ...string) *typhav1.ReportStatusRequest {
	m := &typhav1.ReportStatusRequest{}
	for _, t := range types {
		m.Conditions = append(m.Conditions, &typhav1.Condition{Type: t, Status: true, Reason: "Because"})
	}
	return m
}

// registered makes the attacker's Node, and gives it an epoch.
func (a *attack) registered() uint64 {
	require.NoError(a.t, a.call(register1, &typhav1.RegisterRequest{}))
	var r typhav1.ReviewResponse
	require.NoError(a.t, a.conn.Invoke(a.ctx, review, &typhav1.ReviewRequest{}, &r))
	var e typhav1.EnterResponse
	require.NoError(a.t, a.conn.Invoke(a.ctx, enter1, &typhav1.EnterRequest{Present: r.GetEpoch()}, &e))
	return e.GetEpoch()
}

func owner(handle string) *typhav1.Owner { return &typhav1.Owner{Handle: handle} }

// endpoint is a reported endpoint.
func endpoint(change ...func(*typhav1.LocalEndpoint)) *typhav1.LocalEndpoint {
	e := &typhav1.LocalEndpoint{Orchestrator: "cni", Workload: "default/evil", Endpoint: "eth0", Interface: "calievil"}
	for _, c := range change {
		c(e)
	}
	return e
}

// reported is why a report's only endpoint was refused.
func (a *attack) reported(e *typhav1.LocalEndpoint) error {
	var r typhav1.ReportResponse
	err := a.conn.Invoke(a.ctx, report1, &typhav1.ReportRequest{Instance: "x", Endpoints: []*typhav1.LocalEndpoint{e}}, &r)
	if err == nil && len(r.GetRefused()) == 1 {
		err = status.Error(partly, r.GetRefused()[0].GetReason())
	}
	return err
}

// partly stands for a call that was carried out but for what was refused.
const partly = 100

// list repeats something.
func list[T any](n int, one T) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = one
	}
	return out
}

// abuse is one case: it is done twice, and is to be refused, counted and logged twice, twice and once.
type abuse struct {
	name   string
	role   func(name string) pki.Role // nil: a node
	do     func(a *attack) error
	code   codes.Code
	says   string
	reason string
}

func role(uri string) func(string) pki.Role {
	return func(name string) pki.Role {
		return pki.Role{CommonName: name, URI: strings.ReplaceAll(uri, "NAME", name)}
	}
}

var abuses = []abuse{
	// Who is it?
	{name: "another node's view", do: func(a *attack) error { return a.sync(hello("b")) }, code: codes.PermissionDenied, says: `the view of node "b"`, reason: "denied"},
	{name: "a BGP view of another node", do: func(a *attack) error {
		return a.sync(hello("b", func(h *typhav1.Hello) { h.View = typhav1.View_VIEW_BGP }))
	}, code: codes.PermissionDenied, says: `the view of node "b"`, reason: "denied"},
	{name: "the view of no node", do: func(a *attack) error { return a.sync(hello("")) }, code: codes.PermissionDenied, says: `node ""`, reason: "denied"},
	{name: "no name in the certificate", role: role(""), do: func(a *attack) error { return a.sync(hello(a.name)) }, code: codes.Unauthenticated, says: "muslin://ROLE/NAME", reason: "identity"},
	{name: "a role without a name", role: role("muslin://node/"), do: func(a *attack) error { return a.call(register1, &typhav1.RegisterRequest{}) }, code: codes.Unauthenticated, says: "muslin://ROLE/NAME", reason: "identity"},
	{name: "a name of another scheme", role: role("spiffe://node/NAME"), do: func(a *attack) error { return a.sync(hello(a.name)) }, code: codes.Unauthenticated, says: "muslin://ROLE/NAME", reason: "identity"},
	{name: "confd as a node", role: role("muslin://confd/NAME"), do: func(a *attack) error { return a.sync(hello(a.name)) }, code: codes.PermissionDenied, says: "is for confd/", reason: "denied"},
	{name: "bird as a node", role: role("muslin://bird/NAME"), do: func(a *attack) error { return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1}) }, code: codes.PermissionDenied, says: "is for bird/", reason: "denied"},
	{name: "kube-controllers as a node", role: role("muslin://kube-controllers/NAME"), do: func(a *attack) error {
		return a.call(release, &typhav1.ReleaseRequest{Handle: "net.honest"})
	}, code: codes.PermissionDenied, says: "is for kube-controllers/", reason: "denied"},
	{name: "calicoctl as a node", role: pki.Operator, do: func(a *attack) error { return a.call(report1, &typhav1.ReportRequest{Instance: "x"}) }, code: codes.PermissionDenied, says: "is for operator/", reason: "denied"},
	{name: "a node as calicoctl", do: func(a *attack) error {
		s, err := typhav1.NewQueryServiceClient(a.conn).Query(a.ctx, &typhav1.QueryRequest{Node: "b", Method: typhav1.QueryMethod_QUERY_METHOD_BIRD_DRAIN})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}, code: codes.PermissionDenied, says: "is for operators", reason: "denied"},
	{name: "a node asks who is connected", do: func(a *attack) error {
		return a.call(typhav1.QueryService_Status_FullMethodName, &typhav1.StatusRequest{})
	}, code: codes.PermissionDenied, says: "is for operators", reason: "denied"},
	{name: "another node's certificate", do: func(a *attack) error { return a.call(enroll, &typhav1.EnrollRequest{Node: "b"}) }, code: codes.PermissionDenied, says: `cannot get one for node "b"`, reason: "denied"},

	// What is another node's.
	{name: "registers another node's address", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{Ipv4: &typhav1.Prefix{Address: []byte{10, 0, 0, 2}, Length: 32}})
	}, code: codes.AlreadyExists, says: "node b has address 10.0.0.2", reason: "taken"},
	{name: "registers as another node of Kubernetes", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{OrchRefs: []*typhav1.OrchRef{{Orchestrator: "k8s", NodeName: "kube-b"}}, SkipAddressCheck: true})
	}, code: codes.AlreadyExists, says: "is what node b stands for", reason: "taken"},
	{name: "refers to another node by its name", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{OrchRefs: []*typhav1.OrchRef{{Orchestrator: "k8s", NodeName: "b"}}})
	}, code: codes.AlreadyExists, says: "is what node b stands for", reason: "taken"},
	{name: "releases another node's pod among others", do: func(a *attack) error {
		return a.call(release, &typhav1.ReleaseRequest{Handles: []string{"net.own", "net.honest"}})
	}, code: codes.PermissionDenied, says: `allocated to node "b"`, reason: "denied"},
	{name: "releases another node's pod", do: func(a *attack) error { return a.call(release, &typhav1.ReleaseRequest{Handle: "net.honest"}) }, code: codes.PermissionDenied, says: `allocated to node "b"`, reason: "denied"},
	{name: "releases another node's address", do: func(a *attack) error {
		return a.call(release, &typhav1.ReleaseRequest{Addresses: []*typhav1.Reservation{{Address: a.pod.AsSlice()}}})
	}, code: codes.PermissionDenied, says: `allocated to node "b"`, reason: "denied"},
	{name: "releases another node's reserve", do: func(a *attack) error {
		return a.call(release, &typhav1.ReleaseRequest{Handle: warmHandle("b", a.epoch)})
	}, code: codes.PermissionDenied, says: `allocated to node "b"`, reason: "denied"},
	{name: "puts addresses into another node's reserve", do: func(a *attack) error {
		return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1, Owner: owner(warmHandle("b", a.epoch))})
	}, code: codes.PermissionDenied, says: "only typha gives", reason: "denied"},
	{name: "takes another node's tunnel address for its own", do: func(a *attack) error {
		return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1, Owner: owner("vxlan-tunnel-addr-b")})
	}, code: codes.PermissionDenied, says: "only typha gives", reason: "denied"},
	{name: "settles for another node's tunnel", do: func(a *attack) error {
		epoch := a.registered()
		return a.call(settle, &typhav1.SettleRequest{Epoch: epoch, Settlements: []*typhav1.Settlement{{Address: []byte{192, 168, 1, 1}, Owner: owner("ipip-tunnel-addr-b")}}})
	}, code: codes.PermissionDenied, says: "only typha gives", reason: "denied"},
	{name: "enters another node's epoch", do: func(a *attack) error {
		a.registered()
		return a.call(enter1, &typhav1.EnterRequest{Present: a.epoch - 1})
	}, code: codes.FailedPrecondition, says: "the present one is", reason: "stale"},
	{name: "reserves in another node's epoch", do: func(a *attack) error {
		a.registered()
		return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1, Epoch: a.epoch - 1})
	}, code: codes.FailedPrecondition, says: "the present one is", reason: "stale"},
	{name: "takes another node's reserve", do: func(a *attack) error {
		epoch := a.registered()
		var r typhav1.SettleResponse
		err := a.conn.Invoke(a.ctx, settle, &typhav1.SettleRequest{Epoch: epoch, Settlements: []*typhav1.Settlement{{Address: a.warm[0].Address.AsSlice(), Owner: owner("net.evil")}}}, &r)
		if err == nil && len(r.GetRefused()) == 1 {
			err = status.Error(partly, r.GetRefused()[0].GetReason())
		}
		return err
	}, code: partly, says: "", reason: "address"},
	{name: "gives back another node's reserve", do: func(a *attack) error {
		epoch := a.registered()
		err := a.call(return1, &typhav1.ReturnRequest{Epoch: epoch, Addresses: [][]byte{a.warm[0].Address.AsSlice()}})
		if err == nil {
			err = status.Error(partly, "by contract what is not the node's is ignored")
		}
		return err
	}, code: partly, says: "ignored", reason: "address"},
	{name: "reports an endpoint with another node's address", do: func(a *attack) error {
		return a.reported(endpoint(func(e *typhav1.LocalEndpoint) { e.Addresses = [][]byte{a.pod.AsSlice()} }))
	}, code: partly, says: `allocated to node "b"`, reason: "endpoint"},
	{name: "reports an endpoint with an address that nobody has", do: func(a *attack) error {
		return a.reported(endpoint(func(e *typhav1.LocalEndpoint) { e.Addresses = [][]byte{{192, 168, 200, 7}} }))
	}, code: partly, says: "is not allocated", reason: "endpoint"},
	{name: "reports an endpoint outside of all pools", do: func(a *attack) error {
		return a.reported(endpoint(func(e *typhav1.LocalEndpoint) { e.Addresses = [][]byte{{8, 8, 8, 8}} }))
	}, code: partly, says: "is not allocated", reason: "endpoint"},
	{name: "tells which nodes are connected", do: func(a *attack) error { return a.call(reportStatus, conditionsOf(api.ConditionConnected)) }, code: codes.PermissionDenied, says: "condition Connected", reason: "denied"},
	{name: "tells what its kernel is judged to carry", do: func(a *attack) error {
		return a.call(reportStatus, conditionsOf("Fine", api.ConditionDataplaneSupported))
	}, code: codes.PermissionDenied, says: "condition DataplaneSupported", reason: "denied"},
	{name: "tells of BGP as felix", do: func(a *attack) error { return a.call(reportStatus, conditionsOf(api.ConditionBGPPeersReady)) }, code: codes.PermissionDenied, says: "condition BGPPeersReady", reason: "denied"},
	{name: "tells of the dataplane as confd", do: func(a *attack) error {
		m := conditionsOf(api.ConditionDataplaneProgrammed)
		m.Beside = true
		return a.call(reportStatus, m)
	}, code: codes.PermissionDenied, says: "condition DataplaneProgrammed", reason: "denied"},

	// Acknowledgements.
	{name: "acks a batch that was never sent", do: func(a *attack) error { return a.synced(ack(2, 0)) }, code: codes.InvalidArgument, says: "the last that was sent on this stream is 1", reason: "invalid"},
	{name: "has applied a batch that was never sent", do: func(a *attack) error { return a.synced(ack(1, 77)) }, code: codes.InvalidArgument, says: "the last that was sent on this stream is 1", reason: "invalid"},
	{name: "acks all batches to come", do: func(a *attack) error { return a.synced(ack(math.MaxUint64, math.MaxUint64)) }, code: codes.InvalidArgument, says: "the last that was sent", reason: "invalid"},
	{name: "replays an old ack", do: func(a *attack) error { return a.synced(ack(1, 1), ack(0, 0)) }, code: codes.InvalidArgument, says: "only grow", reason: "invalid"},
	{name: "takes back what it has applied", do: func(a *attack) error { return a.synced(ack(1, 1), ack(1, 0)) }, code: codes.InvalidArgument, says: "only grow", reason: "invalid"},
	{name: "acks in the name of another session", do: func(a *attack) error {
		// b's stream is further than this one. An ack has no name but its stream, so it says nothing of b's.
		before := clientStatus(a.arena, "b")
		err := a.synced(ack(before.GetSent()+1, before.GetSent()+1))
		after := clientStatus(a.arena, "b")
		assert.True(a.t, proto.Equal(before, after), "%v became %v", before, after)
		return err
	}, code: codes.InvalidArgument, says: "the last that was sent on this stream", reason: "invalid"},
	{name: "acks before it says who it is", do: func(a *attack) error { return a.sync(ack(1, 1)) }, code: codes.InvalidArgument, says: "begins with a hello", reason: "invalid"},
	{name: "becomes another node on its stream", do: func(a *attack) error { return a.synced(hello("b")) }, code: codes.InvalidArgument, says: "one hello", reason: "invalid"},
	{name: "never says who it is", do: func(a *attack) error { return a.sync() }, code: codes.DeadlineExceeded, says: "no whole hello", reason: "invalid"},
	{name: "never ends its hello", do: func(a *attack) error { return a.sync(hello(a.name, func(h *typhav1.Hello) { h.More = true })) }, code: codes.DeadlineExceeded, says: "no whole hello", reason: "invalid"},

	// Numbers, families, forms.
	{name: "a view of no kind", do: func(a *attack) error { return a.sync(hello(a.name, func(h *typhav1.Hello) { h.View = -1 })) }, code: codes.InvalidArgument, says: "there is no view -1", reason: "invalid"},
	{name: "a version of one byte", do: func(a *attack) error {
		return a.sync(hello(a.name, func(h *typhav1.Hello) {
			h.Have = []*typhav1.Have{{Key: &typhav1.ItemKey{Kind: 5, Id: "x"}, Version: []byte{1}}}
		}))
	}, code: codes.InvalidArgument, says: "16 bytes", reason: "invalid"},
	{name: "digests of half a view", do: func(a *attack) error {
		return a.sync(hello(a.name, func(h *typhav1.Hello) { h.Digests = make([]byte, 2048) }))
	}, code: codes.InvalidArgument, says: "digests of 2048 bytes", reason: "invalid"},
	{name: "digests of what is in no view, and says nothing of it", do: func(a *attack) error {
		return a.sync(hello(a.name, func(h *typhav1.Hello) { h.Digests = bytes.Repeat([]byte{7}, 4096) }))
	}, code: codes.DeadlineExceeded, says: "no whole answer to what it has", reason: "invalid"},
	{name: "digests of what is in no view, and goes on as if nothing was asked", do: func(a *attack) error {
		return a.sync(hello(a.name, func(h *typhav1.Hello) { h.Digests = bytes.Repeat([]byte{7}, 4096) }), ack(1, 1))
	}, code: codes.InvalidArgument, says: "asked what it has", reason: "invalid"},
	{name: "says what it has, though nobody asked", do: func(a *attack) error { return a.synced(named()) }, code: codes.InvalidArgument, says: "nobody has asked", reason: "invalid"},
	{name: "a checkpoint of many sources", do: func(a *attack) error {
		return a.sync(hello(a.name, func(h *typhav1.Hello) {
			h.Checkpoint = &typhav1.Checkpoint{Revisions: map[string]uint64{}}
			for i := range 2000 {
				h.Checkpoint.Revisions[fmt.Sprint(i)] = 1
			}
		}))
	}, code: codes.InvalidArgument, says: "2000 sources", reason: "invalid"},
	{name: "as many addresses as there are numbers", do: func(a *attack) error {
		return a.call(reserve1, &typhav1.ReserveRequest{Count4: math.MaxUint32, Owner: owner("net.evil")})
	}, code: codes.InvalidArgument, says: "at most 256", reason: "invalid"},
	{name: "a count below zero", do: func(a *attack) error { // -1, as a signed writer has it: ten bytes, of which an uint32 keeps the lower half
		b := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), math.MaxUint64)
		o, _ := proto.Marshal(owner("net.evil"))
		return a.bytes(reserve1, protowire.AppendBytes(protowire.AppendTag(b, 6, protowire.BytesType), o))
	}, code: codes.InvalidArgument, says: "at most 256", reason: "invalid"},
	{name: "no addresses at all", do: func(a *attack) error { return a.call(reserve1, &typhav1.ReserveRequest{Owner: owner("net.evil")}) }, code: codes.InvalidArgument, says: "no address is asked for", reason: "invalid"},
	{name: "an address without owner or epoch", do: func(a *attack) error { return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1}) }, code: codes.InvalidArgument, says: "need the epoch", reason: "invalid"},
	{name: "a handle of a kilobyte", do: func(a *attack) error {
		return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1, Owner: owner(strings.Repeat("h", 1024))})
	}, code: codes.InvalidArgument, says: "1024 bytes", reason: "invalid"},
	{name: "an address of five bytes", do: func(a *attack) error {
		return a.call(reserve1, &typhav1.ReserveRequest{Address: []byte{1, 2, 3, 4, 5}, Owner: owner("net.evil")})
	}, code: codes.InvalidArgument, says: "write 4 bytes for IPv4", reason: "invalid"},
	{name: "an address outside of pools", do: func(a *attack) error {
		return a.call(reserve1, &typhav1.ReserveRequest{Address: []byte{8, 8, 8, 8}, Owner: owner("net.evil")})
	}, code: codes.InvalidArgument, says: "8.8.8.8", reason: "invalid"},
	{name: "an IPv6 pool for IPv4", do: func(a *attack) error {
		a.registered()
		return a.call(reserve1, &typhav1.ReserveRequest{Count4: 1, Pools4: []string{"six"}, Owner: owner("net.evil")})
	}, code: codes.InvalidArgument, says: "the IPv4 pools are default", reason: "invalid"},
	{name: "an IPv4 address in IPv6's form", do: func(a *attack) error {
		b := netip.MustParseAddr("::ffff:192.168.0.1").As16()
		return a.call(release, &typhav1.ReleaseRequest{Addresses: []*typhav1.Reservation{{Address: b[:]}}})
	}, code: codes.InvalidArgument, says: "missing or malformed", reason: "invalid"},
	{name: "registers IPv6 as IPv4", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{Ipv4: &typhav1.Prefix{Address: make([]byte, 16), Length: 64}})
	}, code: codes.InvalidArgument, says: "is no IPv4 address", reason: "invalid"},
	{name: "registers a prefix of 33 bits", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{Ipv4: &typhav1.Prefix{Address: []byte{10, 0, 0, 9}, Length: 33}})
	}, code: codes.InvalidArgument, says: "prefix length 33", reason: "invalid"},
	{name: "registers a key of 31 bytes", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{WireguardKey: make([]byte, 31)})
	}, code: codes.InvalidArgument, says: "a key has 32", reason: "invalid"},
	{name: "proposes a node for a pool", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{PoolProposals: []*typhav1.Resource{{Kind: "Node", Json: []byte(`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"b"}}`)}}})
	}, code: codes.InvalidArgument, says: "is no IPPool", reason: "invalid"},
	{name: "too many interfaces", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{Interfaces: list(5000, &typhav1.Interface{Name: "e"})})
	}, code: codes.InvalidArgument, says: "5000 interfaces", reason: "invalid"},
	{name: "an epoch at the end of time", do: func(a *attack) error { return a.call(enter1, &typhav1.EnterRequest{Before: math.MaxUint64}) }, code: codes.InvalidArgument, says: "ahead of time", reason: "invalid"},
	{name: "too many claims", do: func(a *attack) error {
		return a.call(enter1, &typhav1.EnterRequest{Claims: list(5000, &typhav1.Settlement{Address: []byte{192, 168, 0, 1}, Owner: owner("net.evil")})})
	}, code: codes.InvalidArgument, says: "5000 settlements", reason: "invalid"},
	{name: "too many addresses to release", do: func(a *attack) error {
		return a.call(release, &typhav1.ReleaseRequest{Addresses: list(5000, &typhav1.Reservation{Address: []byte{192, 168, 0, 1}})})
	}, code: codes.InvalidArgument, says: "5000 addresses", reason: "invalid"},
	{name: "too many addresses to give back", do: func(a *attack) error {
		return a.call(return1, &typhav1.ReturnRequest{Addresses: list(5000, []byte{192, 168, 0, 1})})
	}, code: codes.InvalidArgument, says: "5000 addresses", reason: "invalid"},
	{name: "a report of no felix", do: func(a *attack) error { return a.call(report1, &typhav1.ReportRequest{}) }, code: codes.InvalidArgument, says: "needs the instance", reason: "invalid"},
	{name: "too many endpoints", do: func(a *attack) error {
		return a.call(report1, &typhav1.ReportRequest{Instance: "x", Endpoints: list(5000, endpoint())})
	}, code: codes.InvalidArgument, says: "5000 endpoints", reason: "invalid"},
	{name: "an endpoint of many addresses", do: func(a *attack) error {
		return a.reported(endpoint(func(e *typhav1.LocalEndpoint) { e.Addresses = list(65, a.pod.AsSlice()) }))
	}, code: partly, says: "65 addresses", reason: "endpoint"},
	{name: "an endpoint without a workload", do: func(a *attack) error {
		return a.reported(endpoint(func(e *typhav1.LocalEndpoint) { e.Workload = "/" }))
	}, code: partly, says: "namespace/name", reason: "endpoint"},
	{name: "a port above all ports", do: func(a *attack) error {
		return a.reported(endpoint(func(e *typhav1.LocalEndpoint) {
			e.Ports = []*typhav1.EndpointPort{{Name: "p", Protocol: 6, Port: math.MaxUint32}}
		}))
	}, code: partly, says: "above 65535", reason: "endpoint"},
	{name: "too many conditions", do: func(a *attack) error { return a.call(reportStatus, conditionsOf(list(300, "X")...)) }, code: codes.InvalidArgument, says: "300 conditions", reason: "invalid"},
	{name: "a condition of no type", do: func(a *attack) error { return a.call(reportStatus, conditionsOf("")) }, code: codes.InvalidArgument, says: "has no type", reason: "invalid"},
	{name: "an answer in no time", role: pki.Operator, do: func(a *attack) error {
		s, err := typhav1.NewQueryServiceClient(a.conn).Query(a.ctx, &typhav1.QueryRequest{Node: "b", Method: 1, Timeout: &durationpb.Duration{Seconds: -5}})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}, code: codes.InvalidArgument, says: "no time to wait", reason: "invalid"},
	{name: "a method that is not relayed", role: pki.Operator, do: func(a *attack) error {
		s, err := typhav1.NewQueryServiceClient(a.conn).Query(a.ctx, &typhav1.QueryRequest{Node: "b", Method: 99})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}, code: codes.InvalidArgument, says: "not one that is relayed", reason: "invalid"},

	// Frames of gRPC.
	{name: "a method that is not there", do: func(a *attack) error { return a.call("/muslin.typha.v1.NodesService/Reboot", &emptypb.Empty{}) }, code: codes.Unimplemented, says: "no such method", reason: "unknown"},
	{name: "a service that is not there", do: func(a *attack) error { return a.call("/etcdserverpb.KV/Range", &emptypb.Empty{}) }, code: codes.Unimplemented, says: "no such method", reason: "unknown"},
	{name: "garbage for a request", do: func(a *attack) error { return a.bytes(register1, []byte("\xff\xff\xff garbage")) }, code: codes.Internal, says: "unmarshal", reason: "garbled"},
	{name: "half a request", do: func(a *attack) error {
		b, _ := proto.Marshal(&typhav1.RegisterRequest{WireguardKey: make([]byte, 32)})
		return a.bytes(register1, b[:len(b)-1])
	}, code: codes.Internal, says: "unmarshal", reason: "garbled"},
	{name: "text that is no text", do: func(a *attack) error {
		return a.bytes(release, protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte{0xff, 0xfe}))
	}, code: codes.Internal, says: "UTF-8", reason: "garbled"},
	{name: "garbage on a stream", do: func(a *attack) error { return a.syncBytes([]byte("\x0a\xff\xff garbage")) }, code: codes.Internal, says: "unmarshal", reason: "garbled"},
	{name: "a request of five megabytes", do: func(a *attack) error { return a.bytes(report1, make([]byte, 5<<20)) }, code: codes.ResourceExhausted, says: "larger than max", reason: "oversized"},
	{name: "five megabytes on a stream", do: func(a *attack) error { return a.syncBytes(make([]byte, 5<<20)) }, code: codes.ResourceExhausted, says: "larger than max", reason: "oversized"},
	{name: "a registration of a megabyte", do: func(a *attack) error {
		return a.call(register1, &typhav1.RegisterRequest{Interfaces: []*typhav1.Interface{{Name: strings.Repeat("e", 1<<20)}}})
	}, code: codes.ResourceExhausted, says: "at most 262144", reason: "oversized"},
	{name: "a status of a megabyte", do: func(a *attack) error {
		return a.call(reportStatus, &typhav1.ReportStatusRequest{Capabilities: map[string]string{"x": strings.Repeat("y", 1<<20)}})
	}, code: codes.ResourceExhausted, says: "at most 131072", reason: "oversized"},
}

func clientStatus(a *arena, node string) *typhav1.ClientStatus {
	r, err := typhav1.NewQueryServiceClient(a.dial(pki.Operator("judge"), a.address)).Status(a.t.Context(), &typhav1.StatusRequest{})
	require.NoError(a.t, err)
	for _, c := range r.GetClients() {
		if c.GetNode() == node {
			return c
		}
	}
	return nil
}

// TestAbuseIsRefusedCountedAndLoggedOnce goes through all that a client may try with what it says.
func TestAbuseIsRefusedCountedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	arena := newArena(t)
	for arena.felix.client.Status().InSync == false {
		arena.felix.next()
	}
	honest := arena.honest()
	for i, c := range abuses {
		t.Run(c.name, func(t *testing.T) {
			name := fmt.Sprintf("a%d", i)
			as := pki.Node(name)
			if c.role != nil {
				as = c.role(name)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			a := &attack{arena: arena, t: t, ctx: ctx, name: name, conn: arena.dial(as, arena.address)}
			before := refused(t, arena.replica, c.reason)
			for range 2 {
				err := c.do(a)
				require.Equal(t, c.code, status.Code(err), "%v", err)
				require.Contains(t, status.Convert(err).Message(), c.says)
				assert.Less(t, len(status.Convert(err).Message()), 4096)
			}
			eventually(t, "both are counted", func() bool { return refused(t, arena.replica, c.reason)-before >= 2 })
			assert.InDelta(t, 2, refused(t, arena.replica, c.reason)-before, 0)
			from := strings.TrimPrefix(as.URI, "muslin://")
			if c.reason == "identity" {
				from = "127.0.0.1" // nobody whom one could name
			}
			if c.reason != "identity" {
				assert.Equal(t, 1, arena.log.count(c.reason+" "+from), "%v", arena.log.lines)
			}
		})
	}
	assert.Equal(t, honest, arena.honestBut(honest), "nothing of the honest node's has changed")
	register(t, arena.b, client.Registration{ReadOnly: true})
	_, err := arena.b.Settle(t.Context(), arena.epoch, []client.Settlement{{Address: arena.warm[0].Address, Owner: client.Owner{Handle: "net.late"}}})
	require.NoError(t, err, "the honest node's reserve is good")
	assert.LessOrEqual(t, arena.log.count("identity 127.0.0.1"), 3, "once for each method")
}

// honestBut is what is there now of what was there.
func (a *arena) honestBut(before map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range a.honest() {
		if _, was := before[k]; was {
			out[k] = v
		}
	}
	return out
}
