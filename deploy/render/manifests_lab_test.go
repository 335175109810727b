//go:build lab || k8s

package render_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	decoder "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/muslin-net/muslin/deploy"
	"github.com/muslin-net/muslin/deploy/render"
)

// overlays are the names of kustomize's overlays.
func overlays(t *testing.T) (out []string) {
	t.Helper()
	entries, err := os.ReadDir("../overlays")
	require.NoError(t, err)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	require.NotEmpty(t, out)
	return out
}

// objects reads manifests, by kind, namespace and name.
func objects(t *testing.T, text []byte) map[string]*unstructured.Unstructured {
	t.Helper()
	out := map[string]*unstructured.Unstructured{}
	for d := decoder.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		if len(o.Object) == 0 {
			continue
		}
		key := fmt.Sprintf("%s %s/%s", o.GetKind(), o.GetNamespace(), o.GetName())
		require.NotContains(t, out, key, "twice")
		out[key] = o
	}
}

// rendered are the manifests for the values of an overlay, by this package.
func rendered(t *testing.T, overlay string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../overlays", overlay, "values.yaml"))
	require.NoError(t, err)
	v, err := render.Defaults().With(text)
	require.NoError(t, err)
	files, err := render.Manifests(v)
	require.NoError(t, err)
	return render.Join(append(deploy.CRDs(), files...)...)
}
