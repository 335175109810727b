package nftables

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/desired"
)

func newCompiler(f nft.Family) *compiler {
	types := map[string]view.SetType{"s:a": view.SetNet, "s:b": view.SetNet, "n:http": view.SetIPPort, "n:dns": view.SetIPPort}
	return &compiler{
		family:   f,
		setType:  func(id string) (view.SetType, bool) { t, ok := types[id]; return t, ok },
		hasChain: func(name string, _ desired.Layers) bool { return name == "cali-pi-np/s/known" },
		layer:    desired.Filter,
		sets:     map[string]contents{},
	}
}

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

func TestInHowManyWaysAPacketMatches(t *testing.T) {
	echo := view.ICMP{Type: 8}
	for _, c := range []struct {
		name      string
		match     desired.Match
		four, six int // rules
		sets      int // sets of the rule's own, IPv4
	}{
		{"everything", desired.Match{}, 1, 1, 0},
		{"IPv4", desired.Match{IPVersion: 4}, 1, 0, 0},
		{"IPv6", desired.Match{IPVersion: 6}, 0, 1, 0},
		{"ICMP is IPv4", desired.Match{Protocol: protoICMP, ICMP: &echo}, 1, 0, 0},
		{"ICMPv6 is IPv6", desired.Match{Protocol: protoICMPv6, NotICMP: &echo}, 0, 1, 0},
		{"a type of a protocol without types", desired.Match{Protocol: protoTCP, ICMP: &echo}, 0, 0, 0},
		{"one prefix", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8")}}, 1, 0, 0},
		{"prefixes of both families", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8", "fd00::/8")}}, 1, 1, 0},
		{"many prefixes", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8", "11.0.0.0/8")}}, 1, 0, 1},
		{"the same prefixes on both sides", desired.Match{
			Source:      view.Match{Nets: prefixes("10.0.0.0/8", "11.0.0.0/8")},
			Destination: view.Match{Nets: prefixes("11.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16")},
		}, 1, 0, 1},
		{"all of IPv4", desired.Match{Source: view.Match{Nets: prefixes("0.0.0.0/0", "10.0.0.0/8")}}, 1, 0, 0},
		{"not of the other family", desired.Match{Source: view.Match{NotNets: prefixes("10.0.0.0/8")}}, 1, 0, 0},
		{"nothing at all", desired.Match{Source: view.Match{NotNets: prefixes("0.0.0.0/0")}}, 0, 0, 0},
		{"from one family to the other", desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8")}, Destination: view.Match{Nets: prefixes("fd00::/8")}}, 0, 0, 0},
		{"one port", desired.Match{Protocol: protoTCP, Destination: view.Match{Ports: ports(80, 80)}}, 1, 1, 0},
		{"ranges that touch", desired.Match{Protocol: protoTCP, Destination: view.Match{Ports: ports(90, 99, 80, 89)}}, 1, 1, 0},
		{"ranges", desired.Match{Protocol: protoTCP, Destination: view.Match{Ports: ports(80, 80, 100, 200)}}, 1, 1, 1},
		{"numbers or names", desired.Match{Protocol: protoTCP, Destination: view.Match{Ports: ports(80, 80), NamedPorts: []string{"n:http", "n:dns"}}}, 3, 3, 0},
		{"numbers or names on both sides", desired.Match{
			Source:      view.Match{Ports: ports(1, 1), NamedPorts: []string{"n:dns"}},
			Destination: view.Match{Ports: ports(80, 80), NamedPorts: []string{"n:http"}},
		}, 4, 4, 0},
		{"sets are all required", desired.Match{Source: view.Match{Sets: []string{"s:a", "s:b"}, NotSets: []string{"s:b"}, IPPortSets: []string{"n:dns"}}}, 1, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			four, six := newCompiler(nft.IP4), newCompiler(nft.IP6)
			assert.Len(t, four.match(c.match), c.four, "IPv4")
			assert.Len(t, six.match(c.match), c.six, "IPv6")
			assert.Len(t, four.sets, c.sets, "own sets")
		})
	}
}

// TestADigestTellsRulesApart: rules that differ in anything get different comments, and equal ones the same.
func TestADigestTellsRulesApart(t *testing.T) {
	code := uint8(1)
	seen := map[string]desired.Rule{}
	for _, r := range []desired.Rule{
		{Do: desired.Allow},
		{Do: desired.Deny},
		{Do: desired.Pass},
		{Do: desired.Log, LogPrefix: "x"},
		{Do: desired.Log, LogPrefix: "y"},
		{Do: desired.Return},
		{Do: desired.Reset},
		{Do: desired.Allow, If: desired.IfUndecided},
		{Do: desired.Allow, If: desired.IfAllowed},
		{Do: desired.Allow, Match: &desired.Match{Protocol: protoTCP}},
		{Do: desired.Allow, Match: &desired.Match{NotProtocol: protoTCP}},
		{Do: desired.Allow, Match: &desired.Match{ICMP: &view.ICMP{Type: 1}}},
		{Do: desired.Allow, Match: &desired.Match{NotICMP: &view.ICMP{Type: 1}}},
		{Do: desired.Allow, Match: &desired.Match{ICMP: &view.ICMP{Type: 1, Code: &code}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Sets: []string{"s:a"}}}},
		{Do: desired.Allow, Match: &desired.Match{Destination: view.Match{Sets: []string{"s:a"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{NotSets: []string{"s:a"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8")}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/9")}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{NotNets: prefixes("10.0.0.0/8")}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8", "11.0.0.0/8")}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Nets: prefixes("10.0.0.0/8", "12.0.0.0/8")}}},
		{Do: desired.Allow, Match: &desired.Match{Destination: view.Match{Ports: ports(1, 2)}}},
		{Do: desired.Allow, Match: &desired.Match{Destination: view.Match{NotPorts: ports(1, 2)}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Ports: ports(1, 2)}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{NamedPorts: []string{"n:dns"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{NotNamedPorts: []string{"n:dns"}}}},
	} {
		r.Comment = "np/s/p ingress 0"
		rules := newCompiler(nft.IP4).chain(desired.Chain{Rules: []desired.Rule{r}}).rules
		require.Len(t, rules, 1)
		other, taken := seen[rules[0].comment]
		require.False(t, taken, "%+v and %+v", r, other)
		seen[rules[0].comment] = r
		again := newCompiler(nft.IP4).chain(desired.Chain{Rules: []desired.Rule{r}}).rules
		require.Equal(t, rules, again)
	}
}

func TestWhatIsMissingDrops(t *testing.T) {
	for _, r := range []desired.Rule{
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Sets: []string{"s:unknown"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{NotSets: []string{"s:unknown"}}}},
		{Do: desired.Allow, Match: &desired.Match{Source: view.Match{Sets: []string{"n:http"}}}}, // of another type
		{Do: desired.Deny, Match: &desired.Match{Destination: view.Match{NotNamedPorts: []string{"s:a"}}}},
		{Do: desired.Jump, Target: "cali-pi-np/s/unknown"},
	} {
		rules := newCompiler(nft.IP4).chain(desired.Chain{Rules: []desired.Rule{r}}).rules
		require.Len(t, rules, 1)
		assert.Contains(t, rules[0].comment, "is not known")
		assert.Equal(t, nft.Expr{}.Counter().Verdict(drop), rules[0].expr)
	}
	rules := newCompiler(nft.IP4).chain(desired.Chain{Rules: []desired.Rule{{Do: desired.Jump, Target: "cali-pi-np/s/known"}}}).rules
	assert.NotContains(t, rules[0].comment, "is not known")
}

func TestWhatDecidesNothingIsLeftOutWhereSomethingIsMissing(t *testing.T) {
	for _, r := range []desired.Rule{
		{Do: desired.Count, Match: &desired.Match{Source: view.Match{Sets: []string{"s:unknown"}}}},
		{Do: desired.Jump, Target: "cali-pi-snp/s/unknown"},
		{Do: desired.Jump, Target: "cali-po-sgnp/unknown"},
	} {
		require.Empty(t, newCompiler(nft.IP4).chain(desired.Chain{Rules: []desired.Rule{r}}).rules, "%+v", r)
	}
	// What the kernel refuses of it is left empty.
	f := newFamily(nft.IP4)
	for name, messages := range map[string]int{"cali-pi-snp/s/try": 1, "cali-pi-np/s/web": 2} {
		require.Len(t, f.chainUnit(name, newCompiler(nft.IP4).chain(desired.Chain{Name: name})).instead[0].msgs, messages, name)
	}
}

func TestNamesFitTheKernel(t *testing.T) {
	long := "cali-pi-np/" + strings.Repeat("n", 63) + "/" + strings.Repeat("p", 253)
	name := kernelChain(long)
	assert.LessOrEqual(t, len(name), 255)
	assert.True(t, strings.HasPrefix(name, "filter-cali-pi-_"), name)
	assert.NotEqual(t, name, kernelChain(long+"x"))
	assert.Equal(t, "filter-cali-pi-np/shop/web", kernelChain("cali-pi-np/shop/web"))
	assert.Equal(t, "cali40s-abc", kernelSet(nft.IP4, "s:abc"))
	assert.Equal(t, "cali60network-ip-pools", kernelSet(nft.IP6, desired.SetPools))
	assert.Len(t, kernelSet(nft.IP4, "s:"+strings.Repeat("x", 40)), 31)
	assert.LessOrEqual(t, len(newRule(strings.Repeat("x", 500), nil).comment), nft.MaxComment)
	assert.Len(t, ifKey("cali1"), 16)
}

// TestALimitOfLogRules: a rule with another limit is another rule, and only Log rules have one.
func TestALimitOfLogRules(t *testing.T) {
	comments := map[string]bool{}
	limits := []desired.Limit{{}, {Rate: 10, Per: time.Minute, Burst: 5}, {Rate: 11, Per: time.Minute, Burst: 5}, {Rate: 10, Per: time.Hour, Burst: 5}, {Rate: 10, Per: time.Minute, Burst: 6}}
	for _, limit := range limits {
		c := newCompiler(nft.IP4)
		c.logs = limit
		rules := c.chain(desired.Chain{Rules: []desired.Rule{{Do: desired.Log, LogPrefix: "x"}, {Do: desired.Allow}}}).rules
		comments[rules[0].comment] = true
		assert.Equal(t, newCompiler(nft.IP4).chain(desired.Chain{Rules: []desired.Rule{{Do: desired.Allow}}}).rules[0], rules[1])
	}
	assert.Len(t, comments, len(limits))
}
