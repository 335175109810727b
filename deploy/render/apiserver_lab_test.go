//go:build lab

package render_test

import (
	"context"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/muslin-net/muslin/deploy"
	"github.com/muslin-net/muslin/deploy/render"
	"github.com/muslin-net/muslin/integration/k8s"
)

// applier applies objects as kubectl apply --server-side does.
type applier struct {
	client dynamic.Interface
}

func newApplier(t *testing.T, s *k8s.Server) applier {
	t.Helper()
	config := s.Config(k8s.Admin)
	config.QPS = -1 // without a bound
	client, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	return applier{client}
}

// apply applies an object; what the server does not know of it is an error.
func (a applier) apply(t *testing.T, o *unstructured.Unstructured, dryRun bool) *unstructured.Unstructured {
	t.Helper()
	resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	var r dynamic.ResourceInterface = a.client.Resource(resource)
	if o.GetNamespace() != "" {
		r = a.client.Resource(resource).Namespace(o.GetNamespace())
	}
	body, err := o.MarshalJSON()
	require.NoError(t, err)
	force := true
	options := metav1.PatchOptions{FieldManager: "kubectl", FieldValidation: metav1.FieldValidationStrict, Force: &force}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	out, err := r.Patch(t.Context(), o.GetName(), types.ApplyPatchType, body, options)
	require.NoError(t, err, "%s %s", o.GetKind(), o.GetName())
	return out
}

// A real API server takes every manifest, and knows every field of it.
func TestTheAPIServerTakesAllManifests(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s, err := k8s.Start(ctx, t.TempDir(), func(text string) { t.Log(text) })
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Stop()) }()

	a := newApplier(t, s)
	var defined []schema.GroupVersionResource
	for _, f := range deploy.CRDs() {
		for _, o := range objects(t, f.Text) {
			a.apply(t, o, true)
			a.apply(t, o, false)
			if plural, ok, _ := unstructured.NestedString(o.Object, "spec", "names", "plural"); ok {
				defined = append(defined, schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: plural})
			}
		}
	}
	require.NotEmpty(t, defined)
	for _, resource := range defined { // the server serves a new kind when it has got round to it
		require.Eventually(t, func() bool {
			_, err := a.client.Resource(resource).List(ctx, metav1.ListOptions{})
			return err == nil
		}, 3*time.Minute, 50*time.Millisecond, resource.Resource)
	}

	texts := map[string][]byte{}
	for _, o := range overlays(t) {
		texts["overlay "+o] = rendered(t, o)
	}
	for name, text := range descriptions(t) {
		v, err := render.Parse(name, text)
		require.NoError(t, err)
		files, err := render.Manifests(v)
		require.NoError(t, err)
		texts[name] = render.Join(files...)
	}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		t.Run(name, func(t *testing.T) {
			all := objects(t, texts[name])
			for _, key := range slices.Sorted(maps.Keys(all)) {
				a.apply(t, all[key], true)
			}
		})
	}

	// The guides' way from IP-in-IP to VXLAN, on what runs already.
	t.Run("classic edit", func(t *testing.T) {
		for _, o := range objects(t, rendered(t, "ipip")) {
			a.apply(t, o, false)
		}
		node, err := os.ReadFile("../base/calico-node.yaml")
		require.NoError(t, err)
		config, err := os.ReadFile("../base/config.yaml")
		require.NoError(t, err)
		for _, text := range []string{string(node), string(config)} {
			for _, o := range objects(t, []byte(classicEdit(text))) {
				out := a.apply(t, o, false)
				if o.GetKind() != "DaemonSet" {
					continue
				}
				body, err := out.MarshalJSON()
				require.NoError(t, err)
				require.NotContains(t, string(body), "-bird-")
				require.EqualValues(t, 2, out.GetGeneration(), "the pods are replaced")
			}
		}
	})
}
