package rules

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// Chains by which others are known: kube-proxy's, and kubelet's, which it makes in the iptables that the host uses.
const proxyChain = "KUBE-SERVICES"

var kubeletChains = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// look finds out what is used on the node, as far as it matters. What cannot be read is not there.
func look(ctx context.Context, in func(func() error) error, s desired.Rules) (r Reading) {
	_ = in(func() error {
		chains := nftChains(ctx)
		has := func(table string, names ...string) bool {
			return slices.ContainsFunc(chains, func(c nft.ChainName) bool {
				return c.Table.Name == table && (c.Table.Family == nft.IP4 || c.Table.Family == nft.IP6) && (len(names) == 0 || slices.Contains(names, c.Name))
			})
		}
		switch {
		case has("kube-proxy"):
			r.Proxy = NFTables
		case has("nat", proxyChain):
			r.Proxy = IPTablesNFT
		case legacyHas("nat", proxyChain):
			r.Proxy = IPTablesLegacy
		}
		switch {
		case !asksHost(s, r.Proxy):
		case has("mangle", kubeletChains...):
			r.Host = IPTablesNFT
		case legacyHas("mangle", kubeletChains...):
			r.Host = IPTablesLegacy
		default:
			r.Host = moreRules(ctx)
		}
		return nil
	})
	return r
}

// nftChains lists the chains of nftables.
func nftChains(ctx context.Context) []nft.ChainName {
	c, err := nlsock.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }()
	chains, err := nft.Chains(ctx, c)
	if err != nil {
		return nil
	}
	return chains
}

// legacyTables are the tables of xtables that are in use. Asking its programs for another would bring it into being.
func legacyTables() []string {
	var out []string
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		// The thread's own network namespace, which need not be the process's.
		names, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err == nil {
			out = append(out, strings.Fields(string(names))...)
		}
	}
	return out
}

// legacyHas tells whether xtables has one of the chains.
func legacyHas(table string, chains ...string) bool {
	if !slices.Contains(legacyTables(), table) {
		return false
	}
	path, err := exec.LookPath("iptables-legacy")
	if err != nil {
		return false
	}
	tables, err := goiptables.New(goiptables.Path(path), goiptables.Timeout(5))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(chains, func(chain string) bool {
		there, err := tables.ChainExists(table, chain)
		return err == nil && there
	})
}

// moreRules is the iptables that holds more rules; legacy if neither does, unless its module is not loaded.
func moreRules(ctx context.Context) Kind {
	if _, err := os.Stat("/proc/thread-self/net/ip_tables_names"); err != nil {
		return IPTablesNFT
	}
	rules := func(program string) int {
		out, _ := exec.CommandContext(ctx, program).Output()
		return bytes.Count(out, []byte("\n-A "))
	}
	legacy := 0
	if len(legacyTables()) > 0 {
		legacy = rules("iptables-legacy-save")
	}
	if rules("iptables-nft-save") > legacy {
		return IPTablesNFT
	}
	return IPTablesLegacy
}
