package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/rpc"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

const (
	// balanceLook is how often a replica looks at whether it has more than its share of the clients. What the others have it
	// knows from the condition Connected of Nodes, which is some seconds old.
	balanceLook = 5 * time.Second
	// balanceSlack is how far above its share a replica may be, as a part of the share; moving costs little, and not nothing.
	balanceSlack = 0.1
	// probeWait is how long another replica may take to show that it is there.
	probeWait = 2 * time.Second
)

// balancer sends clients to other replicas while this one has more than its share: clients choose a replica only when they
// come, and one that was away stays empty otherwise.
type balancer struct {
	*Server
	every time.Duration
}

func newBalancer(s *Server) *balancer {
	return &balancer{Server: s, every: cmp.Or(s.cfg.BalanceEvery, balanceLook)}
}

func (b *balancer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(float64(b.every) * (0.75 + rand.Float64()/2))): // replicas do not look all at once
		}
		b.look(ctx)
	}
}

// look moves a half of what is too much: the others may be moving theirs to the same replica.
func (b *balancer) look(ctx context.Context) {
	loads := b.loads()
	addresses := b.replicas.addresses()
	if loads == nil || len(addresses) < 2 {
		return
	}
	own := map[views.ViewKind][]*session{}
	for _, s := range b.sessions.all() {
		own[s.scope.View] = append(own[s.scope.View], s)
	}
	total := loads[""]
	for _, a := range addresses {
		total += loads[a]
	}
	if excess(len(own[views.NodeView]), total, len(addresses)) == 0 && excess(len(own[views.BGPView]), total, len(addresses)) == 0 {
		return
	}
	there := []string{addresses[0]}
	for _, a := range addresses[1:] {
		if b.replicaAnswers(ctx, a) {
			there = append(there, a)
		}
	}
	news := b.roomAt(there[1:], loads, float64(total)/float64(len(there)))
	if len(news.GetReplicas()) == 0 {
		return
	}
	// There is one confd on each node, as there is one felix, so that its share is the same.
	for _, list := range own {
		n := excess(len(list), total, len(there))
		for _, s := range list[:n] {
			s.say(&typhav1.SyncResponse{Response: &typhav1.SyncResponse_Replicas{Replicas: news}})
		}
		if n > 0 {
			b.metrics.moved.Add(float64(n))
			b.log.Info("sending clients to replicas that have fewer", "clients", n, "view", list[0].scope.View, "here", len(list),
				"nodes", total, "replicas", len(there))
		}
	}
}

// excess is how many clients one of so many replicas should send away, if it has so many, and all have so many in all.
func excess(own, total, replicas int) int {
	share := float64(total) / float64(replicas)
	if over := float64(own) - share; over >= 2 && over > balanceSlack*share {
		return int(over+1) / 2
	}
	return 0
}

// roomAt is the list of replicas with less than their share, as clients that are to move there are told.
func (b *balancer) roomAt(others []string, loads map[string]int, share float64) *typhav1.Replicas {
	news := &typhav1.Replicas{Move: true}
	for _, a := range others {
		if float64(loads[a]) < share {
			news.Replicas = append(news.Replicas, b.replica(a, loads))
		}
	}
	return news
}

// loads are the nodes that each replica has, by its address, and by none those that have left this one and are not said to be with
// another yet; nil while that is not known.
func (s *Server) loads() map[string]int {
	state := s.cfg.Cache.Snapshot()
	own, known := s.replicas.self()
	if !state.InSync() || !known {
		return nil
	}
	here := map[string]bool{}
	for _, n := range s.sessions.nodes() {
		here[n] = true
	}
	loads := map[string]int{own: len(here)}
	for n := range state.Nodes() {
		if here[n.Name] {
			continue // what is stored may be of a moment ago
		}
		if c := meta.FindStatusCondition(n.Status.Conditions, api.ConditionConnected); c != nil && c.Status == metav1.ConditionTrue {
			at := connectedAt(c.Message)
			if at == own {
				at = ""
			}
			loads[at]++
		}
	}
	return loads
}

// replicaAnswers tells whether a replica completes a handshake: one that is frozen still accepts connections.
func (s *Server) replicaAnswers(ctx context.Context, address string) bool {
	config, err := rpc.ClientTLS(s.cfg.Files, s.replicas.serverName(address))
	if err != nil {
		return false
	}
	config.NextProtos = []string{"h2"} // else it would refuse, and say so in its log
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: config}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
