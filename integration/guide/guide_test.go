package guide

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBlocks(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	require.NoError(t, os.WriteFile(page, []byte(`
<!-- tried: one -->
`+"```console"+`
$ first --of one    # and why
what it says
$ second
`+"```"+`

1. In a list:
   <!-- tried: one -->
   `+"```console"+`
   $ third
     indented
   `+"```"+`

<!-- tried: other -->
words
`), 0o600))
	blocks, err := Blocks(page, "tried: one")
	require.NoError(t, err)
	assert.Equal(t, []string{"$ first --of one    # and why\nwhat it says\n$ second\n", "$ third\n  indented\n"}, blocks)
	assert.Equal(t, []string{"first --of one    # and why", "second", "third"}, Commands(blocks...))
	for comment, complaint := range map[string]string{"tried: other": "right below it", "tried: none": "has no"} {
		_, err = Blocks(page, comment)
		assert.ErrorContains(t, err, complaint)
	}
}
