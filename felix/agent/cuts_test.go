package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/conntrack"
	"github.com/muslin-net/muslin/felix/desired"
)

// connections is a table of connections in memory.
type connections struct {
	mu    sync.Mutex
	flows []conntrack.Flow
	fail  error
	reads int
	rule  func() bool // whether the rule that drops marked connections is there
	early bool        // a connection was marked without it
}

func (c *connections) Flows(_ context.Context, s conntrack.Select, pick func(*conntrack.Flow) bool) (out []conntrack.Flow, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	for _, f := range c.flows {
		if (!s.Source.IsValid() || s.Source == f.Original.Source) && (!s.Destination.IsValid() || s.Destination == f.Reply.Source) &&
			f.Mark&s.Marked == s.Marked && pick(&f) {
			out = append(out, f)
		}
	}
	return out, c.fail
}

func (c *connections) Mark(_ context.Context, flows []conntrack.Flow, mark, mask uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.early = c.early || !c.rule()
	for i := range c.flows {
		if slices.ContainsFunc(flows, func(f conntrack.Flow) bool { return f.Original == c.flows[i].Original }) {
			c.flows[i].Mark = c.flows[i].Mark&^mask | mark
		}
	}
	return nil
}

func (c *connections) Delete(_ context.Context, flows []conntrack.Flow) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flows = slices.DeleteFunc(c.flows, func(have conntrack.Flow) bool {
		return slices.ContainsFunc(flows, func(f conntrack.Flow) bool { return f.Original == have.Original })
	})
	return nil
}

func (c *connections) HostAddresses() ([]netip.Addr, error) { return nil, nil }

func (c *connections) ListeningPorts() (map[uint16]struct{}, error) { return nil, nil }

// open adds a connection; led, if not empty, is where it was led to.
func (c *connections) open(from, to string, port uint16, led string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := conntrack.Flow{Original: conntrack.Tuple{
		Source: netip.MustParseAddr(from), Destination: netip.MustParseAddr(to), Protocol: 6, SourcePort: uint16(40000 + len(c.flows)), DestinationPort: port,
	}}
	f.Reply = conntrack.Tuple{Source: f.Original.Destination, Destination: f.Original.Source, Protocol: 6, SourcePort: port, DestinationPort: f.Original.SourcePort}
	if led != "" {
		f.Reply.Source = netip.MustParseAddr(led)
	}
	c.flows = append(c.flows, f)
}

// states tells of each connection, in the order of their opening, whether it is cut.
func (c *connections) states() (out []bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.flows {
		out = append(out, f.Mark&desired.ConnMarkCut != 0)
	}
	return out
}

// readings is how often the table was read.
func (c *connections) readings() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reads
}

// markedEarly tells whether a connection was marked before the rule was there.
func (c *connections) markedEarly() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.early
}

// node is cuts as the drivers use them: what is told is committed at once.
type node struct {
	*cuts
	*connections        // its lock guards the following
	rules        []bool // whether the rule is there, each time it changed
	broken       error  // of the rules
}

func startCuts(t *testing.T, c *connections) *node {
	n := &node{connections: c}
	c.rule = func() bool { return len(n.rules) > 0 && n.rules[len(n.rules)-1] }
	var err error
	n.cuts, err = newCuts(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	due := make(chan struct{}, 1)
	n.wakes(func() { due <- struct{}{} })
	ctx, stop := context.WithCancel(t.Context())
	var both sync.WaitGroup
	both.Go(func() { assert.NoError(t, n.run(ctx)) })
	both.Go(func() {
		for {
			select {
			case <-due:
				n.commit(desired.FirewallDelta{})
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { stop(); both.Wait() })
	return n
}

func (n *node) commit(d desired.FirewallDelta) {
	n.note(d)
	rule := n.wants()
	if n.take(rule) {
		n.applied(rule)
	}
}

// take brings the rule in, or out; it fails while the rules are broken.
func (n *node) take(rule bool) bool {
	n.connections.mu.Lock()
	defer n.connections.mu.Unlock()
	if n.broken == nil && (len(n.rules) == 0 || n.rules[len(n.rules)-1] != rule) {
		n.rules = append(n.rules, rule)
	}
	return n.broken == nil
}

// breaks has the rules fail from now on, or work again.
func (n *node) breaks(err error) {
	n.connections.mu.Lock()
	defer n.connections.mu.Unlock()
	n.broken = err
}

func (n *node) ruleAt() []bool {
	n.connections.mu.Lock()
	defer n.connections.mu.Unlock()
	return slices.Clone(n.rules)
}

// letsIn is a policy for 10.0.0.2 that lets in what comes to the ports.
func letsIn(ports ...uint16) (d desired.FirewallDelta) {
	p := view.Policy{ID: "np/s/b", Ingress: []view.Rule{}, Egress: []view.Rule{{Action: view.Allow}}}
	for _, port := range ports {
		p.Ingress = append(p.Ingress, view.Rule{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: []view.PortRange{{First: port, Last: port}}}})
	}
	for _, c := range desired.PolicyChains(p, "") {
		d.Chains.Put(c.Name, c)
	}
	return d
}

func world(ports ...uint16) desired.FirewallDelta {
	d := letsIn(ports...)
	d.Settings = &desired.Settings{}
	l := view.PolicyList{ID: "b", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/s/b"}, Egress: []string{"np/s/b"}}}}
	for _, c := range desired.ListChains(l) {
		d.Chains.Put(c.Name, c)
	}
	d.Workloads.Put("calib", desired.Workload{
		Endpoint: "k8s/s/b/eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")},
		Ingress: desired.ListChain("b", desired.Ingress), Egress: desired.ListChain("b", desired.Egress),
	})
	return d
}

func TestForbiddenConnectionsAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &connections{}
		c.open("10.0.0.9", "10.0.0.2", 80, "")
		c.open("10.0.0.9", "10.0.0.2", 81, "")
		c.open("10.0.0.9", "10.96.0.1", 81, "10.0.0.2") // through a service
		c.open("10.0.0.9", "10.0.0.3", 81, "")          // another's
		n := startCuts(t, c)
		n.commit(world(80, 81))
		time.Sleep(10 * time.Second)
		assert.Equal(t, []bool{false, false, false, false}, c.states())
		assert.Equal(t, []bool{false}, n.ruleAt(), "no rule while nothing is cut")

		reads := c.readings()
		n.commit(letsIn(80, 81, 82))
		time.Sleep(10 * time.Second)
		assert.Equal(t, reads, c.readings(), "what only opens costs nothing")

		n.commit(letsIn(80))
		time.Sleep(900 * time.Millisecond)
		assert.Equal(t, []bool{false, true, true, false}, c.states())
		assert.Equal(t, []bool{false, true}, n.ruleAt())
		assert.False(t, c.markedEarly(), "the rule comes before the first mark")

		c.open("10.0.0.9", "10.0.0.2", 81, "") // confirmed by a packet that the former rules were just letting pass
		time.Sleep(3 * time.Second)
		assert.Equal(t, []bool{false, true, true, false, true}, c.states(), "a second look finds it")

		n.commit(letsIn(80, 81))
		time.Sleep(time.Second)
		assert.Equal(t, []bool{false, false}, c.states(), "what is allowed again begins anew")
		time.Sleep(time.Minute)
		assert.Equal(t, []bool{false, true, false}, n.ruleAt(), "without marked connections the rule goes")
	})
}

func TestMarksOutliveFelix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &connections{}
		c.open("10.0.0.9", "10.0.0.2", 81, "")
		c.open("10.0.0.9", "10.0.0.2", 82, "")
		c.flows[0].Mark = desired.ConnMarkCut
		n := startCuts(t, c)
		n.commit(world(80))
		time.Sleep(5 * time.Second)
		assert.Equal(t, []bool{true}, n.ruleAt(), "the rule of an earlier felix stays")
		assert.Equal(t, []bool{true, true}, c.states(), "what was forbidden while felix was away is cut too")
		require.NoError(t, c.Delete(t.Context(), c.flows))
		time.Sleep(time.Minute)
		assert.Equal(t, []bool{true, false}, n.ruleAt())
	})
}

func TestNothingIsJudgedByRulesThatAreNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &connections{}
		c.open("10.0.0.9", "10.0.0.2", 81, "")
		n := startCuts(t, c)
		n.commit(world(80, 81))
		time.Sleep(time.Second)
		n.breaks(errors.New("no kernel"))
		n.commit(letsIn(80))
		time.Sleep(10 * time.Second)
		assert.Equal(t, []bool{false}, c.states())
		n.breaks(nil)
		n.commit(desired.FirewallDelta{})
		time.Sleep(time.Second)
		assert.Equal(t, []bool{true}, c.states())
	})
}

func TestAddressesThatLeaveTakeTheirConnectionsAlong(t *testing.T) {
	c := &connections{rule: func() bool { return false }}
	cuts, err := newCuts(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	cuts.note(world(80))
	cuts.applied(false)
	c.open("10.0.0.2", "10.0.0.9", 80, "")
	c.open("10.0.0.9", "10.96.0.1", 81, "10.0.0.2")
	c.open("10.0.0.9", "10.0.0.3", 81, "")
	require.NoError(t, cuts.forget(t.Context(), false))
	require.Len(t, c.flows, 3)
	var d desired.FirewallDelta
	d.Workloads.Put("calib", desired.Workload{Endpoint: "k8s/s/b/eth0"})
	cuts.note(d)
	require.NoError(t, cuts.forget(t.Context(), false))
	require.Len(t, c.flows, 3, "the rules may still let them in")
	cuts.applied(false)
	reads := c.readings()
	require.NoError(t, cuts.forget(t.Context(), true))
	require.Equal(t, reads, c.readings(), "nobody has the address")
	c.fail = errors.New("no kernel")
	require.ErrorContains(t, cuts.forget(t.Context(), false), "no kernel")
	c.fail = nil
	require.NoError(t, cuts.forget(t.Context(), false))
	require.Len(t, c.flows, 1)
	reads = c.readings()
	require.NoError(t, cuts.forget(t.Context(), false))
	require.Equal(t, reads, c.readings(), "once")
}

// Whoever gets an address does not wait for the next look at all connections.
func TestAnAddressThatIsTakenAgainHasNoConnections(t *testing.T) {
	c := &connections{rule: func() bool { return false }}
	cuts, err := newCuts(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	cuts.note(world(80))
	cuts.applied(false)
	c.open("10.0.0.9", "10.0.0.2", 80, "")
	var left, taken desired.FirewallDelta
	left.Workloads.Remove("calib")
	cuts.note(left)
	cuts.applied(false)
	require.NoError(t, cuts.forget(t.Context(), true))
	require.Len(t, c.flows, 1)
	taken.Workloads.Put("calic", desired.Workload{Endpoint: "k8s/s/c/eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	cuts.note(taken)
	cuts.applied(false)
	require.NoError(t, cuts.forget(t.Context(), true))
	require.Empty(t, c.flows)
}

// The loop looks by itself, a while after an address has left.
func TestConnectionsOfThoseWhoLeftGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &connections{}
		c.open("10.0.0.9", "10.0.0.2", 80, "")
		n := startCuts(t, c)
		n.commit(world(80))
		time.Sleep(10 * time.Second)
		assert.Equal(t, []bool{false}, c.states())
		var left desired.FirewallDelta
		left.Workloads.Remove("calib")
		addrs := []netip.Addr{netip.MustParseAddr("10.0.0.2")}
		require.NoError(t, n.forgotten(t.Context(), addrs), "nobody has left")
		n.commit(left)
		require.NoError(t, n.forgotten(t.Context(), addrs))
		assert.Empty(t, c.states())

		n.commit(world(80))
		n.note(left) // and is not committed
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, n.forgotten(impatient, addrs), context.DeadlineExceeded)
	})
}
