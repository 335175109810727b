//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"strings"
)

// torConf is what a ToR is configured with, whatever its vendor. Its neighbours are named one by one.
type torConf struct {
	as, nodes uint32 // its own AS, and that of the nodes
	password  string
	gtsm      bool // accepts neighbours on its links only (RFC 5082)
	reflector bool // the nodes are its clients
	addPath   bool // sends and takes several paths to a prefix
	far       bool // the neighbours are not on its links
	statics   []netip.Prefix
	// neighbours are pairs of an address of the ToR and one of a node.
	neighbours [][2]string
}

// ownAS and torAS are the numbers that most tests use.
const ownAS, torAS = 64512, 65001

// bothRacks are the neighbours of a ToR in both racks and families.
var bothRacks = [][2]string{
	{"10.30.0.1", "10.30.0.10"},
	{"10.30.0.1", "10.30.0.206"},
	{"10.30.0.1", "10.30.0.56"},
	{"10.30.1.1", "10.30.1.66"},
	{"fd00:30::1", "fd00:30::10"},
	{"fd00:30::1", "fd00:30::206"},
	{"fd00:30::1", "fd00:30::56"},
	{"fd00:31::1", "fd00:31::66"},
}

// text is the configuration in the vendor's words. It tries to connect every second, so that tests need not wait for it.
func (o torConf) text(v vendor) string {
	if o.neighbours == nil {
		o.neighbours = bothRacks
	}
	if v == vendorFRR {
		return o.forFRR()
	}
	return o.forBIRD()
}

func isV6(address string) bool { return strings.Contains(address, ":") }

func (o torConf) forBIRD() string {
	var b strings.Builder
	fmt.Fprintf(&b, "router id %s;\n", o.neighbours[0][0])
	b.WriteString(`protocol device { scan time 1; }
protocol direct { ipv4; ipv6; interface "eth2"; }
protocol kernel { ipv4 { export where source = RTS_BGP; }; merge paths on limit 16; graceful restart on; }
protocol kernel { ipv6 { export where source = RTS_BGP; }; merge paths on limit 16; graceful restart on; }
`)
	for i, p := range o.statics {
		family := map[bool]string{false: "ipv4", true: "ipv6"}[p.Addr().Is6()]
		fmt.Fprintf(&b, "protocol static static%d { %s; route %s unreachable; }\n", i, family, p)
	}
	for i, n := range o.neighbours {
		fmt.Fprintf(&b, "protocol bgp node%d {\n  local %s as %d;\n  neighbor %s as %d;\n", i, n[0], o.as, n[1], o.nodes)
		b.WriteString(map[bool]string{false: "  direct;\n", true: "  multihop;\n"}[o.far])
		b.WriteString("  graceful restart on;\n  connect delay time 1;\n  connect retry time 1;\n  error wait time 1, 2;\n  error forget time 1;\n")
		if o.password != "" {
			fmt.Fprintf(&b, "  password %q;\n", o.password)
		}
		if o.gtsm {
			b.WriteString("  ttl security on;\n")
		}
		if o.reflector {
			b.WriteString("  rr client;\n")
		}
		more := ""
		if o.addPath {
			more = " add paths on;"
		}
		family := map[bool]string{false: "ipv4", true: "ipv6"}[isV6(n[1])]
		fmt.Fprintf(&b, "  %s { import all; export all;%s };\n}\n", family, more)
	}
	return b.String()
}

func (o torConf) forFRR() string {
	var b strings.Builder
	b.WriteString("frr defaults datacenter\nhostname tor\n")
	fmt.Fprintf(&b, "route-map all permit 10\n!\nrouter bgp %d\n bgp router-id %s\n bgp graceful-restart\n no bgp ebgp-requires-policy\n no bgp network import-check\n", o.as, o.neighbours[0][0])
	for _, n := range o.neighbours {
		fmt.Fprintf(&b, " neighbor %[1]s remote-as %[2]d\n neighbor %[1]s update-source %[3]s\n neighbor %[1]s timers connect 1\n", n[1], o.nodes, n[0])
		if o.password != "" {
			fmt.Fprintf(&b, " neighbor %s password %s\n", n[1], o.password)
		}
		if o.gtsm {
			fmt.Fprintf(&b, " neighbor %s ttl-security hops 1\n", n[1])
		}
	}
	for _, v6 := range []bool{false, true} {
		fmt.Fprintf(&b, " address-family %s unicast\n  network %s\n  maximum-paths 16\n  maximum-paths ibgp 16\n", map[bool]string{false: "ipv4", true: "ipv6"}[v6], outside[v6])
		for _, p := range o.statics {
			if p.Addr().Is6() == v6 {
				fmt.Fprintf(&b, "  network %s\n", p)
			}
		}
		for _, n := range o.neighbours {
			if isV6(n[1]) != v6 {
				if !v6 {
					fmt.Fprintf(&b, "  no neighbor %s activate\n", n[1])
				}
				continue
			}
			fmt.Fprintf(&b, "  neighbor %s activate\n", n[1])
			if o.reflector {
				fmt.Fprintf(&b, "  neighbor %s route-reflector-client\n", n[1])
			}
			if o.addPath {
				fmt.Fprintf(&b, "  neighbor %s addpath-tx-all-paths\n", n[1])
			}
		}
		b.WriteString(" exit-address-family\n")
	}
	return b.String()
}
