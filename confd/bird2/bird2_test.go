package bird2_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/confd/bird2"
	"github.com/muslin-net/muslin/confd/internal/scene"
	"github.com/muslin-net/muslin/confd/render"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// clusters are the inputs of package render's tests, those that render to something.
func clusters(t *testing.T) map[string]render.Config {
	t.Helper()
	paths, err := filepath.Glob("../render/testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	out := map[string]render.Config{}
	for _, path := range paths {
		c, err := scene.Config(path)
		if err == nil {
			out[strings.TrimSuffix(filepath.Base(path), ".yaml")] = c
		}
	}
	return out
}

// TestGolden compares the text with the golden files, all of which BIRD itself accepts (see the lab test). -update rewrites
// them.
func TestGolden(t *testing.T) {
	for name, c := range clusters(t) {
		t.Run(name, func(t *testing.T) {
			got := string(bird2.Text(c, bird2.InService))
			golden := filepath.Join("testdata", name+".conf")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "run with -update")
			require.Equal(t, string(want), got)
		})
	}
}

// TestDrain: what changes with each step is what sessions announce, whatever the filters say.
func TestDrain(t *testing.T) {
	c, err := scene.Config("../render/testdata/filters.yaml")
	require.NoError(t, err)
	sessions := strings.Count(string(bird2.Text(c, bird2.InService)), "export filter {\n")
	for drain, first := range map[bird2.Drain]string{
		bird2.InService: "      preference", bird2.Draining: "      bgp_community.add((65535, 0)); ", bird2.Drained: "      reject; ",
	} {
		got := string(bird2.Text(c, drain))
		require.Equal(t, sessions, strings.Count(got, "export filter {\n"+first), "%s:\n%s", drain, got)
	}
}

// FuzzWords checks that no word of a resource can leave its place in the file.
func FuzzWords(f *testing.F) {
	c, err := scene.Config("../render/testdata/filters.yaml")
	require.NoError(f, err)
	lines := strings.Count(string(bird2.Text(c, bird2.InService)), "\n")
	f.Add("BGPPeer(x)", "secret")
	f.Add("\";\n}", "a\nb\"")
	f.Fuzz(func(t *testing.T, word, password string) {
		other, err := scene.Config("../render/testdata/filters.yaml")
		require.NoError(t, err)
		for i := range other.Peers {
			p := &other.Peers[i]
			if p.Source = word; p.WaitingFor != "" {
				p.WaitingFor = word
			}
			if p.Password == "hunter'2" {
				p.Password = password
			}
		}
		other.IgnoredInterfaces = []string{word}
		other.Filters[1].Export4[1].Interface = "x" + word
		got := string(bird2.Text(other, bird2.InService))
		want := lines
		if password == "" {
			want--
		}
		require.Equal(t, want, strings.Count(got, "\n"))
		for line := range strings.Lines(got) {
			require.Zero(t, strings.Count(strings.Split(line, " # ")[0], `"`)%2, line)
		}
	})
}
