// Package foreign looks at what others have put into the node's packet path that felix's own rules cannot overrule. An
// accept in one nftables chain is not the last word: the chains of iptables see the packet too, and one that drops by
// policy, as docker's installation leaves FORWARD, drops pods' packets. Felix does not change what is not its own; it says
// what is in the way.
package foreign

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// Obstacles names what drops forwarded packets behind felix's back, each with what to do. A node without the iptables
// program has none of its rules either.
func Obstacles() []string {
	var out []string
	for _, f := range []struct {
		program  string
		protocol iptables.Protocol
	}{{"iptables", iptables.ProtocolIPv4}, {"ip6tables", iptables.ProtocolIPv6}} {
		if _, err := exec.LookPath(f.program); err != nil {
			continue
		}
		tables, err := iptables.New(iptables.IPFamily(f.protocol), iptables.Timeout(5))
		if err != nil {
			continue // a program that does not run programs nothing
		}
		rules, err := tables.List("filter", "FORWARD")
		if err == nil && dropsByPolicy(rules) {
			out = append(out, fmt.Sprintf("the policy of chain FORWARD of %s is DROP, which drops pods' packets; run %s -P FORWARD ACCEPT, or accept interfaces cali+ there",
				f.program, f.program))
		}
	}
	return out
}

// dropsByPolicy judges a listing: the first line is the policy. A chain whose rules accept workload interfaces first is no
// obstacle.
func dropsByPolicy(rules []string) bool {
	if len(rules) == 0 || !strings.HasPrefix(rules[0], "-P FORWARD DROP") {
		return false
	}
	for _, r := range rules[1:] {
		if strings.Contains(r, " cali+ ") && strings.HasSuffix(r, "-j ACCEPT") {
			return false
		}
	}
	return true
}
