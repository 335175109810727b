package render_test

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/confd/internal/scene"
	"github.com/muslin-net/muslin/confd/render"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func load(t *testing.T, path string) (render.Options, []view.Item) {
	t.Helper()
	options, items, err := scene.Load(path)
	require.NoError(t, err)
	return options, items
}

func inputs(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	return paths
}

// TestGolden compares the text of what is rendered with the golden file beside each input. -update rewrites them.
func TestGolden(t *testing.T) {
	for _, path := range inputs(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			options, items := load(t, path)
			s := render.NewState(options)
			s.Commit(view.Batch{Updates: items, InSync: true})
			got := ""
			if c, err := s.Render(); err != nil {
				got = "error: " + err.Error() + "\n"
			} else {
				got = string(c.Text())
				require.NoError(t, yaml.Unmarshal([]byte(got), &map[string]any{}), "the text is YAML")
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".golden"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "run with -update")
			require.Equal(t, string(want), got)
		})
	}
}

// TestOrderDoesNotMatter brings the items in random order and portions, with detours: items that come and go again, and
// other values before the right ones.
func TestOrderDoesNotMatter(t *testing.T) {
	var others []view.Item
	for _, path := range inputs(t) {
		_, items := load(t, path)
		others = append(others, items...)
	}
	for _, path := range inputs(t) {
		options, items := load(t, path)
		straight := render.NewState(options)
		straight.Commit(view.Batch{Updates: items, InSync: true})
		want, wantErr := straight.Render()
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 7))
			s := render.NewState(options)
			wanted := map[view.Key]bool{}
			for _, it := range items {
				wanted[it.Key()] = true
			}
			for _, it := range others {
				s.Commit(view.Batch{Updates: []view.Item{it}})
			}
			_, _ = s.Render() // must not leave a trace
			todo := slices.Clone(items)
			r.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
			for len(todo) > 0 {
				n := 1 + r.IntN(len(todo))
				s.Commit(view.Batch{Updates: todo[:n]})
				todo = todo[n:]
			}
			for _, it := range others {
				if !wanted[it.Key()] {
					s.Commit(view.Batch{Removes: []view.Key{it.Key()}})
				}
			}
			got, err := s.Render()
			require.Equal(t, wantErr, err)
			require.Equal(t, want, got, "%s, seed %d", path, seed)
		}
	}
}

// TestOneEndIsPassive renders the same cluster on every node: each mesh session is there on both ends, exactly one of them
// passive.
func TestOneEndIsPassive(t *testing.T) {
	_, items := load(t, "testdata/mesh.yaml")
	type end struct{ own, other netip.Addr }
	passive := map[end]bool{}
	for _, node := range []string{"master", "worker-1", "worker-2", "worker-3"} {
		s := render.NewState(render.Options{Node: node})
		s.Commit(view.Batch{Updates: items, InSync: true})
		c, err := s.Render()
		require.NoError(t, err)
		for _, p := range c.Peers {
			passive[end{p.SourceAddress, p.Address}] = p.Passive
		}
	}
	require.Len(t, passive, 2*(4*3/2)+2*1)
	for e, is := range passive {
		back, there := passive[end{e.other, e.own}]
		require.True(t, there, "%v has no other end", e)
		require.NotEqual(t, is, back, "%v", e)
	}
}

// TestNoSync keeps half a view from being used.
func TestNoSync(t *testing.T) {
	options, items := load(t, "testdata/mesh.yaml")
	s := render.NewState(options)
	s.Commit(view.Batch{Updates: items})
	require.False(t, s.InSync())
	s.Commit(view.Batch{InSync: true})
	require.True(t, s.InSync())
}
