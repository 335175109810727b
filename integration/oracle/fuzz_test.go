package oracle_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
	"github.com/muslin-net/muslin/integration/oracle/generate"
	"github.com/muslin-net/muslin/integration/oracle/node"
)

// packetsOfAGuess is how many packets are asked about what a fuzzer makes up.
const packetsOfAGuess = 25

// FuzzPolicies has documents, which need not make sense, applied beside a world: what validation takes must mean the same to
// the oracle and to the rules, and what it refuses must at worst be closed.
func FuzzPolicies(f *testing.F) {
	files, err := filepath.Glob("testdata/recipes/*.yaml")
	require.NoError(f, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		for doc := range strings.SplitSeq(string(data), "\n---\n") {
			if strings.Contains(doc, "projectcalico.org/v3") || strings.Contains(doc, v1alpha2.GroupName) {
				f.Add(doc)
			}
		}
	}
	f.Fuzz(func(t *testing.T, doc string) {
		g := generate.New(12)
		w := g.World()
		if k, ok := clusterPolicy(doc); ok {
			w.Cluster = append(slices.Clone(w.Cluster), k)
			agree(t, g, w, packetsOfAGuess)
			return
		}
		objects, err := api.Decode([]byte(doc))
		if err != nil || len(objects) > 4 {
			return
		}
		w.Objects = slices.Clone(w.Objects)
		for _, o := range objects {
			switch o.(type) {
			case *api.WorkloadEndpoint, *api.Profile, *api.HostEndpoint: // not what this is about
				return
			}
			key := api.KeyOf(o)
			full := o.DeepCopyObject().(api.Object)
			if full.Default(); full.Validate() != nil {
				if o = api.Closed(o); o == nil {
					continue
				}
				full = o.DeepCopyObject().(api.Object)
				full.Default()
				require.NoError(t, full.Validate(), "what stands in for %s", key)
			}
			w.Objects = slices.DeleteFunc(w.Objects, func(other api.Object) bool { return api.KeyOf(other) == key })
			w.Objects = append(w.Objects, full)
		}
		agree(t, g, w, packetsOfAGuess)
	})
}

// clusterPolicy reads a ClusterNetworkPolicy. Its name is what Kubernetes takes for one.
func clusterPolicy(doc string) (k v1alpha2.ClusterNetworkPolicy, ok bool) {
	err := yaml.UnmarshalStrict([]byte(doc), &k)
	return k, err == nil && k.APIVersion == v1alpha2.GroupVersion.String() && k.Kind == "ClusterNetworkPolicy" && validation.IsDNS1123Subdomain(k.Name) == nil
}

// FuzzRules has the worlds themselves made by the bytes.
func FuzzRules(f *testing.F) {
	for n := range 12 {
		f.Add([]byte(strings.Repeat(string(rune('0'+7*n)), 20*n)))
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		g := generate.From(choices)
		agree(t, g, g.World(), packetsOfAGuess)
	})
}

// agree asks the oracle and each driver about packets.
func agree(t *testing.T, g *generate.Generator, w oracle.World, packets int) {
	c, err := oracle.New(w)
	require.NoError(t, err)
	fw := map[string]enforcer{}
	for name, driver := range drivers {
		fw[name], err = driver(node.Firewall(w, g.Settings(), generate.Node), w)
		require.NoError(t, err)
	}
	for range packets {
		way, p := g.Packet()
		want := c.Passes(way, p, g.Settings())
		for name := range fw {
			got, err := fw[name].passes(way, p)
			require.NoError(t, err)
			if want.Allowed != got.Allowed {
				require.Fail(t, "the rules do not mean what policy means", "%s, way %+v, packet %+v\noracle: %+v\nrules:  %+v\n%s", name, way, p, want, got, w.YAML())
			}
		}
	}
}
