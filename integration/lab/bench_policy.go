package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/etcd"
)

// policy measures what policy costs, by both rule drivers: a packet, and a change.
func (b *bench) policy(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return problem("the area policy enters network namespaces of pods", "run it as root")
	}
	for _, part := range []struct {
		area    string
		measure func(context.Context) error
	}{{"policy-traffic", b.policyTraffic}, {"policy-latency", b.policyLatency}} {
		if !b.wants(part.area) && !b.wants("policy") {
			continue
		}
		if err := part.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.area, err)
		}
	}
	return nil
}

// ruleDriver is one of felix's two, and how its rules are read from the kernel. Of iptables it is the variant that is built on
// nftables, since the kernel tells of its changes; so is that of Calico's figures.
type ruleDriver struct {
	name string
	env  map[string]string // has felix use it
	// ofPolicy are the rules of a global policy's ingress, empty if there is no such policy.
	ofPolicy func(ctx context.Context, l *Lab, node, policy string) (string, error)
	// reach is how many workload interfaces' packets come to each policy's ingress, by the policy's id.
	reach func(ctx context.Context, l *Lab, node string) (map[string]int, error)
	// members is how many members a set has that rules name.
	members func(ctx context.Context, l *Lab, node, set string) (int, error)
	// forget removes all rules from the kernel, by a shell command.
	forget string
}

func ruleDrivers() []ruleDriver {
	return []ruleDriver{
		{
			name: "nftables", env: map[string]string{"FELIX_NFTABLESMODE": "Enabled"},
			ofPolicy: nftPolicy, reach: nftReach, members: nftMembers, forget: "nft flush ruleset",
		},
		{
			name: "iptables", env: map[string]string{"FELIX_NFTABLESMODE": "Disabled", "FELIX_IPTABLESBACKEND": "NFT"},
			ofPolicy: iptablesPolicy, reach: iptablesReach, members: ipsetMembers, forget: "nft flush ruleset; ipset destroy",
		},
	}
}

// store is the datastore of a lab, as those write to it who are not told to wait: objects are stored as they are.
type store struct {
	datastore.Client
	relay relay
}

// openStore opens the datastore that is embedded on a node of the lab.
func openStore(ctx context.Context, l *Lab, node string) (*store, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &store{relay: relay{listener: listener}}
	s.relay.dial = func() (net.Conn, error) {
		return l.Dial(ctx, node, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), etcdPort))
	}
	s.relay.running.Go(s.relay.run)
	if s.Client, err = etcd.New(ctx, etcd.Config{Endpoints: []string{"http://" + listener.Addr().String()}, Logger: discard()}); err != nil {
		return nil, errors.Join(err, s.relay.close())
	}
	return s, nil
}

func (s *store) close() error { return errors.Join(s.Close(), s.relay.close()) }

// put stores objects, as many at a time as a busy control plane does, and puts what is then stored in their place.
func (s *store) put(ctx context.Context, objects ...api.Object) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i, o := range objects {
		g.Go(func() (err error) {
			if o.GetResourceVersion() == "" {
				objects[i], err = s.Create(ctx, o)
			} else {
				objects[i], err = s.Update(ctx, o)
			}
			return err
		})
	}
	return g.Wait()
}

// relay carries connections to where this process cannot dial.
type relay struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	running  sync.WaitGroup

	mu    sync.Mutex // guards the following
	conns []net.Conn
}

func (r *relay) run() {
	for {
		in, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		out, err := r.dial()
		if err != nil {
			_ = in.Close() // who has dialled will see, and try again
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, in, out)
		r.mu.Unlock()
		for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
			r.running.Go(func() {
				_, _ = io.Copy(way[1], way[0])
				_ = way[1].Close()
			})
		}
	}
}

func (r *relay) close() error {
	err := r.listener.Close()
	r.mu.Lock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.running.Wait()
	return err
}

// globalPolicy is one of the default tier, with all that the datastore's defaults would add.
func globalPolicy(name string, order float64, selector string, ingress, egress []api.Rule) *api.GlobalNetworkPolicy {
	p := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Tier, p.Spec.Order, p.Spec.Selector, p.Spec.Ingress, p.Spec.Egress = api.TierDefault, &order, selector, ingress, egress
	if len(ingress) > 0 {
		p.Spec.Types = append(p.Spec.Types, api.Ingress)
	}
	if len(egress) > 0 {
		p.Spec.Types = append(p.Spec.Types, api.Egress)
	}
	return p
}

// overTCP is a rule about TCP to a port, of all ports if it is 0.
func overTCP(action api.Action, from api.EntityRule, port uint16) api.Rule {
	tcp := api.ProtocolTCP
	r := api.Rule{Action: action, Protocol: &tcp, Source: from}
	if port != 0 {
		r.Destination.Ports = []api.Port{api.SinglePort(port)}
	}
	return r
}

// withEnv is a topology whose nodes have something more in their environment.
func (t Topology) withEnv(env map[string]string) Topology {
	t.Nodes = append([]Node(nil), t.Nodes...)
	for i := range t.Nodes {
		t.Nodes[i].Env = env
	}
	return t
}

// lineCount is how many lines of a text contain something.
func lineCount(text, what string) (n int) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}
