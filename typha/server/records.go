package server

import (
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

// recordPatience is how long a pool's status may say something else of the pool's transport than this replica knows,
// before it is put right: other replicas may be busy with the same change.
const recordPatience = 15 * time.Second

// records says what the status of each pool is to hold on how packets to the pool are carried. A typha that starts has no
// other memory of it, and must not change what nodes send before all of them accept it
// (compute.OnRecord). Tunnel addresses follow the record, too: those of the old way are released when nobody sends it any
// more.
type records struct {
	news func()

	mu    sync.Mutex // guards pools
	pools map[string]*record
}

// record is what one pool's status is to hold.
type record struct {
	known   compute.Transport  // how its packets are carried
	moving  bool               // to another mode
	accept  bool               // with the senders still at the old one
	urgent  *compute.Transport // to be written now; nil if there is no hurry
	differs time.Time          // since when the status says something else, without a reason known here
}

func newRecords(news func()) *records { return &records{news: news, pools: map[string]*record{}} }

// carried notes how packets of a pool are carried.
func (r *records) carried(c intake.Carriage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(c.Now.Receive) == 0 {
		delete(r.pools, c.Pool)
		return
	}
	now := &record{known: c.Now, moving: c.Moving}
	switch was := r.pools[c.Pool]; {
	case !c.Moving:
		now.urgent = &c.Now
	case was != nil && was.known.Equal(c.Now):
		now.accept = was.accept
	default:
		now.accept = was == nil || was.known.SendsAs(c.Now)
	}
	r.pools[c.Pool] = now
	r.news()
}

// allows tells whether a pool's status holds what it must before the next step, and sees to it that it soon does.
func (r *records) allows(pool *api.IPPool, now, next compute.Transport) bool {
	has, known := compute.Recorded(pool)
	need, ok := compute.OnRecord(has, now, next)
	if known && ok {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pools[pool.Name]; p != nil {
		p.urgent = &need
		r.news()
	}
	return false
}

// want returns what the pool's status is to hold, nil to leave it; whether it is urgent; and whether to ask again later.
func (r *records) want(pool *api.IPPool) (want *api.PoolTransport, urgent, later bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pools[pool.Name]
	if p == nil {
		return nil, false, false
	}
	has, ok := compute.Recorded(pool)
	if p.urgent != nil {
		if ok && has.Equal(*p.urgent) {
			p.urgent = nil // done
			return nil, false, false
		}
		return p.urgent.Record(), true, false
	}
	if p.accept && p.known.SendsAs(has) && !contains(has.Receive, p.known.Receive) {
		// Receivers are told to accept more, so that senders can be told next: that can be on record by then.
		return p.known.Record(), true, false
	}
	if p.moving || ok && has.Equal(p.known) {
		p.differs = time.Time{}
		return nil, false, false
	}
	if p.differs.IsZero() {
		p.differs = time.Now()
	}
	if ok && time.Since(p.differs) < recordPatience {
		return nil, false, true
	}
	return p.known.Record(), false, true
}

func contains(all, some []view.Tunnel) bool {
	return !slices.ContainsFunc(some, func(t view.Tunnel) bool { return !slices.Contains(all, t) })
}

// tunnelsKnown tells whether all connected nodes that are to have a tunnel address for packets to a pool have one, with
// which the others can reach them.
func tunnelsKnown(pool *api.IPPool, send view.Tunnel, state *cache.Snapshot, connected []string) bool {
	var t alloc.Tunnel
	switch v4 := pool.Prefix().Addr().Is4(); {
	case send == view.TunnelIPIP:
		t = alloc.TunnelIPIP
	case send == view.TunnelVXLAN && v4:
		t = alloc.TunnelVXLAN
	case send == view.TunnelVXLAN:
		t = alloc.TunnelVXLAN6
	default:
		return true
	}
	var needs func(alloc.Tunnel, map[string]string) bool
	for _, name := range connected {
		n := state.Node(name)
		if n == nil {
			continue
		}
		if a, asked := tunnelsOf(n)[t]; !asked || a.IsValid() {
			continue
		}
		if needs == nil {
			needs = alloc.TunnelNeeds(slices.Collect(state.Pools()))
		}
		if needs(t, n.Labels) {
			return false
		}
	}
	return true
}
