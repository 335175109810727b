//go:build lab

package suite

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// kernelCommand prints all that felix programs on a node, each object on lines of its own.
const kernelCommand = `
ip -o -4 route show table main | sed 's/^/route /'
ip -br -4 addr show | sed 's/@[^ ]*//; s/^/address /'
ip -br link show | sed 's/@[^ ]*//; /^tunl0/s/ [0-9a-f:]\{17\}//; s/^/link /' # a tunl0 made anew by BPF has another Ethernet address
ip -o -6 route show root fd00:192::/48 | sed 's/^/route /'
ip -br -6 addr show scope global | sed 's/@[^ ]*//; s/^/address /'
for device in vxlan.calico vxlan-v6.calico; do
	ip link show $device >/dev/null 2>&1 || continue
	ip -o -d link show $device | sed 's/^[0-9]*: //; s/^/device /'
	bridge fdb show dev $device | sed "s/^/fdb $device /"
	ip neigh show dev $device nud permanent | sed "s/^/neighbour $device /"
done
for device in ens5 tunl0; do
	for way in ingress egress; do
		tc filter show dev $device $way 2>/dev/null | sed "s/ id [0-9]* / /; s/^/filter $device $way /"
	done
done
(` + saved + `) | sed -n '/cali/p'
ipset save | sed -n '/ cali/ { s/ hashsize [0-9]*//; s/ bucketsize [0-9]*//; s/ initval [^ ]*//; s/^/ipset /; p }'
nft list tables | sed -n '/ calico$/p' | while read -r _ family table; do nft -s list table $family $table; done`

var (
	nftTable     = regexp.MustCompile(`(?m)^table \w+ calico \{$`)
	elements     = regexp.MustCompile(`(?s)elements = \{(.*?)\}`)
	iptablesRule = regexp.MustCompile(`^ip6?tables-\w+ \*\w+ -A \S+`)
	listChain    = regexp.MustCompile(`cali-[ft]w-[\w-]+`)
	ruleHash     = regexp.MustCompile(`"cali:[\w-]{16} ?`)
)

// kernel is what the kernel of each node holds, in an order that does not depend on when it was written.
type kernel map[string][]string

// kernel reads it from all nodes at once.
func (c *cluster) kernel(t *testing.T) (kernel, error) {
	t.Helper()
	ctx := within(t, patience)
	read := make([][]string, len(c.topology.Nodes))
	var g errgroup.Group
	for i, n := range c.topology.Nodes {
		g.Go(func() error {
			out, err := c.Run(ctx, n.Name, "sh", "-c", kernelCommand)
			read[i] = normalized(out)
			return err
		})
	}
	k := kernel{}
	err := g.Wait()
	for i, n := range c.topology.Nodes {
		k[n.Name] = read[i]
	}
	return k, err
}

// normalized sorts what has no order of its own: lines outside tables of nftables, chains and sets in these, elements in a set,
// and tables and chains of iptables.
func normalized(text string) []string {
	at := len(text)
	if found := nftTable.FindStringIndex(text); found != nil {
		at = found[0]
	}
	lines := strings.Split(strings.TrimSpace(text[:at]), "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	tables := elements.ReplaceAllStringFunc(text[at:], func(s string) string {
		list := strings.Split(elements.FindStringSubmatch(s)[1], ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		slices.Sort(list)
		return "elements = { " + strings.Join(list, ", ") + " }"
	})
	var family, block string
	for l := range strings.SplitSeq(tables, "\n") {
		switch name, opens := strings.CutSuffix(strings.TrimSpace(l), " {"); {
		case opens && strings.HasPrefix(name, "table "):
			family = strings.Fields(name)[1]
		case opens:
			block = name
		case name != "" && name != "}":
			lines = append(lines, "nft "+family+" "+block+": "+name)
		}
	}
	lines = nameless(lines)
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(subject(a), subject(b)) })
	return lines
}

// nameless gives the chains of lists of policies names by what they say: a list may have the chain that another had before it, until felix
// is started again. The hashes of rules, in which names are, go.
func nameless(lines []string) []string {
	says := map[string]string{}
	for i, l := range lines {
		l = ruleHash.ReplaceAllString(l, `"`)
		lines[i] = l
		if name := listChain.FindString(subject(l)); name != "" && subject(l) != l {
			says[name] += strings.ReplaceAll(l, name, "") + "\n"
		}
	}
	for i, l := range lines {
		lines[i] = listChain.ReplaceAllStringFunc(l, func(name string) string {
			return fmt.Sprintf("%s%x", name[:len("cali-tw-")], sha256.Sum256([]byte(says[name])))
		})
	}
	return lines
}

// subject is what a line is sorted by: rules of a chain stay in their order.
func subject(line string) string {
	if strings.HasPrefix(line, "nft ") {
		name, _, _ := strings.Cut(line, ": ")
		return name
	}
	if rule := iptablesRule.FindString(line); rule != "" {
		return rule
	}
	return line
}

// difference names lines that only one of the two holds; nothing if they are the same.
func (k kernel) difference(now kernel) string {
	var out []string
	for node, lines := range k {
		for _, l := range lines {
			if !slices.Contains(now[node], l) {
				out = append(out, fmt.Sprintf("%s lacks  %s", node, l))
			}
		}
		for _, l := range now[node] {
			if !slices.Contains(lines, l) {
				out = append(out, fmt.Sprintf("%s has    %s", node, l))
			}
		}
		if len(out) == 0 && !slices.Equal(lines, now[node]) {
			out = append(out, node+" has the same in another order or number")
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestNormalized: what has no order of its own makes no difference; rules of a chain have one.
func TestNormalized(t *testing.T) {
	const text = `link b
link   a
iptables-nft *filter :cali-x - [0:0]
iptables-nft *filter -A cali-y -j DROP
iptables-nft *filter -A cali-x -j RETURN
iptables-nft *filter -A cali-x -j DROP
table netdev calico {
	set two {
		elements = { 10.0.0.2,
			     10.0.0.1 }
	}

	chain one {
		drop
		accept
	}
}
table ip calico {
	chain one {
		return
	}
}
`
	require.Equal(t, []string{
		"iptables-nft *filter -A cali-x -j RETURN", "iptables-nft *filter -A cali-x -j DROP", "iptables-nft *filter -A cali-y -j DROP",
		"iptables-nft *filter :cali-x - [0:0]", "link a", "link b", "nft ip chain one: return",
		"nft netdev chain one: drop", "nft netdev chain one: accept", "nft netdev set two: elements = { 10.0.0.1, 10.0.0.2 }",
	}, normalized(text))
}

// TestChainsOfListsHaveNoNames: whose chain is called what makes no difference; who is under which does.
func TestChainsOfListsHaveNoNames(t *testing.T) {
	const text = `iptables-nft *filter :cali-tw-a - [0:0]
iptables-nft *filter :cali-tw-b - [0:0]
iptables-nft *filter -A cali-to-wl-dispatch -o cali1 -m comment --comment "cali:TwSL7XW3BvNFXwsh one" -g cali-tw-a
iptables-nft *filter -A cali-to-wl-dispatch -o cali2 -m comment --comment "cali:uU6ElV-qaW-gkJdy two" -g cali-tw-b
iptables-nft *filter -A cali-tw-a -m comment --comment "cali:3wUaVKYxUl3Vj9r0 x" -j cali-pi-x
iptables-nft *filter -A cali-tw-b -m comment --comment "cali:ZoI98TCrKESipgPw y" -j cali-pi-y
table ip calico {
	map to {
		elements = { "cali1" : goto filter-cali-fw-a, "cali2" : goto filter-cali-fw-b }
	}
	chain filter-cali-fw-a {
		jump filter-cali-po-x
	}
	chain filter-cali-fw-b {
		jump filter-cali-po-y
	}
}
`
	swap := strings.NewReplacer("w-a", "w-b", "w-b", "w-a", "TwSL7XW3BvNFXwsh", "gfUecsOJ6IWbJ7D9")
	require.Equal(t, normalized(text), normalized(swap.Replace(text)))
	require.NotEqual(t, normalized(text), normalized(strings.ReplaceAll(text, "-g cali-tw-b", "-g cali-tw-a")))
	require.NotEqual(t, normalized(text), normalized(strings.ReplaceAll(text, `"cali1" : goto filter-cali-fw-a`, `"cali1" : goto filter-cali-fw-b`)))
	require.NotEqual(t, normalized(text), normalized(strings.ReplaceAll(text, "jump filter-cali-po-x", "jump filter-cali-po-y")))
}

// size is how many lines it has.
func (k kernel) size() (n int) {
	for _, lines := range k {
		n += len(lines)
	}
	return n
}

// passing names what goes by itself: rules that cut connections, and tunnels that a pool has had before it had the one of the
// given device.
func (k kernel) passing(tunnel string) string {
	for node, lines := range k {
		for _, l := range lines {
			device, isLink := strings.CutPrefix(l, "link ")
			device, _, _ = strings.Cut(device, " ")
			if strings.Contains(l, "has come to forbid") || isLink && device != tunnel && (device == "tunl0" || device == "vxlan.calico") {
				return node + " still has " + l
			}
		}
	}
	return ""
}

// settled reads the kernels of a cluster that is at rest: two looks in a row are equal.
func (c *cluster) settled(t *testing.T) kernel {
	t.Helper()
	last, err := c.kernel(t)
	require.NoError(t, err)
	same := 0
	eventually(t, patience, func() string {
		now, err := c.kernel(t)
		if err != nil {
			return err.Error()
		}
		changed := last.difference(now)
		last = now
		if same++; changed != "" {
			same = 0
		}
		if same < 3 {
			return "the kernels keep changing: " + changed
		}
		return ""
	})
	return last
}

// awaitKernel waits until the kernels hold again what they held, and tells how long it took.
func (c *cluster) awaitKernel(t *testing.T, before kernel, d time.Duration) time.Duration {
	t.Helper()
	return eventually(t, d, func() string {
		now, err := c.kernel(t)
		if err != nil {
			return err.Error()
		}
		return before.difference(now)
	})
}

func itoa(n int) string { return strconv.Itoa(n) }
