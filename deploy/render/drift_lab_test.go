//go:build k8s

package render_test

import (
	"bytes"
	"cmp"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// tool runs one of the tools of deploy/tools.
func tool(t *testing.T, args ...string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "-C", "../tools"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "%s\n%s", args, &errs)
	return out.Bytes()
}

// unordered sorts the lists whose order means nothing: those that kustomize merges by name.
func unordered(value any) any {
	switch v := value.(type) {
	case map[string]any:
		for key, item := range v {
			v[key] = unordered(item)
			if list, ok := item.([]any); ok && slices.Contains([]string{"containers", "env", "volumes", "volumeMounts"}, key) {
				slices.SortFunc(list, func(a, b any) int {
					return cmp.Compare(a.(map[string]any)["name"].(string), b.(map[string]any)["name"].(string))
				})
			}
		}
	case []any:
		for i := range v {
			v[i] = unordered(v[i])
		}
	}
	return value
}

// text is an object for people to compare.
func text(t *testing.T, o *unstructured.Unstructured) string {
	t.Helper()
	out, err := yaml.Marshal(unordered(o.DeepCopy().Object))
	require.NoError(t, err)
	return string(out)
}

func same(t *testing.T, want, have map[string]*unstructured.Unstructured) {
	t.Helper()
	for key, w := range want {
		require.Contains(t, have, key)
		require.Equal(t, text(t, w), text(t, have[key]), key)
	}
	for key := range have {
		require.Contains(t, want, key)
	}
}

// Overlays, chart and this package are three ways to the same manifests.
func TestKustomizeHelmAndRenderAgree(t *testing.T) {
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	for _, overlay := range overlays(t) {
		t.Run(overlay, func(t *testing.T) {
			want := objects(t, rendered(t, overlay))
			same(t, want, objects(t, tool(t, "kustomize", "build", filepath.Join(root, "overlays", overlay))))
			same(t, want, objects(t, tool(t, "helm", "template", "muslin", filepath.Join(root, "chart"), "--include-crds", "--kube-version", "1.35.0",
				"--namespace", "kube-system", "-f", filepath.Join(root, "overlays", overlay, "values.yaml"))))
		})
	}
	tool(t, "helm", "lint", "--strict", "--kube-version", "1.35.0", filepath.Join(root, "chart"))
}
