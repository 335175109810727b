package client

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func replicasOf(addresses ...string) *replicas {
	return newReplicas(Config{Addresses: addresses, ServerName: "typha"})
}

// chosen are the replicas that may be chosen.
func chosen(p *replicas) map[string]bool {
	out := map[string]bool{}
	for range 200 {
		out[p.next().Address] = true
	}
	return out
}

func only(addresses ...string) map[string]bool {
	out := map[string]bool{}
	for _, a := range addresses {
		out[a] = true
	}
	return out
}

func TestReplicasThatFailedComeLast(t *testing.T) {
	p := replicasOf("a:1", "b:1", "c:1")
	assert.Equal(t, only("a:1", "b:1", "c:1"), chosen(p))
	p.failed(Replica{Address: "a:1"})
	assert.Equal(t, only("b:1", "c:1"), chosen(p))
	p.failed(Replica{Address: "b:1"})
	assert.Equal(t, only("c:1"), chosen(p))
	p.failed(Replica{Address: "c:1"})
	assert.Equal(t, only("a:1", "b:1", "c:1"), chosen(p))
}

// A replica that failed once and is sent to by another one, because it is back and empty, is gone to.
func TestMoveGoesWhereTyphaSays(t *testing.T) {
	p := replicasOf("a:1", "b:1", "c:1")
	p.failed(Replica{Address: "a:1"})
	p.move([]Replica{{Address: "a:1"}})
	assert.Equal(t, only("a:1"), chosen(p))
	p.failed(Replica{Address: "a:1"}) // it is not there after all
	assert.Equal(t, only("a:1", "b:1", "c:1"), chosen(p))
}

func TestFewerClientsArePreferred(t *testing.T) {
	p := replicasOf("a:1", "b:1")
	p.learn([]Replica{{Address: "a:1", Clients: 100}, {Address: "b:1", Clients: 10}})
	counts := map[string]int{}
	for range 1000 {
		counts[p.next().Address]++
	}
	assert.Greater(t, counts["b:1"], 2*counts["a:1"], "of two the one with fewer; the same one twice in a quarter of all cases")
}
