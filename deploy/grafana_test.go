package deploy_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// components are the folders whose metrics begin with a name that their code puts before the rest.
var components = map[string]string{"typha_": "typha", "bird_peer_": "bird", "bird_sessions_": "bird", "bird_": "bird", "kube_controllers_": "kube-controllers"}

var metric = regexp.MustCompile(`\b(?:felix|typha|bird|calico|ipam|kube_controllers|process|go)_[a-z0-9_]+`)

// literals are the texts in the code of a folder, tests apart.
func literals(t *testing.T, folder string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	require.NoError(t, filepath.WalkDir(filepath.Join("..", folder), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if text, err := strconv.Unquote(l.Value); err == nil {
					out[text] = true
				}
			}
			return true
		})
		return nil
	}))
	return out
}

// Each metric that the dashboard asks for is one that the code has.
func TestMetricsOfTheDashboardAreThere(t *testing.T) {
	text, err := os.ReadFile("grafana/muslin.json")
	require.NoError(t, err)
	var board struct {
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &board))
	require.NotEmpty(t, board.UID)

	code := map[string]map[string]bool{}
	for _, folder := range []string{"felix", "typha", "bird", "ipam", "kube-controllers"} {
		code[folder] = literals(t, folder)
	}
	exists := func(name string) bool {
		if strings.HasPrefix(name, "process_") { // of the Prometheus client, which every daemon registers
			return name == "process_cpu_seconds_total" || name == "process_resident_memory_bytes"
		}
		for _, texts := range code {
			if texts[name] {
				return true
			}
		}
		for prefix, folder := range components {
			if rest, ok := strings.CutPrefix(name, prefix); ok && code[folder][rest] {
				return true
			}
		}
		return false
	}
	ids, asked := map[int]bool{}, 0
	for _, p := range board.Panels {
		require.False(t, ids[p.ID], "panel %d is there twice", p.ID)
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			names := metric.FindAllString(target.Expr, -1)
			require.NotEmpty(t, names, "%s: %s", p.Title, target.Expr)
			for _, name := range names {
				require.True(t, exists(name), "panel %q asks for %s, which no code has", p.Title, name)
				asked++
			}
		}
	}
	require.Greater(t, asked, 20)
	require.False(t, exists("felix_no_such_metric"))
}
