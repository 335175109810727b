package iptables

import (
	"flag"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

var update = flag.Bool("update", false, "rewrite testdata")

func prefixes(cidrs ...string) (out []netip.Prefix) {
	for _, c := range cidrs {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

func ports(p ...uint16) (out []view.PortRange) {
	for i := 0; i < len(p); i += 2 {
		out = append(out, view.PortRange{First: p[i], Last: p[i+1]})
	}
	return out
}

func members(cidrs ...string) (out []view.Member) {
	for _, p := range prefixes(cidrs...) {
		out = append(out, view.Member{Prefix: p})
	}
	return out
}

// shop is a firewall with something of everything.
func shop() (d desired.FirewallDelta) {
	web := view.Policy{ID: "np/shop/web", Ingress: []view.Rule{
		{Action: view.Allow, Protocol: 6, Source: view.Match{Sets: []string{"s:a"}}, Destination: view.Match{Ports: ports(80, 80, 443, 443)}},
		{Action: view.Allow, Source: view.Match{Nets: prefixes("10.0.0.0/8", "192.168.0.0/16")}, Destination: view.Match{NamedPorts: []string{"n:http"}}},
		{Action: view.Deny, Protocol: 1, ICMP: &view.ICMP{Type: 8}},
		{Action: view.Pass, NotProtocol: 17, Source: view.Match{NotNets: prefixes("10.1.0.0/16")}},
		{Action: view.Log},
		{Action: view.Allow, Source: view.Match{Sets: []string{"s:unknown"}}},
	}}
	all := view.Policy{ID: "pro/all", Ingress: []view.Rule{{Action: view.Allow}}, Egress: []view.Rule{{Action: view.Allow}}}
	host := view.Policy{ID: "gnp/host", Ingress: []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: ports(80, 80)}}}}
	tier := []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"np/shop/web"}}}
	hostTier := view.PolicyList{ID: "host", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"gnp/host"}}}}
	var chains []desired.Chain
	for _, p := range []view.Policy{web, all, host} {
		pair := desired.PolicyChains(p, "")
		chains = append(chains, pair[:]...)
	}
	for _, l := range []view.PolicyList{{ID: "shop", Tiers: tier, Profiles: []string{"pro/all"}}, {ID: "open", Profiles: []string{"pro/all"}}} {
		pair := desired.ListChains(l)
		chains = append(chains, pair[:]...)
	}
	pass := desired.PassChains(hostTier, desired.Normal)
	chains = append(chains, pass[desired.Ingress])
	chains = append(chains, desired.FailsafeChains([]desired.Failsafe{{Protocol: 6, Port: 22}}, nil)...)
	for _, c := range chains {
		d.Chains.Put(c.Name, c)
	}
	open := func(list string) desired.Workload {
		return desired.Workload{Endpoint: "k8s/shop/" + list, Ingress: desired.ListChain(list, desired.Ingress), Egress: desired.ListChain(list, desired.Egress)}
	}
	spoofer := open("open")
	spoofer.AllowedSources = prefixes("10.99.0.0/24", "fd99::/64")
	for name, w := range map[string]desired.Workload{"cali1": open("open"), "cali2": open("shop"), "cali3": spoofer, "cali4": {Endpoint: "k8s/shop/new"}} {
		d.Workloads.Put(name, w)
	}
	d.Hosts.Put("eth0", desired.Host{Endpoint: "node-eth0", Normal: desired.Ways{Ingress: pass[desired.Ingress].Name}})
	d.Sets.Put("s:a", desired.Set{Type: view.SetNet, Members: members("10.0.1.1/32", "10.0.4.0/24", "10.0.4.7/32", "0.0.0.0/0", "fd00:1::/64")})
	d.Sets.Put("n:http", desired.Set{Type: view.SetIPPort, Members: []view.Member{{Prefix: netip.MustParsePrefix("10.0.1.2/32"), Protocol: 6, Port: 8080}}})
	d.Settings = &desired.Settings{
		WorkloadPrefixes: []string{"cali"}, NATOutgoing: &desired.NATOutgoing{RandomizePorts: true}, CutFlows: true, RejectDenied: true,
		LogLimit: desired.Limit{Rate: 10, Per: time.Minute, Burst: 5},
		VXLAN4:   &desired.VXLANAdmission{Port: 4789, Device: "vxlan.calico"}, VXLAN6: &desired.VXLANAdmission{Port: 4789, Device: "vxlan-v6.calico"},
		IPIP: &desired.IPIPAdmission{Device: "tunl0"},
	}
	return d
}

// crowd is a firewall of many workloads, for the dispatch trees.
func crowd(n int) (d desired.FirewallDelta) {
	for i := range n {
		name := "cali" + string("0123456789abcdef"[i%16]) + string("0123456789abcdef"[i/16%16])
		d.Workloads.Put(name, desired.Workload{Endpoint: "k8s/crowd/" + name, Ingress: "cali-tw-open", Egress: "cali-fw-open"})
	}
	d.Workloads.Put("cali0", desired.Workload{Endpoint: "k8s/crowd/short", Ingress: "cali-tw-open", Egress: "cali-fw-open"})
	for _, c := range desired.ListChains(view.PolicyList{ID: "open"}) {
		d.Chains.Put(c.Name, c)
	}
	return d
}

// services is a firewall beside kube-proxy in its mode IPVS.
func services() desired.FirewallDelta {
	d := crowd(3)
	d.Settings = &desired.Settings{WorkloadPrefixes: []string{"cali"}, IPVS: true}
	d.Sets.Put(desired.SetServices, desired.Set{Type: view.SetNet, Members: members("10.96.0.1/32", "fd96::1/128")})
	i := byte(14) // in two blocks
	for _, name := range slices.Sorted(maps.Keys(d.Workloads.Set)) {
		w := d.Workloads.Set[name]
		w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, i}), netip.AddrFrom16([16]byte{0xfd, 15: i})}
		d.Workloads.Put(name, w)
		i++
	}
	return d
}

// watched is a firewall with a host endpoint that has nothing but staged policies where it need not judge.
func watched() (d desired.FirewallDelta) {
	h := desired.Host{Endpoint: "node-eth0"}
	deny := []view.Rule{{Action: view.Deny, Protocol: 6, Destination: view.Match{Ports: ports(80, 80)}}}
	for pass := range desired.Normal {
		p := view.Policy{ID: "sgnp/" + pass.String(), DoNotTrack: pass == desired.Untracked, PreDNAT: pass == desired.PreDNAT, Ingress: deny, Egress: deny}
		list := view.PolicyList{ID: pass.String(), Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{p.ID}, Egress: []string{p.ID}}}}
		chains := desired.PassChains(list, pass)
		h.Counted[pass] = desired.Ways{Ingress: chains[desired.Ingress].Name, Egress: chains[desired.Egress].Name}
		pair := desired.PolicyChains(p, "")
		for _, c := range append(pair[:], chains[:]...) {
			d.Chains.Put(c.Name, c)
		}
	}
	h.Counted[desired.PreDNAT].Egress = ""
	d.Hosts.Put("eth0", h)
	return d
}

// TestInput compares what iptables-restore is told with texts for people to read.
func TestInput(t *testing.T) {
	for name, d := range map[string]desired.FirewallDelta{"shop": shop(), "crowd": crowd(20), "services": services(), "watched": watched(), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			ip4, ip6 := Compile(d)
			got := "# IPv4\n" + ip4.text() + "# IPv6\n" + ip6.text()
			golden := filepath.Join("testdata", name+".txt")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), got, "go test -run TestInput -update rewrites it")
			again4, again6 := Compile(d)
			assert.Equal(t, got, "# IPv4\n"+again4.text()+"# IPv6\n"+again6.text(), "a function of its input")
		})
	}
}

func (r Ruleset) text() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.Sets)) {
		b.WriteString("set " + name)
		for _, m := range r.Sets[name] {
			b.WriteString(" " + m.Prefix.String())
		}
		b.WriteString("\n")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Tables)) {
		b.WriteString(r.Tables[name])
	}
	return b.String()
}

func newCompiler(v6 bool) *compiler {
	types := map[string]view.SetType{"s:a": view.SetNet, "s:b": view.SetNet, "n:http": view.SetIPPort, "n:dns": view.SetIPPort}
	return &compiler{
		v6: v6, layer: desired.Filter,
		setType:  func(id string) (view.SetType, bool) { t, ok := types[id]; return t, ok },
		hasChain: func(name string, _ desired.Layers) bool { return name == "cali-pi-np/s/known" },
		owned:    map[string][]view.Member{},
	}
}

func TestInHowManyWaysAPacketMatches(t *testing.T) {
	echo := view.ICMP{Type: 8}
	var many []view.PortRange
	for p := uint16(1); p < 41; p += 2 {
		many = append(many, view.PortRange{First: p, Last: p})
	}
	for _, c := range []struct {
		name      string
		match     desired.Match
		four, six int // rules
		sets      int // sets of the rule's own, IPv4
	}{
		{"everything", desired.Match{}, 1, 1, 0},
		{"IPv4", desired.Match{IPVersion: 4}, 1, 0, 0},
		{"ICMP is IPv4", desired.Match{Protocol: protoICMP, ICMP: &echo}, 1, 0, 0},
		{"ICMPv6 is IPv6", desired.Match{Protocol: protoICMPv6, NotICMP: &echo}, 0, 1, 0},
		{"a type of a protocol without types", desired.Match{Protocol: protoTCP, ICMP: &echo}, 0, 0, 0},
		{"a protocol and not it", desired.Match{Protocol: protoTCP, NotProtocol: protoTCP}, 0, 0, 0},
		{"one prefix", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8")}}, 1, 0, 0},
		{"many prefixes", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8", "11.0.0.0/8")}}, 1, 0, 1},
		{"a prefix without a part", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8"), NotNets: prefixes("10.1.0.0/16")}}, 1, 0, 1},
		{"all of IPv4", desired.Match{Source: view.Match{Nets: prefixes("0.0.0.0/0", "10.0.0.0/8")}}, 1, 0, 0},
		{"nothing at all", desired.Match{Source: view.Match{NotNets: prefixes("0.0.0.0/0")}}, 0, 0, 0},
		{"20 ports", desired.Match{Protocol: protoTCP, Destination: view.Match{Ports: many}}, 2, 2, 0},
		{"not 20 ports", desired.Match{Protocol: protoTCP, Destination: view.Match{NotPorts: many}}, 1, 1, 0},
		{"a port of any protocol", desired.Match{Destination: view.Match{Ports: ports(80, 80)}}, 5, 5, 0},
		{"a port of any protocol but UDP", desired.Match{NotProtocol: protoUDP, Destination: view.Match{Ports: ports(80, 80)}}, 4, 4, 0},
		{"numbers or names on both sides", desired.Match{
			Protocol: protoTCP, Source: view.Match{Ports: ports(1, 1), NamedPorts: []string{"n:dns"}},
			Destination: view.Match{Ports: ports(80, 80), NamedPorts: []string{"n:http"}},
		}, 4, 4, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			four, six := newCompiler(false), newCompiler(true)
			assert.Len(t, four.match(c.match), c.four, "IPv4")
			assert.Len(t, six.match(c.match), c.six, "IPv6")
			assert.Len(t, four.owned, c.sets, "own sets")
		})
	}
}

func TestWhatCannotBeWrittenDrops(t *testing.T) {
	any255 := &view.ICMP{Type: 255}
	for _, r := range []desired.Rule{
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Sets: []string{"s:unknown"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{NotSets: []string{"s:unknown"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Sets: []string{"n:http"}}}}, // of another type
		{Do: desired.Deny, Match: &desired.Match{Destination: view.Match{NotNamedPorts: []string{"s:a"}}}},
		{Do: desired.Jump, Target: "cali-pi-np/s/unknown"},
		{Do: desired.Allow, Match: &desired.Match{Protocol: 47, Destination: view.Match{Ports: ports(80, 80)}}},
		{Do: desired.Allow, Match: &desired.Match{Protocol: protoICMP, ICMP: any255}},
	} {
		rules := newCompiler(false).chain(desired.Chain{Rules: []desired.Rule{r}})
		require.Len(t, rules, 1)
		assert.Equal(t, drop, rules[0].target)
		assert.Empty(t, rules[0].match)
	}
}

func TestWhatDecidesNothingIsLeftOutWhereItCannotBeWritten(t *testing.T) {
	for _, r := range []desired.Rule{
		{Do: desired.Count, Match: &desired.Match{Source: view.Match{Sets: []string{"s:unknown"}}}},
		{Do: desired.Count, Match: &desired.Match{Protocol: 47, Destination: view.Match{Ports: ports(80, 80)}}},
		{Do: desired.Jump, Target: "cali-pi-snp/s/unknown"},
	} {
		require.Empty(t, newCompiler(false).chain(desired.Chain{Rules: []desired.Rule{r}}), "%+v", r)
	}
	table := newTable(tableFilter)
	for idle, lines := range map[bool]int{true: 0, false: 1} {
		require.Len(t, table.chainUnit("cali-pi-x", chain{idle: idle}).instead.lines, lines, "refused by the kernel")
	}
}

func TestMultiports(t *testing.T) {
	assert.Equal(t, []string{"80"}, multiports(ports(80, 80)))
	assert.Equal(t, []string{"1:20,22:65535"}, multiports(ports(22, 30, 1, 10, 5, 15, 16, 20, 31, 65535, 40, 50)))
	var all []uint16
	for p := uint16(10); p < 10+16*10; p += 10 { // each range is two
		all = append(all, p, p+1)
	}
	lists := multiports(ports(all...))
	require.Len(t, lists, 3)
	assert.Equal(t, 7, strings.Count(lists[0], ":"))
}

func TestNamesFitTheKernel(t *testing.T) {
	long := "cali-pi-np/" + strings.Repeat("n", 63) + "/" + strings.Repeat("p", 253)
	assert.Len(t, kernelChain(long), 28)
	assert.True(t, strings.HasPrefix(kernelChain(long), "cali-pi-_"), kernelChain(long))
	assert.NotEqual(t, kernelChain(long), kernelChain(long+"x"))
	assert.Equal(t, "cali-pi-np/shop/web", kernelChain("cali-pi-np/shop/web"))
	assert.Equal(t, "cali-pi-12345678901234567890", kernelChain("cali-pi-12345678901234567890"), "just fits")
	assert.True(t, strings.HasPrefix(kernelChain("cali-pi-_2345678901234567890"), "cali-pi-_"))
	assert.NotContains(t, kernelChain("cali-pi-with a blank"), " ")
	assert.Equal(t, "cali40s:abc", model.SetName(false, "s:abc"))
	assert.Equal(t, "cali60network-ip-pools", model.SetName(true, desired.SetPools))
	assert.Len(t, model.SetName(false, "s:"+strings.Repeat("x", 40)), 31)
	assert.LessOrEqual(t, len(model.SetName(false, contentSet([]string{"10.0.0.0/8"}))), 31)
}

// TestAHashTellsRulesApart: the hash of a rule is over all that is before it in its chain.
func TestAHashTellsRulesApart(t *testing.T) {
	a, b := rule{"-s 10.0.0.1 ", drop, "a"}, rule{"-s 10.0.0.2 ", drop, "b"}
	ab, ba := newChain("cali-x", []rule{a, b}), newChain("cali-x", []rule{b, a})
	assert.NotEqual(t, ab.hashes[1], ba.hashes[0])
	assert.NotEqual(t, ab.hashes[0], newChain("cali-y", []rule{a}).hashes[0])
	assert.NotEqual(t, ab.hashes[0], newChain("cali-x", []rule{{a.match, a.target, "c"}}).hashes[0])
	assert.Equal(t, ab.hashes[:1], newChain("cali-x", []rule{a}).hashes)
	assert.True(t, ab.equal(chain{hashes: ab.hashes}))
}

// TestSavedIsWhatWasWritten reads back what was written, as iptables-save prints it.
func TestSavedIsWhatWasWritten(t *testing.T) {
	c := newChain("cali-pi-x", []rule{{"-s 10.0.0.1 ", drop, `quoted " and \ and more`}, {"", "-g cali-allow", ""}})
	top := newChain("FORWARD", []rule{{"", "-j cali-FORWARD", "felix"}})
	text := "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER - [0:0]\n:cali-pi-x - [0:0]\n" +
		"-A FORWARD " + top.spec(0) + "\n-A FORWARD -j DOCKER\n-A FORWARD -j cali-old\n" +
		"-A FORWARD -m comment --comment \"see \\\"cali:0123456789abcdef\\\" and -j cali-old\" -j ACCEPT\n-A DOCKER -j ACCEPT\n" +
		"-A cali-pi-x " + c.spec(0) + "\n-A cali-pi-x " + c.spec(1) + "\n-A cali-pi-x -j ACCEPT\nCOMMIT\n"
	got, err := parseSave(strings.NewReader("# Generated\n" + text))
	require.NoError(t, err)
	filter := got["filter"]
	assert.Equal(t, append(slices.Clone(c.hashes), ""), filter.chains["cali-pi-x"].hashes)
	assert.Len(t, filter.chains, 1)
	require.Len(t, filter.hooks["FORWARD"], 4)
	assert.Equal(t, top.hashes[0], filter.hooks["FORWARD"][0].hash)
	assert.False(t, filter.hooks["FORWARD"][1].ours)
	assert.True(t, filter.hooks["FORWARD"][2].ours, "a jump to a chain of ours, by whatever felix")
	assert.False(t, filter.hooks["FORWARD"][3].ours, "a comment about us")
}

// FuzzParseSave: whatever iptables-save says, only chains and rules of ours are removed.
func FuzzParseSave(f *testing.F) {
	f.Add("*filter\n:FORWARD ACCEPT [0:0]\n:cali-x - [0:0]\n-A FORWARD -j cali-x\n-A cali-x -m comment --comment \"cali:abcdefghijklmnop x\" -j DROP\nCOMMIT\n")
	f.Add("-A\n:\n*\nCOMMIT")
	f.Fuzz(func(t *testing.T, text string) {
		tables, err := parseSave(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, s := range tables {
			k := newTable("filter")
			k.take(s, nil, false)
			ours := map[string]bool{}
			for name := range s.chains {
				ours[declared(name)], ours["-X "+name] = true, true
			}
			for name, rules := range s.hooks {
				for _, r := range rules {
					ours["-D "+name+" "+r.args] = r.ours
				}
			}
			for _, u := range k.plan(true, false) {
				for _, line := range u.lines {
					require.True(t, ours[line], "%q: %q", text, line)
				}
			}
		}
	})
}

// TestWhoIsBlamed finds the units of the lines that programs complain of.
func TestWhoIsBlamed(t *testing.T) {
	k := newTable(tableFilter)
	a := k.writeChain("cali-a", newChain("cali-a", []rule{{"", drop, ""}}))
	b := k.writeChain("cali-b", newChain("cali-b", []rule{{"", drop, ""}}))
	_, owner := input(tableFilter, []*unit{a, b})
	for said, want := range map[string]map[*unit]bool{
		"iptables-restore: line 5 failed": {b: true},
		"iptables-restore v1.8.9 (nf_tables): \nline 4: RULE_APPEND failed (Too many links): rule in chain cali-a": {a: true},
		"Error occurred at line: 2":       {a: true},
		"iptables-restore: line 6 failed": {}, // COMMIT
		"another app has the lock":        {},
	} {
		assert.Equal(t, want, blamed(&refusal{said: said}, owner), said)
	}
}
