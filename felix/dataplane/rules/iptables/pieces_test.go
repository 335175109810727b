package iptables

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Pieces have everything once; what is new comes before what leads to it, and what changes what there is comes last.
func TestPieces(t *testing.T) {
	table := newTable(tableFilter)
	const n = 3 * piece
	for i := range n { // each leads to the one after it in the order of names, and so must be written behind that
		var rules []rule
		if i < n-1 {
			rules = []rule{{"", "-j " + fmt.Sprintf("cali-%04d", i+1), ""}}
		}
		name := fmt.Sprintf("cali-%04d", i)
		table.chains.SetDesired(name, newChain(name, rules))
	}
	table.chains.SetActual("cali-0500", newChain("cali-0500", nil))
	table.chains.SetActual("cali-gone", newChain("cali-gone", nil))
	units := table.plan(true, false)
	all := len(units)
	pieces := table.pieces(units)
	require.Len(t, pieces, 4)
	at := map[string]int{"cali-0500": 1 << 20}
	for i, p := range pieces[:3] {
		require.LessOrEqual(t, len(p), piece)
		for j, u := range p {
			at[u.makes] = i*piece + j
		}
	}
	for i := range n - 2 {
		from, to := fmt.Sprintf("cali-%04d", i), fmt.Sprintf("cali-%04d", i+1)
		if from != "cali-0500" && to != "cali-0500" {
			assert.Greater(t, at[from], at[to], "%s leads to %s", from, to)
		}
	}
	last := pieces[3]
	require.Len(t, last, 2)
	assert.Equal(t, "cali-0500", last[0].makes)
	assert.Contains(t, last[1].lines, "-X cali-gone")
	assert.Equal(t, all, len(at)-1+len(last))

	table = newTable(tableFilter)
	table.chains.SetDesired("cali-a", newChain("cali-a", nil))
	units = table.plan(true, false)
	assert.Equal(t, [][]*unit{units}, table.pieces(units), "few are one transaction")
}
