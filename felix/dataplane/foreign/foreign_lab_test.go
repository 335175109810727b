//go:build lab

package foreign_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/foreign"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
)

func TestAForwardPolicyOfDropIsNamed(t *testing.T) {
	ns := labtest.Enter(t)
	require.Empty(t, foreign.Obstacles())
	ns.Run(t, "iptables -P FORWARD DROP")
	found := foreign.Obstacles()
	require.Len(t, found, 1)
	require.Contains(t, found[0], "iptables -P FORWARD ACCEPT")
	ns.Run(t, "iptables -A FORWARD -i cali+ -j ACCEPT")
	require.Empty(t, foreign.Obstacles())
}
