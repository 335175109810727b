package storm

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/integration/storm/history"
	"github.com/muslin-net/muslin/integration/storm/link"
	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/wire"
)

// Follower is a node's felix as far as typha can tell: the real client, whose every word is judged.
type Follower struct {
	node    string
	client  *client.Client
	network *link.Network
	stop    func() // ends it and waits

	before atomic.Bool // it speaks as the version of the protocol before did, from its next stream on

	mu      sync.Mutex // guards all below
	history *history.Client
	streams []*Stream
	point   view.Checkpoint // what was handed over last
}

// softwareBefore is what programs of the version of the protocol before call themselves.
const softwareBefore = "before"

// Stream is one stream that a follower had.
type Stream struct {
	Replica string // its address
	Before  bool   // the client spoke as the version before
	Typha   bool   // and so did typha
	Resumed bool
	First   int  // bytes of messages until something was handed over first
	Synced  bool // that has happened
	All     int  // bytes of all messages
	Ended   bool // by typha or the network; a client that was asked to go elsewhere ends its stream itself
	Over    bool // by whomever it was ended
}

// newFollower prepares a follower. Its connections go over a network.
func newFollower(node string, addresses []string, files rpc.Files, network *link.Network, writes *history.Writes, log *slog.Logger) (*Follower, error) {
	f := &Follower{node: node, network: network, history: history.NewClient(node, writes)}
	var err error
	f.client, err = client.New(client.Config{
		Addresses: addresses, Files: files, Node: node, View: client.NodeView, Log: log.With("node", node),
		Dial: []grpc.DialOption{grpc.WithContextDialer(f.dial), grpc.WithStreamInterceptor(f.intercept)},
	})
	return f, err
}

// run follows until stop is called.
func (f *Follower) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = f.client.Run(ctx, f) }) // an error is a wrong configuration only
	f.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		f.client.Close()
	})
}

func (f *Follower) dial(ctx context.Context, address string) (net.Conn, error) {
	through, err := f.network.To(address)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", through)
}

// OnBatch commits a batch at once.
func (f *Follower) OnBatch(b client.Batch) {
	e := history.Handed{Removes: b.Removes, Point: b.Checkpoint, InSync: b.InSync}
	for _, it := range b.Updates {
		e.Updates = append(e.Updates, history.Describe(it))
	}
	f.mu.Lock()
	f.history.Take(e)
	f.point = b.Checkpoint
	if n := len(f.streams); n > 0 {
		f.streams[n-1].Synced = true
	}
	f.mu.Unlock()
	b.Applied()
}

// OnQuery answers nothing.
func (f *Follower) OnQuery(context.Context, client.Question, func([]byte) error) error {
	return client.ErrUnserved
}

// reached tells whether the follower has what the datastore held at a revision.
func (f *Follower) reached(revision int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.point["etcd"] >= uint64(revision)
}

// holds tells whether the follower's view is this one.
func (f *Follower) holds(want map[view.Key]view.Version) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.history.Holds(want)
}

// last is the stream that the follower has now, the zero value if it has none.
func (f *Follower) last() Stream {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.streams); n > 0 && !f.streams[n-1].Over {
		return *f.streams[n-1]
	}
	return Stream{}
}

// broken is how many of the streams after the first n, and of the one that there was then, the client did not end itself.
func (f *Follower) broken(n int) (count int) {
	for _, s := range f.since(max(0, n-1)) {
		if s.Ended {
			count++
		}
	}
	return count
}

// snapshot is what the first stream cost until the view was whole, in bytes.
func (f *Follower) snapshot() int { return f.since(0)[0].First }

// since are the streams after the first n.
func (f *Follower) since(n int) (list []Stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.streams[n:] {
		list = append(list, *s)
	}
	return list
}

func (f *Follower) intercept(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	s, err := streamer(ctx, desc, conn, method, opts...)
	if err != nil || method != typhav1.SyncService_Sync_FullMethodName {
		return s, err
	}
	r := &recorder{
		ClientStream: s, follower: f, named: history.Named{Have: map[view.Key]view.Version{}},
		stream: &Stream{Replica: conn.Target()},
	}
	context.AfterFunc(ctx, func() { // the client is done with it
		f.mu.Lock()
		defer f.mu.Unlock()
		r.stream.Over = true
	})
	return r, nil
}

// recorder is a stream that tells the judge what goes over it.
type recorder struct {
	grpc.ClientStream
	follower *Follower
	opened   history.Opened
	named    history.Named
	stream   *Stream
	begun    bool // some of its hello was sent
}

// SendMsg tells of the hello, and of the answer to what the client has, whose parts come one after the other before all else.
func (r *recorder) SendMsg(m any) error {
	f := r.follower
	f.mu.Lock()
	switch m := m.(*typhav1.SyncRequest).GetRequest().(type) {
	case *typhav1.SyncRequest_Hello:
		r.hello(m.Hello)
	case *typhav1.SyncRequest_Named:
		for _, h := range m.Named.GetHave() {
			k, _ := wire.DecodeKey(h.GetKey())
			r.named.Have[k], _ = wire.DecodeVersion(h.GetVersion()) // the client's own words
		}
		if !m.Named.GetMore() {
			f.history.Take(r.named)
		}
	}
	f.mu.Unlock()
	return r.ClientStream.SendMsg(m)
}

// hello takes a part of a hello. A client of the version before names all that it has in it.
func (r *recorder) hello(m *typhav1.Hello) {
	f := r.follower
	if !r.begun {
		r.begun = true
		r.opened.Point = wire.DecodeCheckpoint(m.GetCheckpoint())
		if digests, err := view.DigestsOf(m.GetDigests()); err == nil && digests != nil {
			r.opened.Digests = *digests
		}
		r.stream.Before = m.GetSoftware() == softwareBefore
		f.streams = append(f.streams, r.stream)
	}
	for _, h := range m.GetHave() {
		k, _ := wire.DecodeKey(h.GetKey())
		v, _ := wire.DecodeVersion(h.GetVersion())
		r.opened.Digests.Add(k, v)
	}
	if !m.GetMore() {
		f.history.Take(r.opened)
	}
}

// RecvMsg tells of what came.
func (r *recorder) RecvMsg(m any) error {
	err := r.ClientStream.RecvMsg(m)
	f := r.follower
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		r.stream.Ended = true
		f.history.Take(history.Closed{Reason: err.Error()})
		return err
	}
	size := proto.Size(m.(proto.Message))
	r.stream.All += size
	if !r.stream.Synced {
		r.stream.First += size
	}
	switch m := m.(*typhav1.SyncResponse).GetResponse().(type) {
	case *typhav1.SyncResponse_Name:
		if r.stream.Before {
			r.stream.Ended = true
			return errors.New("a client of the version before is asked what it does not know")
		}
		r.named.Parts = m.Name.GetParts()
	case *typhav1.SyncResponse_Welcome:
		r.stream.Resumed, r.stream.Typha = m.Welcome.GetResumed(), m.Welcome.GetSoftware() == softwareBefore
		f.history.Take(history.Welcomed{Resumed: m.Welcome.GetResumed()})
	case *typhav1.SyncResponse_Chunk:
		e := sent(m.Chunk)
		e.Skewed = r.stream.Typha
		f.history.Take(e)
	}
	return nil
}

func sent(c *typhav1.Chunk) history.Sent {
	e := history.Sent{Batch: c.GetBatch(), Removes: wire.DecodeKeys(c.GetRemoves()), InSync: c.GetInSync()}
	if c.GetCheckpoint() != nil {
		e.Point = wire.DecodeCheckpoint(c.GetCheckpoint())
	}
	for _, b := range c.GetItems() {
		it, err := wire.Decode(b)
		if err != nil {
			continue // the client leaves it out too, and the end of the history misses it
		}
		d := history.Describe(it.Item)
		d.Version, d.More = it.Version, it.More
		e.Items = append(e.Items, d)
	}
	return e
}
