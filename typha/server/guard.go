package server

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// What one client may have under way. Felix and confd have a stream each, and two while they reconnect; 256 calls are more than
// pods start at once on a node.
const (
	maxStreams = 16
	maxCalls   = 256
	// maxOpen is the same for a connection, where HTTP/2 itself refuses. It leaves room for the refusals above, which say why.
	maxOpen = 512
	// maxMetadata bounds the headers of a call.
	maxMetadata = 64 << 10
)

// maxList bounds the lists of addresses, endpoints and the like of one call: each entry may cost a look into the datastore.
const maxList = 4096

// maxSize bounds requests that become part of an object, which the datastore takes up to some 1.5 MB. The others may have 4 MiB.
var maxSize = map[string]int{
	typhav1.NodesService_Register_FullMethodName:     256 << 10,
	typhav1.NodesService_ReportStatus_FullMethodName: 128 << 10,
	typhav1.IpamService_Reserve_FullMethodName:       64 << 10,
	typhav1.EnrollmentService_Enroll_FullMethodName:  64 << 10,
}

// guard stands before all methods: it bounds what a client may do at once, and counts calls and what was refused.
type guard struct {
	metrics  *metrics
	refusals *refusals
	known    map[string]bool // methods; filled before anything is served

	mu   sync.Mutex // guards busy
	busy map[string]*load
}

// load is what a client has under way.
type load struct{ streams, calls int }

func newGuard(m *metrics, r *refusals) *guard {
	return &guard{metrics: m, refusals: r, known: map[string]bool{}, busy: map[string]*load{}}
}

// options are what makes a server pass everything by the guard.
func (g *guard) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			return refuse(refusedUnknown, codes.Unimplemented, "there is no such method here; client and typha may be of different versions, or this is no typha client")
		}),
		grpc.StatsHandler(unreached{g}),
		grpc.MaxConcurrentStreams(maxOpen),
		grpc.MaxHeaderListSize(maxMetadata),
	}
}

// learn notes the methods of a server.
func (g *guard) learn(s *grpc.Server) {
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			g.known["/"+service+"/"+m.Name] = true
		}
	}
}

func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	answer, err := g.within(ctx, req, info, next)
	return answer, g.count(ctx, info.FullMethod, err)
}

func (g *guard) within(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if most, size := maxSize[info.FullMethod], proto.Size(req.(proto.Message)); most > 0 && size > most {
		return nil, refuse(refusedOversized, codes.ResourceExhausted, "the request has %d bytes; at most %d are taken", size, most)
	}
	who := caller(ctx)
	if !g.enter(who, func(l *load) *int { return &l.calls }, maxCalls) {
		return nil, refuse(refusedLimit, codes.ResourceExhausted, "%s has %d calls under way; wait for some of them", who, maxCalls)
	}
	defer g.leave(who, func(l *load) *int { return &l.calls })
	return next(ctx, req)
}

func (g *guard) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	who := caller(stream.Context())
	err := refuse(refusedLimit, codes.ResourceExhausted, "%s has %d streams open; end some of them", who, maxStreams)
	if g.enter(who, func(l *load) *int { return &l.streams }, maxStreams) {
		err = next(srv, readStream{stream})
		g.leave(who, func(l *load) *int { return &l.streams })
	}
	return g.count(stream.Context(), info.FullMethod, err)
}

// enter takes one of what a client may have at once.
func (g *guard) enter(who string, of func(*load) *int, most int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.busy[who]
	if l == nil {
		l = &load{}
		g.busy[who] = l
	}
	n := of(l)
	if *n >= most {
		return false
	}
	*n++
	return true
}

func (g *guard) leave(who string, of func(*load) *int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.busy[who]
	if *of(l)--; *l == (load{}) {
		delete(g.busy, who)
	}
}

// count counts a call, and notes if it was refused. It returns the error that the client is told.
func (g *guard) count(ctx context.Context, method string, err error) error {
	if mark, ok := ctx.Value(markKey{}).(*mark); ok {
		mark.counted = true
	}
	if !g.known[method] {
		method = "unknown" // clients must not make up series
	}
	g.metrics.calls.WithLabelValues(method, status.Code(err).String()).Inc()
	if reason := reasonOf(err); reason != "" {
		g.refusals.note(reason, caller(ctx), method, err)
	}
	return brief(err)
}

// readStream tells apart what was wrong with reading.
type readStream struct{ grpc.ServerStream }

// RecvMsg reads a message.
func (s readStream) RecvMsg(m any) error { return unread(s.ServerStream.RecvMsg(m)) }

// unreached counts the calls that end before any handler or interceptor is asked: their request is too large, or does not parse.
type unreached struct{ guard *guard }

type markKey struct{}

// mark belongs to one call.
type mark struct {
	method  string
	counted bool
}

// TagRPC is of stats.Handler.
func (u unreached) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, markKey{}, &mark{method: info.FullMethodName})
}

// HandleRPC is of stats.Handler.
func (u unreached) HandleRPC(ctx context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if !ok {
		return
	}
	if m, ok := ctx.Value(markKey{}).(*mark); ok && !m.counted && end.Error != nil {
		_ = u.guard.count(ctx, m.method, unread(end.Error))
	}
}

// TagConn is of stats.Handler.
func (u unreached) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is of stats.Handler.
func (u unreached) HandleConn(context.Context, stats.ConnStats) {}
