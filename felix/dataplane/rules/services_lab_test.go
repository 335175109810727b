//go:build lab && secondkernel

package rules_test

import (
	"strings"
	"testing"

	"github.com/muslin-net/muslin/felix/dataplane/rules"
)

// What goes to services by IPVS is judged by where it is led, by each driver.
func TestServicesByIPVS(t *testing.T) {
	for _, k := range []rules.Kind{rules.NFTables, rules.IPTablesLegacy, rules.IPTablesNFT} {
		t.Run(strings.NewReplacer(" (", "-", ")", "").Replace(string(k)), func(t *testing.T) { kind.RunServices(t, by(k)) }) // the name is part of paths
	}
}
