//go:build lab

package nftables_test

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
)

var update = flag.Bool("update", false, "rewrite testdata")

// TestListing compares what nft(8) lists with a text for people to read.
func TestListing(t *testing.T) {
	const golden = "testdata/ruleset.txt"
	ns := labtest.Enter(t)
	devices(t, ns)
	apply(t, open(t), rich())
	got := inOrder(ns.Run(t, "nft -s list ruleset"))
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "go test -tags lab -run TestListing -update rewrites it")
}
