package server

import (
	"net"
	"slices"
	"sync"
	"time"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// replicas knows which typhas there are: as configured, or as discovered.
type replicas struct {
	name string // in all certificates; empty: each one's is for its host

	mu       sync.Mutex // guards all below
	list     []string   // addresses of those that serve, this one's first
	present  []string   // of all, also those that do not serve now
	known    bool       // false until they are discovered
	discover bool

	counted   map[string]int // clients of each, as of countedAt
	countedAt time.Time
}

func newReplicas(cfg Config) *replicas {
	return &replicas{
		name: cfg.ReplicaName, list: cfg.Replicas, present: cfg.Replicas, known: !cfg.Discover, discover: cfg.Discover,
	}
}

// SetReplicas says which replicas there are: this one's address, those that serve, and all. Clients are told of this one and those
// that serve. While this one's own is not known, empty, nothing is.
func (s *Server) SetReplicas(own string, serving, all []string) {
	if own == "" {
		return
	}
	others := func(list []string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(a string) bool { return a == own })
	}
	serving, all = append([]string{own}, others(serving)...), append([]string{own}, others(all)...)
	r := s.replicas
	r.mu.Lock()
	same := r.known && slices.Equal(r.list, serving)
	r.list, r.present, r.known = serving, all, true
	r.mu.Unlock()
	if same {
		return
	}
	s.log.Info("replicas of typha", "serving", serving)
	news := &typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: s.replicaList()}}
	for _, c := range s.sessions.all() {
		c.say(news)
	}
}

// alone tells whether there is no other replica for sure.
func (r *replicas) alone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known && len(r.present) < 2
}

// self is what this replica is called; false while it does not know.
func (r *replicas) self() (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) > 0 {
		return r.list[0], true
	}
	return onlyReplica, r.known
}

// gone tells whether a replica is no more. Of those that are configured nobody knows.
func (r *replicas) gone(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.discover && r.known && !slices.Contains(r.present, name)
}

// addresses are those of the replicas that serve, this one's first.
func (r *replicas) addresses() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// serverName is the name in the certificate of the replica at an address.
func (r *replicas) serverName(address string) string {
	if r.name != "" {
		return r.name
	}
	if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
		return host
	}
	return address
}

// replicaList is the list of replicas as clients are told, with how many nodes each has, as far as that is known.
func (s *Server) replicaList() *typhav1.Replicas {
	m := &typhav1.Replicas{}
	loads := s.recentLoads()
	for i, address := range s.replicas.addresses() {
		r := s.replica(address, loads)
		if i == 0 && loads == nil {
			r.Clients = uint32(s.sessions.size())
		}
		m.Replicas = append(m.Replicas, r)
	}
	return m
}

// recentLoads are the loads of a second ago at most: when all clients come at once each is told.
func (s *Server) recentLoads() map[string]int {
	r := s.replicas
	r.mu.Lock()
	counted, fresh := r.counted, time.Since(r.countedAt) < time.Second
	r.mu.Unlock()
	if fresh {
		return counted
	}
	counted = s.loads()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counted, r.countedAt = counted, time.Now()
	return counted
}

func (s *Server) replica(address string, loads map[string]int) *typhav1.Replica {
	return &typhav1.Replica{Address: address, ServerName: s.replicas.serverName(address), Clients: uint32(loads[address])}
}
