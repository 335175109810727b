package oracle_test

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/node"
	"github.com/muslin-net/muslin/integration/oracle/recipe"
)

// TestRecipes asks the recipes of testdata, of the oracle and of every driver's rules.
func TestRecipes(t *testing.T) {
	files, err := filepath.Glob("testdata/recipes/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			ask(t, data)
		})
	}
}

// TestExamplesOfTheDocs has each example of docs/policy.md and docs/host-endpoints.md do what the page says: testdata/docs has a world
// for each, and the questions. No YAML of these pages is without.
func TestExamplesOfTheDocs(t *testing.T) {
	tried := map[string]bool{}
	for _, name := range []string{"policy.md", "host-endpoints.md"} {
		page, err := os.ReadFile("../../docs/" + name)
		require.NoError(t, err)
		parts := strings.Split(string(page), "<!-- example: ")[1:]
		require.Len(t, parts, strings.Count(string(page), "\n```yaml\n"), "%s has YAML that is no example", name)
		for _, part := range parts {
			name, rest, _ := strings.Cut(part, " -->\n```yaml\n")
			tried[name+".yaml"] = true
			t.Run(name, func(t *testing.T) {
				example, _, ended := strings.Cut(rest, "\n```")
				require.True(t, ended)
				world, err := os.ReadFile(filepath.Join("testdata/docs", name+".yaml"))
				require.NoError(t, err)
				ask(t, append(world, "\n---\n"+example+"\n"...))
			})
		}
	}
	worlds, err := os.ReadDir("testdata/docs")
	require.NoError(t, err)
	for _, w := range worlds {
		assert.True(t, tried[w.Name()], "%s is a world of no example", w.Name())
	}
}

// ask has the oracle and every driver's rules answer the questions of a recipe.
func ask(t *testing.T, data []byte) {
	t.Helper()
	r, err := recipe.Read(data)
	require.NoError(t, err)
	require.NotEmpty(t, r.Questions)
	c, err := oracle.New(r.World)
	require.NoError(t, err)
	for _, q := range r.Questions {
		v := c.Passes(q.Way, q.Packet, r.Settings)
		assert.Equal(t, q.Allowed, v.Allowed, "oracle: %s: decided by %s", q.Text, v.By)
	}
	for name, driver := range drivers {
		fw, err := driver(node.Firewall(r.World, r.Settings, cmp.Or(r.Settings.Node, recipe.Node)), r.World)
		require.NoError(t, err)
		for _, q := range r.Questions {
			v, err := fw.passes(q.Way, q.Packet)
			require.NoError(t, err)
			assert.Equal(t, q.Allowed, v.Allowed, "%s: %s: decided by %s", name, q.Text, v.By)
		}
	}
}
