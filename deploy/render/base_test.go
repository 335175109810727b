package render_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/deploy/render"
)

var update = flag.Bool("update", false, "rewrite golden files, and deploy/base")

// The base of kustomize is what the chart's templates give with its values.
func TestBaseIsTheChart(t *testing.T) {
	files, err := render.Manifests(render.Defaults())
	require.NoError(t, err)
	names := []string{"kustomization.yaml"}
	for _, f := range files {
		path := filepath.Join("..", "base", f.Name)
		if *update {
			require.NoError(t, os.WriteFile(path, f.Text, 0o644))
		}
		have, err := os.ReadFile(path)
		require.NoError(t, err, "go test ./deploy/render -run Base -update writes it")
		require.Equal(t, string(f.Text), string(have), "go test ./deploy/render -run Base -update writes %s", f.Name)
		names = append(names, f.Name)
	}
	entries, err := os.ReadDir("../base")
	require.NoError(t, err)
	var there []string
	for _, e := range entries {
		there = append(there, e.Name())
	}
	require.ElementsMatch(t, names, there)
}

// The API server refuses a variable that is there twice, in server-side applies.
func TestVariablesAreThereOnce(t *testing.T) {
	files, err := render.Manifests(render.Defaults())
	require.NoError(t, err)
	type container struct {
		Name string
		Env  []struct{ Name string }
	}
	containers := 0
	for _, f := range files {
		for d := range strings.SplitSeq(string(f.Text), "\n---\n") {
			var o struct {
				Spec struct {
					Template struct {
						Spec struct{ InitContainers, Containers []container }
					}
				}
			}
			require.NoError(t, yaml.Unmarshal([]byte(d), &o))
			for _, c := range append(o.Spec.Template.Spec.InitContainers, o.Spec.Template.Spec.Containers...) {
				containers++
				seen := map[string]bool{}
				for _, e := range c.Env {
					require.False(t, seen[e.Name], "%s in container %s of %s", e.Name, c.Name, f.Name)
					seen[e.Name] = true
				}
			}
		}
	}
	require.Greater(t, containers, 8)
}
