package oracle_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/api/view/packet"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/judge"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/generate"
	"github.com/muslin-net/muslin/integration/oracle/node"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/typha/verdict"
)

// TestJudgesSayWhatPolicyMeans has those who judge packets without a kernel agree with the oracle: felix's judge, by whose word
// connections are cut, and typha's verdict, which answers calicoctl policy eval. Of host endpoints the judge knows which of
// the node's connections none of them would let in: what it forbids, the oracle denies.
func TestJudgesSayWhatPolicyMeans(t *testing.T) {
	forbidden, ofHosts, done := 0, 0, 0
	for seed := uint64(20_000); done < thorough.Rounds(5_000, 60_000); seed++ {
		g := generate.New(seed)
		c, err := oracle.New(g.World())
		require.NoError(t, err)
		settings := g.Settings()
		firewall := node.Firewall(g.World(), settings, generate.Node)
		untracked := slices.ContainsFunc(slices.Collect(maps.Values(firewall.Hosts.Set)), func(h desired.Host) bool { return h.Untracked != (desired.Ways{}) })
		newJudge := func() *judge.Model {
			m := judge.New()
			m.Host = map[netip.Addr]struct{}{netip.MustParseAddr("192.168.9.1"): {}, netip.MustParseAddr("fd00:9::1"): {}}
			m.Update(firewall)
			return m
		}
		withHosts, hosted := newJudge(), settings
		firewall.Hosts = desired.Delta[string, desired.Host]{}
		felix := newJudge()
		typha := newControlPlane(node.Items(g.World(), generate.Node))
		settings.Node = "" // no node's host endpoints take part
		for range packetsOfAWorld {
			w, p := g.Packet()
			if p.Protocol == oracle.ICMPv6 && p.Type >= 130 && p.Type <= 136 {
				continue // passes whatever policy says, and is no connection
			}
			seen := packetOf(p)
			want, got := c.Passes(w, p, settings), felix.Judge(seen, false)
			require.Equal(t, want.Allowed, got.Outcome != judge.Forbidden,
				"felix's judge: seed %d, way %+v, packet %+v\noracle: %+v\njudge:  %+v", seed, w, p, want, got)
			// What is not tracked is no connection that could be cut.
			if v := withHosts.Judge(seen, false); !untracked && got.Outcome != judge.Forbidden && v.Outcome == judge.Forbidden {
				ofHosts++
				require.False(t, c.Passes(w, p, hosted).Allowed, "felix's judge of hosts: seed %d, way %+v, packet %+v\njudge: %+v", seed, w, p, v)
			}
			for _, end := range []struct {
				endpoint  api.Key
				address   netip.Addr
				direction oracle.Direction
			}{{w.From, p.Source, oracle.Egress}, {w.To, p.Destination, oracle.Ingress}} {
				if end.endpoint == (api.Key{}) {
					continue
				}
				want := c.Decide(end.endpoint, end.direction, p)
				got := verdict.Decide(typha, typha.endpoints[end.address], end.direction == oracle.Egress, seen)
				require.Equal(t, want.Allowed, got.Allowed,
					"typha's verdict: seed %d, %s of %s, packet %+v\noracle:  %+v\nverdict: %+v", seed, end.direction, end.endpoint, p, want, got)
			}
			if done++; got.Outcome == judge.Forbidden {
				forbidden++
			}
		}
	}
	t.Logf("%d packets judged, %d of them forbidden, and %d by host endpoints", done, forbidden, ofHosts)
	require.Positive(t, ofHosts)
	require.Greater(t, forbidden, done/10)
	require.Less(t, forbidden, done*9/10)
}

// TestVerdictsOfHostEndpoints has typha's verdict on a packet's whole way through a node agree with the oracle, in worlds where
// host endpoints of the node take part.
func TestVerdictsOfHostEndpoints(t *testing.T) {
	often := thorough.Rounds(0, 5) // what is rare takes worlds by the thousand to come up
	wanted := []string{
		"untracked egress=false a rule", "untracked egress=true a rule", "preDNAT egress=false a rule", "forward egress=false a rule", "forward egress=true a rule",
		"normal egress=false a rule", "normal egress=true a rule", "normal egress=false failsafe", "normal egress=true failsafe",
	}
	said := map[string]int{}
	done, enough := 0, thorough.Rounds(10_000, 60_000)
	rare := func() bool { return slices.ContainsFunc(wanted, func(what string) bool { return said[what] < often }) }
	for seed := uint64(40_000); done < enough || rare(); seed++ {
		require.Less(t, seed, uint64(80_000+enough), "something is never said: %v", said)
		g := generate.New(seed)
		if !slices.ContainsFunc(g.World().Objects, func(o api.Object) bool {
			e, is := o.(*api.HostEndpoint)
			return is && e.Spec.Node == generate.Node
		}) {
			continue
		}
		c, err := oracle.New(g.World())
		require.NoError(t, err)
		settings := g.Settings()
		typha := newControlPlane(node.Items(g.World(), generate.Node))
		here := typha.node(settings)
		packets := 2 * packetsOfAWorld
		switch {
		case typha.own != nil && typha.own.Untracked != "":
			packets = 20 * packetsOfAWorld // few packets are met by its rules
		case done >= enough:
			continue
		}
		for range packets {
			w, p := g.Packet()
			if p.Protocol == oracle.ICMPv6 && w.ToHost && w.From != (api.Key{}) && p.Type >= 130 && p.Type <= 136 {
				continue // a workload finds its neighbour, whatever policy says
			}
			steps := verdict.Cross(typha, here, typha.way(w, p), packetOf(p))
			passes := !slices.ContainsFunc(steps, func(s verdict.Step) bool { return !s.Allowed })
			want := c.Passes(w, p, settings)
			require.Equal(t, want.Allowed, passes, "seed %d, way %+v, packet %+v, settings %+v\noracle:  %+v\nverdict: %+v", seed, w, p, settings, want, steps)
			done++
			for _, s := range steps {
				if strings.HasPrefix(s.Endpoint, verdict.HostPrefix) {
					by, _, _ := strings.Cut(s.By, " port")
					if s.Rule != verdict.EndOfAll {
						by = "a rule"
					}
					said[fmt.Sprintf("%s egress=%t %s", s.Pass, s.Egress, by)]++
				}
			}
		}
	}
	t.Logf("%d packets judged; what decided: %v", done, said)
}

func packetOf(p oracle.Packet) packet.Packet {
	out := packet.Packet{
		Source: p.Source, Destination: p.Destination, Protocol: view.Protocol(p.Protocol), SourcePort: p.SourcePort, DestinationPort: p.DestinationPort,
	}
	if p.Protocol == oracle.ICMP || p.Protocol == oracle.ICMPv6 {
		out.ICMP = &view.ICMP{Type: p.Type, Code: &p.Code}
	}
	return out
}

// controlPlane is what typha knows of a node.
type controlPlane struct {
	lists     map[string]view.PolicyList
	policies  map[string]view.Policy
	sets      map[string]*packet.Members
	endpoints map[netip.Addr]view.WorkloadEndpoint
	own, any  *view.HostEndpoint
}

// node is what takes part on the node beside workloads.
func (c *controlPlane) node(s oracle.Settings) verdict.Node {
	n := verdict.Node{
		Own: c.own, Any: c.any, WorkloadsToHost: s.EndpointToHost != "Drop", VXLANPort: s.VXLANPort, AllowVXLAN: s.AllowVXLAN, AllowIPIP: s.AllowIPIP,
	}
	for d, ports := range map[oracle.Direction]*[]verdict.Failsafe{oracle.Ingress: &n.FailsafeIn, oracle.Egress: &n.FailsafeOut} {
		for _, f := range s.Failsafes(d) {
			*ports = append(*ports, verdict.Failsafe{Protocol: view.Protocol(f.Protocol), Port: f.Number, Peers: f.Peers})
		}
	}
	return n
}

// way is that of a packet through the node.
func (c *controlPlane) way(w oracle.Way, p oracle.Packet) verdict.Way {
	out := verdict.Way{FromHost: w.FromHost, ToHost: w.ToHost}
	if w.From != (api.Key{}) {
		out.From = new(c.endpoints[p.Source])
	}
	if w.To != (api.Key{}) {
		out.To = new(c.endpoints[p.Destination])
	}
	return out
}

func newControlPlane(items []view.Item) *controlPlane {
	c := &controlPlane{
		lists: map[string]view.PolicyList{}, policies: map[string]view.Policy{}, sets: map[string]*packet.Members{},
		endpoints: map[netip.Addr]view.WorkloadEndpoint{},
	}
	for _, i := range items {
		switch i := i.(type) {
		case view.PolicyList:
			c.lists[i.ID] = i
		case view.Policy:
			c.policies[i.ID] = i
		case view.IPSet:
			c.sets[i.ID] = packet.NewMembers(slices.Clone(i.Members))
		case view.HostEndpoint: // in the order of names
			switch {
			case i.Interface == "*" && c.any == nil:
				c.any = &i
			case i.Interface == oracle.Uplink && c.own == nil:
				c.own = &i
			}
		case view.WorkloadEndpoint:
			for _, a := range i.Addresses {
				c.endpoints[a] = i
			}
		}
	}
	return c
}

func (c *controlPlane) List(id string) (view.PolicyList, bool) { l, ok := c.lists[id]; return l, ok }

func (c *controlPlane) Policy(id string) (view.Policy, bool) { p, ok := c.policies[id]; return p, ok }

func (c *controlPlane) Contains(id string, a netip.Addr) bool {
	s := c.sets[id]
	return s != nil && s.Contains(a)
}

func (c *controlPlane) ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	s := c.sets[id]
	return s != nil && s.ContainsPort(a, protocol, port)
}
