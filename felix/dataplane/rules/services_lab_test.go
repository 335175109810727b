//go:build lab && secondkernel

package rules_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/rules"
)

// Beside kube-proxy by IPVS what goes to services is judged by where it is led, by each driver.
func TestServicesByIPVS(t *testing.T) {
	program := os.Getenv("MUSLIN_KUBE_PROXY")
	require.NotEmpty(t, program, "MUSLIN_KUBE_PROXY does not say where kube-proxy is")
	for _, k := range []rules.Kind{rules.NFTables, rules.IPTablesLegacy, rules.IPTablesNFT} {
		t.Run(strings.NewReplacer(" (", "-", ")", "").Replace(string(k)), func(t *testing.T) { kind.RunServices(t, by(k), program) }) // the name is part of paths
	}
}
