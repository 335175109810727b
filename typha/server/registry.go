package server

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/muslin-net/muslin/typha/views"
)

// registry knows the sessions. A scope may have several for a moment: a client that lost its connection is back before
// the old session has noticed.
type registry struct {
	metrics *metrics
	joined  func(node string) // told of each node whose felix connects

	mu       sync.Mutex                 // guards all below
	sessions map[views.Scope][]*session // oldest first
	left     map[string]time.Time       // nodes whose felix was connected, and until when
}

func newRegistry(m *metrics) *registry {
	return &registry{metrics: m, sessions: map[views.Scope][]*session{}, left: map[string]time.Time{}}
}

func (r *registry) add(s *session) {
	r.mu.Lock()
	r.sessions[s.scope] = append(r.sessions[s.scope], s)
	if s.scope.View == views.NodeView {
		delete(r.left, s.scope.Node)
	}
	r.mu.Unlock()
	r.metrics.clients.WithLabelValues(s.scope.View.String()).Inc()
	if s.scope.View == views.NodeView {
		r.joined(s.scope.Node)
	}
}

func (r *registry) remove(s *session) {
	r.mu.Lock()
	left := slices.DeleteFunc(r.sessions[s.scope], func(o *session) bool { return o == s })
	if r.sessions[s.scope] = left; len(left) == 0 {
		delete(r.sessions, s.scope)
		if s.scope.View == views.NodeView {
			r.left[s.scope.Node] = time.Now()
		}
	}
	r.mu.Unlock()
	r.metrics.clients.WithLabelValues(s.scope.View.String()).Dec()
}

// lost tells whether a node's connection ended within a time, and the node is not back.
func (r *registry) lost(within time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.left, func(_ string, at time.Time) bool { return time.Since(at) >= within })
	return len(r.left) > 0
}

// newest returns the newest session of a scope, or nil.
func (r *registry) newest(scope views.Scope) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.sessions[scope]
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// all returns every session.
func (r *registry) all() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*session
	for _, list := range r.sessions {
		out = append(out, list...)
	}
	return out
}

// size is the number of sessions.
func (r *registry) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, list := range r.sessions {
		n += len(list)
	}
	return n
}

// nodes returns the names of nodes whose felix is connected, in no order.
func (r *registry) nodes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for scope := range r.sessions {
		if scope.View == views.NodeView {
			out = append(out, scope.Node)
		}
	}
	return out
}
