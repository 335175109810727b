//go:build lab

package iptables_test

import (
	"testing"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
)

// kinds are the driver with both variants of iptables.
func kinds() (out []rulestest.Kind) {
	for _, v := range []iptables.Variant{iptables.Legacy, iptables.NFT} {
		out = append(out, rulestest.Kind{
			Name: string(v), List: "(iptables-" + string(v) + "-save; ip6tables-" + string(v) + "-save) | grep -e ^-A -e ^:cali",
			New: func(ns *labtest.Namespace) (rulestest.Driver, error) {
				return iptables.New(iptables.Config{Variant: v, In: ns.In})
			},
		})
	}
	return out
}

func each(t *testing.T, test func(t *testing.T, k rulestest.Kind)) {
	for _, k := range kinds() {
		t.Run(k.Name, func(t *testing.T) { test(t, k) })
	}
}

func TestPackets(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) { k.Run(t) })
}
