package api

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strings"
)

// setLimit refuses more networks than a node with iptables programs into one set. As many as there were before may stay.
func (c *checker) setLimit(nets, before []string, others Others) error {
	if len(nets) == 0 {
		return nil
	}
	configs, err := others("FelixConfiguration")
	if err != nil {
		return err
	}
	limit := SetLimitOf(configs)
	if family, n := limit.Exceeded(nets); n > 0 && n > countNets(before)[family] {
		c.bad("spec.nets", n, fmt.Sprintf("is the number of networks of %s, but %s, and nodes with iptables program no larger set: rules that select it would drop", family, limit),
			"raise maxIpsetSize, or split the networks over sets with other labels")
	}
	return nil
}

// NetsOf are the networks of a NetworkSet or GlobalNetworkSet; nil for other kinds.
func NetsOf(o Object) []string {
	switch s := o.(type) {
	case *NetworkSet:
		return s.Spec.Nets
	case *GlobalNetworkSet:
		return s.Spec.Nets
	}
	return nil
}

// SetLimit is how many members of a family a set may have.
//
// +kubebuilder:object:generate=false
type SetLimit struct {
	Members int    // math.MaxInt where all nodes use nftables, which has no limit
	Of      string // whose it is: "FelixConfiguration(default)"; empty: nobody's, but the default
}

// String is a clause.
func (l SetLimit) String() string {
	if l.Of == "" {
		return fmt.Sprintf("maxIpsetSize is %d", l.Members)
	}
	return fmt.Sprintf("maxIpsetSize of %s is %d", l.Of, l.Members)
}

// Exceeded is a family of which there are more networks than may be, and their number; 0 if there is none. What is listed twice
// counts once.
func (l SetLimit) Exceeded(nets []string) (family string, n int) {
	if len(nets) <= l.Members {
		return "", 0
	}
	count := countNets(nets)
	for _, f := range []string{ipv4.String(), ipv6.String()} {
		if count[f] > l.Members {
			return f, count[f]
		}
	}
	return "", 0
}

// countNets counts different networks by family.
func countNets(nets []string) map[string]int {
	seen, out := map[netip.Prefix]struct{}{}, map[string]int{}
	for _, text := range nets {
		p, err := ParseNet(text)
		if _, twice := seen[p.Masked()]; err == nil && !twice {
			seen[p.Masked()] = struct{}{}
			out[familyOf(p.Addr()).String()]++
		}
	}
	return out
}

// SetLimitOf is the smallest limit of the nodes that may use iptables, given all FelixConfigurations.
func SetLimitOf(configs []Object) SetLimit {
	cluster := &FelixConfiguration{}
	for _, o := range configs {
		if f, ok := o.(*FelixConfiguration); ok && f.Name == DefaultName {
			cluster = f
		}
	}
	out := SetLimit{Members: math.MaxInt}
	for _, o := range append([]Object{cluster}, configs...) {
		f, ok := o.(*FelixConfiguration)
		if !ok {
			continue
		}
		if mode := cmp.Or(f.Spec.NFTablesMode, cluster.Spec.NFTablesMode); mode != nil && strings.EqualFold(*mode, "Enabled") {
			continue
		}
		l := SetLimit{Members: *EffectiveFelix().MaxIpsetSize}
		for _, layer := range []*FelixConfiguration{cluster, f} {
			if size := layer.Spec.MaxIpsetSize; size != nil {
				l = SetLimit{Members: *size, Of: KeyOf(layer).String()}
			}
		}
		if l.Members < out.Members {
			out = l
		}
	}
	return out
}
