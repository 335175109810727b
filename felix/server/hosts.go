package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/felix/desired"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Host is a host endpoint of the node.
type Host struct {
	Name       string
	Interfaces []string // at which it judges; none: it has none yet, or another has them
	Addresses  []netip.Addr
	Closed     []string   // why nothing but failsafe ports passes; nothing: it is open
	Passes     [4]Applied // by desired.HostPass; one without a list judges nothing
	// FailsafeIn and FailsafeOut are the ports that stay open whatever policy says.
	FailsafeIn, FailsafeOut []desired.Failsafe
}

// hostPrefix stands before the names of host endpoints, so that they are no workloads'.
const hostPrefix = "host/"

// is tells whether a host endpoint is meant.
func (h *Host) is(asked string) bool {
	return asked == "" || asked == h.Name || asked == hostPrefix+h.Name ||
		slices.ContainsFunc(h.Addresses, func(a netip.Addr) bool { return a.String() == asked })
}

// endpoint is what is told of a host endpoint.
func (h *Host) endpoint(counted counts) *felixv1.Endpoint {
	out := &felixv1.Endpoint{
		Id: hostPrefix + h.Name, Interface: strings.Join(h.Interfaces, ","), Addresses: bytesOf(h.Addresses),
		Closed: len(h.Closed) > 0, ClosedBecause: h.Closed, FailsafeIn: failsafeWords(h.FailsafeIn), FailsafeOut: failsafeWords(h.FailsafeOut),
	}
	for _, d := range []desired.Direction{desired.Ingress, desired.Egress} {
		for p, a := range h.Passes {
			pass := desired.HostPass(p)
			if a.List.ID == "" || pass == desired.PreDNAT && d == desired.Egress {
				continue
			}
			rows := listCounters(a, pass, d, desired.PassChain(a.List.ID, pass, d), counted)
			for _, r := range rows {
				r.Pass = passNames[pass]
			}
			out.Policies = append(out.Policies, rows...)
		}
	}
	return out
}

// passNames are the passes as policies ask for them.
var passNames = [...]string{desired.Untracked: "untracked", desired.PreDNAT: "preDNAT", desired.Forward: "forward", desired.Normal: "normal"}

func failsafeWords(all []desired.Failsafe) (out []string) {
	for _, f := range all {
		words := []string{fmt.Sprintf("%s/%d", protocolName(f.Protocol), f.Port)}
		for _, n := range f.Nets {
			words = append(words, "with "+n.String())
		}
		out = append(out, strings.Join(words, " "))
	}
	return out
}
