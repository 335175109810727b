package oracle_test

import (
	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/iptvm"
)

// chains are the iptables of a node.
type chains struct {
	vm         [2]*iptvm.VM // by family
	interfaces map[api.Key]string
}

func newChains(d desired.FirewallDelta, w oracle.World) (enforcer, error) {
	c := &chains{interfaces: interfaces(w)}
	four, six := iptables.Compile(d)
	for i, r := range []iptables.Ruleset{four, six} {
		vm, err := iptvm.New(r)
		if err != nil {
			return nil, err
		}
		c.vm[i] = vm
	}
	return c, nil
}

func (c *chains) passes(w oracle.Way, p oracle.Packet) (oracle.Verdict, error) {
	vm := c.vm[0]
	if p.V6() {
		vm = c.vm[1]
	}
	pkt := &iptvm.Packet{Packet: p, State: "NEW", ToLocal: w.ToHost, In: elsewhere}
	if in, ok := c.interfaces[w.From]; ok {
		pkt.In = in
	}
	out := elsewhere
	if name, ok := c.interfaces[w.To]; ok {
		out = name
	}
	var by string
	way := [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"filter", "FORWARD"}, {"mangle", "POSTROUTING"}}
	switch {
	case w.ToHost:
		way = [][2]string{{"raw", "PREROUTING"}, {"mangle", "PREROUTING"}, {"filter", "INPUT"}}
	case w.FromHost:
		way = [][2]string{{"raw", "OUTPUT"}, {"filter", "OUTPUT"}, {"mangle", "POSTROUTING"}}
		pkt.In, pkt.Out = "", out
	}
	for _, at := range way {
		switch at[1] {
		case "FORWARD":
			pkt.Out = out
		case "POSTROUTING":
			pkt.In = ""
		}
		v, err := vm.Chain(at[0], at[1], pkt)
		if err != nil || !v.Accepted {
			return oracle.Verdict{By: v.By}, err
		}
		if at[0] == "filter" {
			by = v.By
		}
	}
	return oracle.Verdict{Allowed: true, By: by}, nil
}
