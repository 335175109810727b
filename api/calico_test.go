package api_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

const calicoResources = "/calico/resources/v3/projectcalico.org/"

// calicoStored is what real Calico wrote into etcd, by kind and object: the resources of this API group.
func calicoStored(t *testing.T) map[api.Key]json.RawMessage {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "calico", "etcd.json"))
	require.NoError(t, err)
	var all map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &all))
	stored := map[api.Key]json.RawMessage{}
	for path, value := range all {
		rest, ok := strings.CutPrefix(path, calicoResources)
		if !ok {
			continue
		}
		parts := strings.Split(rest, "/")
		kind, ok := api.LookupKind(parts[0])
		require.True(t, ok, path)
		key := api.Key{Kind: kind.Name, Name: parts[len(parts)-1]}
		if kind.Namespaced {
			key.Namespace = parts[1]
		}
		stored[key] = value
	}
	require.Equal(t, 31, len(stored))
	return stored
}

// TestCalicoRoundTrip reads each object that real Calico stored, and writes it back without loss; also when something
// was changed in between.
func TestCalicoRoundTrip(t *testing.T) {
	for key, value := range calicoStored(t) {
		t.Run(key.String(), func(t *testing.T) {
			o, err := api.DecodeStored(api.MustKind(key.Kind), value)
			require.NoError(t, err)
			require.Equal(t, key, api.KeyOf(o))
			require.NoError(t, o.Validate())

			back, err := api.Encode(o)
			require.NoError(t, err)
			require.JSONEq(t, string(value), string(back))

			changed := o.DeepCopyObject().(api.Object)
			changed.SetAnnotations(map[string]string{"muslin/changed": "yes"})
			back, err = api.Encode(changed)
			require.NoError(t, err)
			want := numbers(t, value)
			want["metadata"].(map[string]any)["annotations"] = map[string]any{"muslin/changed": "yes"}
			require.Equal(t, want, numbers(t, back))
		})
	}
}

// TestCalicoDefaults holds our defaults against those of real Calico: the documents that were applied with its calicoctl
// give the specs that it stored, but for what is listed here with its reason.
func TestCalicoDefaults(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "calico", "resources.yaml"))
	require.NoError(t, err)
	objects, err := api.Decode(text)
	require.NoError(t, err)
	require.Len(t, objects, 21)
	stored := calicoStored(t)
	for _, o := range objects {
		key := api.KeyOf(o)
		t.Run(key.String(), func(t *testing.T) {
			requireGood(t, o)
			text, err := api.Encode(o)
			require.NoError(t, err)
			ours, theirs := numbers(t, text), numbers(t, stored[key])
			require.NotNil(t, theirs)
			spec := theirs["spec"].(map[string]any)
			switch key.Kind {
			case "FelixConfiguration": // a default in one layer would overrule what a wider one says
				for _, name := range []string{"bpfConnectTimeLoadBalancing", "bpfHostNetworkedNATWithoutCTLB", "bpfLogLevel", "floatingIPs", "nftablesFlowTableOffload"} {
					require.Contains(t, spec, name)
					delete(spec, name)
				}
				delete(spec, "nftablesMode")
			case "BGPConfiguration": // likewise
				if key.Name != api.DefaultName {
					delete(spec, "serviceLoadBalancerAggregation")
				}
			}
			require.Equal(t, theirs["spec"], ours["spec"])
			require.Equal(t, theirs["metadata"].(map[string]any)["labels"], ours["metadata"].(map[string]any)["labels"])
		})
	}
}
