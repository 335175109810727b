package client

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"slices"
	"sync"

	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// Replica is one typha.
type Replica struct {
	Address    string // host:port
	ServerName string // name in its certificate
	Clients    int    // how many clients it had when it was last heard of
}

func decodeReplicas(m *typhav1.Replicas) []Replica {
	var out []Replica
	for _, r := range m.GetReplicas() {
		if _, _, err := net.SplitHostPort(r.GetAddress()); err == nil {
			out = append(out, Replica{Address: r.GetAddress(), ServerName: r.GetServerName(), Clients: int(r.GetClients())})
		}
	}
	return out
}

func encodeReplicas(list []Replica) *typhav1.Replicas {
	m := &typhav1.Replicas{}
	for _, r := range list {
		m.Replicas = append(m.Replicas, &typhav1.Replica{Address: r.Address, ServerName: r.ServerName, Clients: uint32(r.Clients)})
	}
	return m
}

// replicas knows the replicas of typha, chooses among them, and keeps one connection to each.
type replicas struct {
	files      rpc.Files
	options    []grpc.DialOption
	configured []Replica

	mu      sync.Mutex // guards all below
	learned []Replica
	current Replica             // that of the stream; the zero value if there is none
	bad     map[string]struct{} // addresses that failed since one last worked
	conns   map[string]*grpc.ClientConn
	closed  bool
}

func newReplicas(cfg Config) *replicas {
	p := &replicas{files: cfg.Files, options: cfg.Dial, bad: map[string]struct{}{}, conns: map[string]*grpc.ClientConn{}}
	for _, a := range cfg.Addresses {
		name := cfg.ServerName
		if host, _, err := net.SplitHostPort(a); err == nil && name == "" {
			name = host
		}
		p.configured = append(p.configured, Replica{Address: a, ServerName: name})
	}
	return p
}

// learn takes typha's word on its replicas. An empty list changes nothing.
func (p *replicas) learn(list []Replica) {
	if len(list) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.learned = list
}

// move takes typha's word to go to these replicas: they are well, and all others do not count before they have failed.
func (p *replicas) move(list []Replica) {
	p.learn(list)
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.bad)
	for _, r := range p.known() {
		if !slices.ContainsFunc(list, func(o Replica) bool { return o.Address == r.Address }) {
			p.bad[r.Address] = struct{}{}
		}
	}
}

// all returns the replicas that typha told of.
func (p *replicas) all() []Replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.learned)
}

// next chooses the replica for a stream: of two taken at random the one with fewer clients, so that clients spread
// without knowing of each other; those that failed only when all have.
func (p *replicas) next() Replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known()
	good := slices.DeleteFunc(slices.Clone(known), func(r Replica) bool { _, bad := p.bad[r.Address]; return bad })
	if len(good) == 0 {
		clear(p.bad)
		good = known
	}
	a, b := good[rand.IntN(len(good))], good[rand.IntN(len(good))]
	if b.Clients < a.Clients {
		a = b
	}
	p.current = a
	return a
}

// known lists each address once; what typha told wins over what was configured.
func (p *replicas) known() []Replica {
	out := slices.Clone(p.learned)
	for _, r := range p.configured {
		if !slices.ContainsFunc(out, func(o Replica) bool { return o.Address == r.Address }) {
			out = append(out, r)
		}
	}
	return out
}

// other tells whether there is a replica beside r.
func (p *replicas) other(r Replica) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.known(), func(o Replica) bool { return o.Address != r.Address })
}

// failed notes that a stream could not be had from r, or broke, or that r asked its client to go elsewhere.
func (p *replicas) failed(r Replica) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad[r.Address] = struct{}{}
	p.current = Replica{}
}

// candidates lists the replicas for a single call, the stream's first.
func (p *replicas) candidates() []Replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.known()
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	rank := func(r Replica) int {
		if r.Address == p.current.Address {
			return 0
		}
		if _, bad := p.bad[r.Address]; bad {
			return 2
		}
		return 1
	}
	slices.SortStableFunc(list, func(a, b Replica) int { return cmp.Compare(rank(a), rank(b)) })
	return list
}

// conn returns the connection to a replica; it is made when it is first used.
func (p *replicas) conn(r Replica) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("the client is closed")
	}
	if c := p.conns[r.Address]; c != nil {
		return c, nil
	}
	tls, err := rpc.ClientTLS(p.files, r.ServerName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: waiting for what calico-node brings: %w", ErrUnavailable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("typha at %s: %w", r.Address, err)
	}
	c, err := rpc.Dial(r.Address, tls, p.options...)
	if err != nil {
		return nil, fmt.Errorf("typha at %s: %w", r.Address, err)
	}
	p.conns[r.Address] = c
	return c, nil
}

func (p *replicas) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	clear(p.conns)
	return errors.Join(errs...)
}
