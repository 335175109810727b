package oracle_test

import (
	"encoding/binary"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/dataplane/rules/nftables"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/generate"
	"github.com/muslin-net/muslin/integration/oracle/nftvm"
	"github.com/muslin-net/muslin/integration/oracle/node"
	"github.com/muslin-net/muslin/internal/thorough"
)

// enforcer is the firewall of a node, as a driver has it.
type enforcer interface {
	// passes says whether a packet passes, and by which rule.
	passes(w oracle.Way, p oracle.Packet) (oracle.Verdict, error)
}

// drivers make enforcers.
var drivers = map[string]func(desired.FirewallDelta, oracle.World) (enforcer, error){
	"nftables": newTables,
	"iptables": newChains,
}

const packetsOfAWorld = 250

// TestRulesMeanWhatPolicyMeans makes up worlds and packets and has the rules of each driver, carried out in memory, agree with
// the oracle on every one. ORACLE_VERDICTS asks for more of them, ORACLE_SEED for the worlds from that seed on.
func TestRulesMeanWhatPolicyMeans(t *testing.T) {
	verdicts, seed := thorough.Rounds(2_500, 60_000), uint64(1)
	if n, err := strconv.Atoi(os.Getenv("ORACLE_VERDICTS")); err == nil {
		verdicts = n
	}
	if n, err := strconv.ParseUint(os.Getenv("ORACLE_SEED"), 10, 64); err == nil {
		seed = n
	}
	for name, driver := range drivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			allowed := compare(t, seed, verdicts, driver, false)
			require.Greater(t, allowed, verdicts/10, "most packets are dropped: the worlds tell little")
			require.Less(t, allowed, verdicts*9/10, "most packets pass: the worlds tell little")
		})
		t.Run(name+", no IPv6", func(t *testing.T) {
			t.Parallel()
			allowed := compare(t, seed, verdicts/4, driver, true)
			require.Greater(t, allowed, verdicts/4/20, "most packets are dropped: the worlds tell little")
		})
	}
}

// compare has a driver's rules agree with the oracle about so many packets, and counts those that pass.
func compare(t *testing.T, seed uint64, verdicts int, driver func(desired.FirewallDelta, oracle.World) (enforcer, error), onlyIPv4 bool) (allowed int) {
	done := 0
	for s := seed; done < verdicts; s++ {
		g := generate.New(s)
		if onlyIPv4 {
			g.OnlyIPv4()
		}
		firewall := node.Firewall(g.World(), g.Settings(), generate.Node)
		require.Equal(t, onlyIPv4, firewall.Settings.NoIPv6, "seed %d", s)
		fw, err := driver(firewall, g.World())
		require.NoError(t, err, "seed %d", s)
		c, err := oracle.New(g.World())
		require.NoError(t, err, "seed %d", s)
		for range packetsOfAWorld {
			w, p := g.Packet()
			want := c.Passes(w, p, g.Settings())
			got, err := fw.passes(w, p)
			require.NoError(t, err, "seed %d", s)
			if want.Allowed != got.Allowed {
				explain(t, s, g, driver, w, p)
			}
			if done++; want.Allowed {
				allowed++
			}
		}
	}
	t.Logf("%d verdicts compared (seeds from %d), %d of them allow", done, seed, allowed)
	return allowed
}

// explain makes a world in which the two differ as small as it gets, and fails with it.
func explain(t *testing.T, seed uint64, g *generate.Generator, driver func(desired.FirewallDelta, oracle.World) (enforcer, error), way oracle.Way, p oracle.Packet) {
	t.Helper()
	ask := func(w oracle.World) (want, got oracle.Verdict, err error) {
		c, err := oracle.New(w)
		if err != nil {
			return want, got, err
		}
		fw, err := driver(node.Firewall(w, g.Settings(), generate.Node), w)
		if err != nil {
			return want, got, err
		}
		got, err = fw.passes(way, p)
		return c.Passes(way, p, g.Settings()), got, err
	}
	small := generate.Shrink(g.World(), func(w oracle.World) bool {
		for _, end := range []api.Key{way.From, way.To} {
			if end != (api.Key{}) && !slices.ContainsFunc(w.Objects, func(o api.Object) bool { return api.KeyOf(o) == end }) {
				return false // not without what the packet goes through
			}
		}
		want, got, err := ask(w)
		return err == nil && want.Allowed != got.Allowed
	})
	want, got, _ := ask(small)
	require.Fail(t, "the rules do not mean what policy means",
		"seed %d, way %+v, packet %+v, settings %+v\noracle: %+v\nrules:  %+v\n%s", seed, way, p, g.Settings(), want, got, small.YAML())
}

// tables are the nftables of a node.
type tables struct {
	vm         [2]*nftvm.VM // by family
	interfaces map[api.Key]string
}

func newTables(d desired.FirewallDelta, w oracle.World) (enforcer, error) {
	t := &tables{interfaces: interfaces(w)}
	four, six := nftables.Compile(d)
	for i, r := range []nftables.Ruleset{four, six} {
		vm, err := nftvm.New(r)
		if err != nil {
			return nil, err
		}
		t.vm[i] = vm
	}
	return t, nil
}

// elsewhere is the interface towards what is no workload of the node.
const elsewhere = "eth0"

// interfaces are the names of workloads' interfaces.
func interfaces(w oracle.World) map[api.Key]string {
	out := map[api.Key]string{}
	for _, o := range w.Objects {
		if e, ok := o.(*api.WorkloadEndpoint); ok {
			out[api.KeyOf(o)] = e.Spec.InterfaceName
		}
	}
	return out
}

const stateNew = 8 // NF_CT_STATE_BIT(IP_CT_NEW)

func (t *tables) passes(w oracle.Way, p oracle.Packet) (oracle.Verdict, error) {
	vm := t.vm[0]
	if p.V6() {
		vm = t.vm[1]
	}
	in, out := elsewhere, elsewhere
	if w.From != (api.Key{}) {
		in = t.interfaces[w.From]
	}
	if w.To != (api.Key{}) {
		out = t.interfaces[w.To]
	}
	pkt := &nftvm.Packet{In: in, Protocol: p.Protocol, State: stateNew, Network: networkHeader(p), Transport: transportHeader(p)}
	pkt.Fib = func(result, flags uint32) uint32 {
		switch {
		case result == unix.NFT_FIB_RESULT_OIF: // every packet comes from where its source is
			return 1
		case w.ToHost && flags&unix.NFTA_FIB_F_DADDR != 0:
			return unix.RTN_LOCAL
		}
		return unix.RTN_UNICAST
	}
	hooks := []int{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_POST_ROUTING}
	switch {
	case w.ToHost:
		hooks = []int{unix.NF_INET_PRE_ROUTING, unix.NF_INET_LOCAL_IN}
	case w.FromHost:
		hooks, pkt.In, pkt.Out = []int{unix.NF_INET_LOCAL_OUT, unix.NF_INET_POST_ROUTING}, "", out
	}
	var by string
	for _, h := range hooks {
		if h != unix.NF_INET_PRE_ROUTING && !w.ToHost {
			pkt.Out = out
		}
		if h == unix.NF_INET_POST_ROUTING {
			pkt.In = ""
		}
		v, err := vm.Hook(h, pkt)
		if err != nil || !v.Accepted {
			return oracle.Verdict{By: v.By}, err
		}
		if h != unix.NF_INET_POST_ROUTING {
			by = v.By
		}
	}
	return oracle.Verdict{Allowed: true, By: by}, nil
}

// networkHeader is the IP header as far as rules look.
func networkHeader(p oracle.Packet) []byte {
	if p.V6() {
		b := make([]byte, 8, 40)
		b[0], b[6], b[7] = 0x60, p.Protocol, 64
		return append(append(b, p.Source.AsSlice()...), p.Destination.AsSlice()...)
	}
	b := make([]byte, 12, 20)
	b[0], b[8], b[9] = 0x45, 64, p.Protocol
	return append(append(b, p.Source.AsSlice()...), p.Destination.AsSlice()...)
}

func transportHeader(p oracle.Packet) []byte {
	b := make([]byte, 20)
	switch p.Protocol {
	case oracle.ICMP, oracle.ICMPv6:
		b[0], b[1] = p.Type, p.Code
	default:
		binary.BigEndian.PutUint16(b, p.SourcePort)
		binary.BigEndian.PutUint16(b[2:], p.DestinationPort)
	}
	return b
}
