package gobgp

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"github.com/osrg/gobgp/v3/pkg/server"

	"github.com/muslin-net/muslin/bird/speaker"
	"github.com/muslin-net/muslin/internal/prefixes"
)

// gobgp's watch turns each best path into protobuf, through two queues, for us to read back: more work than path selection
// itself. So paths are taken before: gobgp asks a filter of the watcher about each event, in its loop, and ours keeps the
// event. All other events go the long way, and the feed waits for each of them in its place, so that the order stays.
//
// gobgp exports neither the filter nor what is in the event. What this relies on is names and types in the version that
// go.mod has; if they are others the filter is not set, or lets everything pass, and all comes as protobuf.
// TestGobgpShowsItsPaths fails then. Paths are never changed once they are in gobgp's table, and its own watch reads them
// beside its loop, too. One thing is written: see hush.

// These mirror types of gobgp's, as far as they are read; matches compares them with the real ones.
type (
	// bestPaths is server.watchEventBestPath.
	bestPaths struct {
		PathList      []*corePath
		MultiPathList [][]*corePath
	}
	// corePath is table.Path: what a path has of its own, and below it the path that it was made from.
	corePath struct {
		info             *originInfo
		parent           *corePath
		pathAttrs        []bgp.PathAttributeInterface
		dels             []bgp.BGPAttrType
		_                uint32 // attrsHash
		_                bool   // rejected
		_                bool   // dropped
		IsNexthopInvalid bool
		IsWithdraw       bool
	}
	// originInfo is table.originInfo.
	originInfo struct {
		nlri   bgp.AddrPrefixInterface
		source *peerInfo
	}
	// peerInfo is table.PeerInfo.
	peerInfo struct {
		AS      uint32
		ID      []byte
		LocalAS uint32
		LocalID []byte
		Address []byte // a net.IP; none of an own route
	}
)

// feed is what gobgp has told and was not passed on yet.
type feed struct {
	log *slog.Logger
	// complete is called in gobgp's loop when a peer has told all that it has, before gobgp draws conclusions.
	complete func()
	wake     chan struct{} // there is something in queue
	told     chan *api.WatchEventResponse

	mu    sync.Mutex   // guards the following
	queue []*bestPaths // nil: the next of told is due here

	attached bool // there are filters; set before there are sessions

	// loop is an AS path with the numbers of all peers, which is sent to none; nil if there are too many.
	loop atomic.Pointer[[]bgp.PathAttributeInterface]

	// Owned by gobgp's loop:
	shape    shape
	exported prefixes.Map[struct{}] // had a best path that a peer may have been told, and were not withdrawn since
}

// shape says whether events look as this version of the feed wants them.
type shape uint8

const (
	notSeen shape = iota
	asExpected
	different
)

func newFeed(log *slog.Logger) *feed {
	return &feed{log: log, complete: func() {}, wake: make(chan struct{}, 1), told: make(chan *api.WatchEventResponse)}
}

// attach has events shown to the feed, if it can. gobgp must not have sessions yet.
func (f *feed) attach(s *server.BgpServer) {
	if f.attached = f.setFilters(s); !f.attached {
		f.warn()
	}
}

func (f *feed) warn() { unexpected(f.log, "routes are learned by its slower way") }

// unexpected tells what follows from a gobgp of another version.
func unexpected(log *slog.Logger, so string) {
	log.Warn("gobgp is not as this program expects it: "+so, "do", "build with the version in go.mod")
}

// setFilters sets the filter of each watcher for all that it watches, and tells whether it could.
func (f *feed) setFilters(s *server.BgpServer) bool {
	watchers := reflect.ValueOf(s).Elem().FieldByName("watcherMap")
	if !watchers.IsValid() || watchers.Kind() != reflect.Map || watchers.Type().Key().Kind() != reflect.String {
		return false
	}
	watchers = opened(watchers)
	set := map[string]bool{}
	for kinds := watchers.MapRange(); kinds.Next(); {
		list := kinds.Value()
		if list.Kind() != reflect.Slice || list.Type().Elem().Kind() != reflect.Pointer || list.Type().Elem().Elem().Kind() != reflect.Struct {
			return false
		}
		for i := range list.Len() {
			filters := list.Index(i).Elem().FieldByName("filters")
			if !filters.IsValid() || filters.Kind() != reflect.Map || filters.Type().Key() != watchers.Type().Key() {
				return false
			}
			kind := filters.Type().Elem()
			if kind.Kind() != reflect.Func || kind.NumIn() != 1 || kind.NumOut() != 1 || kind.Out(0) != reflect.TypeFor[bool]() ||
				kind.In(0).Kind() != reflect.Interface || kind.In(0).NumMethod() != 0 {
				return false
			}
			opened(filters).SetMapIndex(kinds.Key(), reflect.MakeFunc(kind, func(event []reflect.Value) []reflect.Value {
				return []reflect.Value{reflect.ValueOf(f.take(event[0].Interface()))}
			}))
			set[kinds.Key().String()] = true
		}
	}
	return set["bestpath"] && set["eor"] && set["peerstate"]
}

// opened is a field that may be read and written though it is not exported.
func opened(field reflect.Value) reflect.Value {
	return reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem() //nolint:gosec // callers check name and type
}

// take is called in gobgp's loop with each event, and tells whether gobgp shall pass it on itself.
func (f *feed) take(event any) bool {
	if !f.attached {
		return true
	}
	t := reflect.TypeOf(event)
	var paths *bestPaths
	switch {
	case t.Kind() != reflect.Pointer:
	case t.Elem().Name() == "watchEventEor":
		f.complete()
	case t.Elem().Name() == "watchEventBestPath":
		if f.shape == notSeen {
			if f.shape = asExpected; !matches(reflect.TypeFor[*bestPaths](), t, map[reflect.Type]bool{}) {
				f.shape = different
				f.warn()
			}
		}
		if f.shape == asExpected {
			paths = (*bestPaths)(reflect.ValueOf(event).UnsafePointer())
			f.hush(paths)
		}
	}
	f.push(paths)
	return paths == nil
}

// hush keeps a withdrawal back that tells nobody anything. By itself gobgp sends every withdrawal to every peer, one in a
// message, whether or not the peer was told the route: a router that takes a hundred thousand routes back would keep all nodes
// of the mesh busy, which know none of them. What it is about to send is a path that it has just made of the old one, behind the
// event's. One that does not say it is a withdrawal is judged as the old one was, and rejected; with an AS path that leads back
// to each peer it is not even judged. That is done for prefixes that no best path was let out to anybody since they came, so
// what a peer may know is always taken back.
func (f *feed) hush(e *bestPaths) {
	for _, p := range e.PathList {
		prefix := p.prefix()
		switch {
		case !prefix.IsValid():
		case !p.IsWithdraw:
			if p.letOut() {
				f.exported.Set(prefix, struct{}{})
			}
		case f.exported.Has(prefix):
			f.exported.Delete(prefix)
		case p.parent != nil && p.parent.IsWithdraw:
			p.parent.IsWithdraw = false
			if loop := f.loop.Load(); loop != nil {
				p.parent.pathAttrs = *loop
			}
		}
	}
}

// mostNumbers is how many AS numbers a loop may have: gobgp compares each with each peer's.
const mostNumbers = 16

// follow has the loop lead back to these peers.
func (f *feed) follow(peers map[netip.Addr]speaker.Neighbor) {
	var numbers []uint32
	for _, n := range peers {
		if !slices.Contains(numbers, n.ASNumber) {
			numbers = append(numbers, n.ASNumber)
		}
		if len(numbers) > mostNumbers {
			f.loop.Store(nil)
			return
		}
	}
	path := bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, numbers)})
	f.loop.Store(&[]bgp.PathAttributeInterface{path})
}

// tell is called with what gobgp passed on itself.
func (f *feed) tell(ctx context.Context, r *api.WatchEventResponse) {
	if r.GetPeer().GetType() == api.WatchEventResponse_PeerEvent_END_OF_INIT {
		return // no filter was asked
	}
	if !f.attached {
		f.push(nil)
	}
	select {
	case f.told <- r:
	case <-ctx.Done():
	}
}

// push adds to the queue.
func (f *feed) push(paths *bestPaths) {
	f.mu.Lock()
	f.queue = append(f.queue, paths)
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run passes everything on, in order, until ctx ends.
func (f *feed) run(ctx context.Context, paths func(*bestPaths), other func(*api.WatchEventResponse)) {
	var batch []*bestPaths
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		f.mu.Lock()
		batch, f.queue = f.queue, batch[:0]
		f.mu.Unlock()
		for i, p := range batch {
			if p != nil {
				batch[i] = nil
				paths(p)
				continue
			}
			select {
			case <-ctx.Done():
				return
			case r := <-f.told:
				other(r)
			}
		}
		if cap(batch) > 1<<12 { // it was for a burst
			batch = nil
		}
	}
}

// matches tells whether a value of type have can be read as one of type want: what want names is there, with such a type, in
// the same place.
func matches(want, have reflect.Type, seen map[reflect.Type]bool) bool {
	if want == have || seen[want] {
		return true
	}
	if want.Kind() != have.Kind() {
		return false
	}
	switch want.Kind() {
	case reflect.Pointer:
		return matches(want.Elem(), have.Elem(), seen)
	case reflect.Slice:
		return want.Elem().Size() == have.Elem().Size() && matches(want.Elem(), have.Elem(), seen)
	case reflect.Struct:
		seen[want] = true
		for w := range want.Fields() {
			if w.Name == "_" { // it is not read; the place of what follows tells whether it is there
				continue
			}
			h, ok := have.FieldByName(w.Name)
			if !ok || h.Offset != w.Offset || len(h.Index) != 1 || !matches(w.Type, h.Type, seen) {
				return false
			}
		}
		return true
	}
	return want.PkgPath() == "" || want.Name() == have.Name() && want.PkgPath() == have.PkgPath()
}
