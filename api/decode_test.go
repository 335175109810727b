package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// keys decodes a stream and tells what was in it.
func keys(t *testing.T, text string) []string {
	t.Helper()
	objects, err := api.Decode([]byte(text))
	require.NoError(t, err)
	found := []string{}
	for _, o := range objects {
		found = append(found, api.KeyOf(o).String())
	}
	return found
}

func TestDecodeStreams(t *testing.T) {
	pool := func(name string) string {
		return "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: " + name + "}\nspec: {cidr: 10.0.0.0/16}\n"
	}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing":                     {"", []string{}},
		"comments only":               {"# nothing\n---\n# here\n", []string{}},
		"null":                        {"null\n---\n" + pool("a"), []string{"IPPool(a)"}},
		"one document":                {pool("a"), []string{"IPPool(a)"}},
		"a byte order mark":           {"\xef\xbb\xbf" + pool("a"), []string{"IPPool(a)"}},
		"several documents":           {pool("a") + "---\n" + pool("b") + "--- # and\n" + pool("c"), []string{"IPPool(a)", "IPPool(b)", "IPPool(c)"}},
		"separators at both ends":     {"---\n" + pool("a") + "---\n", []string{"IPPool(a)"}},
		"dashes inside a document":    {pool("a") + "# ---- not a separator\n", []string{"IPPool(a)"}},
		"lines that end as on DOS":    {strings.ReplaceAll(pool("a")+"---\n"+pool("b"), "\n", "\r\n"), []string{"IPPool(a)", "IPPool(b)"}},
		"JSON":                        {`{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{}}`, []string{"Tier(a)"}},
		"a JSON array":                {`[{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{}}]`, []string{"Tier(a)"}},
		"a YAML sequence":             {"- " + strings.ReplaceAll(strings.TrimSpace(pool("a")), "\n", "\n  "), []string{"IPPool(a)"}},
		"kind List":                   {`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{}}]}`, []string{"Tier(a)"}},
		"a list of one kind":          {`{"apiVersion":"projectcalico.org/v3","kind":"TierList","metadata":{"resourceVersion":"1"},"items":[{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{}}]}`, []string{"Tier(a)"}},
		"an empty list":               {`{"apiVersion":"v1","kind":"List","items":[]}`, []string{}},
		"the same name twice, apart":  {"apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: a, namespace: b}\nspec: {}\n---\napiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: a, namespace: c}\nspec: {}", []string{"NetworkSet(b/a)", "NetworkSet(c/a)"}},
		"null for a field":            {"apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: a, creationTimestamp: null}\nspec: {order: null}", []string{"Tier(a)"}},
		"a document on the separator": {`--- {"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{}}`, []string{"Tier(a)"}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, keys(t, c.text)) })
	}
}

// TestDecodeErrors holds what is said about streams; testdata/bad/documents.yaml has the single documents.
func TestDecodeErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a key twice in YAML": {
			"apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: a}\n---\n\nkind: Tier\nspec: {}\nspec: {}\n",
			"document 2: spec: line 8: is given twice; keep one of the two",
		},
		"a key twice in JSON": {
			`{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"},"spec":{"order":1,"order":2}}`,
			"document 1, Tier(a): spec.order: is given twice; keep one of the two",
		},
		"the same object twice": {
			"apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: a}\nspec: {}\n---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: a}\nspec: {}",
			`document 2, Tier(a): metadata.name: "a": the same object is also in document 1, Tier(a); keep one of the two`,
		},
		"no YAML": {
			"# first\n---\n\nkind: {a",
			"document 1: is neither YAML nor JSON: line 4: did not find expected ',' or '}'; correct the document there; mind the indentation",
		},
		"a scalar": {
			"just words",
			"document 1: \"just words\": is not an object; write apiVersion, kind, metadata and spec",
		},
		"items that are no list": {
			"apiVersion: v1\nkind: List\nitems: {}\n",
			"document 1: items: {}: is not a list; list the objects under items",
		},
		"inside a list": {
			"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: a}, spec: {oder: 1}}\n",
			"document 1, items[0], Tier(a): spec.oder: 1: field in document is not recognized or is in the wrong location: oder; did you mean order?",
		},
		"every fault at once": {
			"apiVersion: v3\nkind: Tier\n---\nkind: Pool\napiVersion: projectcalico.org/v3\n",
			"document 1: apiVersion: \"v3\": is not an API version that is served here; write apiVersion: projectcalico.org/v3\n" +
				"document 2: kind: \"Pool\": is not how the kind is written in documents; write kind: IPPool",
		},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := api.Decode([]byte(c.text))
			require.Nil(t, objects)
			require.EqualError(t, err, c.want)
			var errs api.Errors
			require.ErrorAs(t, err, &errs)
			var one api.Error
			require.ErrorAs(t, err, &one)
		})
	}
}

// TestRegistry: the list of kinds is whole, its names are unique, and every name finds its kind.
func TestRegistry(t *testing.T) {
	require.Len(t, api.Kinds(), 27)
	taken := map[string]string{}
	for _, kind := range api.Kinds() {
		require.Equal(t, kind.Name, api.KindOf(kind.New()).Name, "a kind's Go type has its name")
		o, err := api.New(kind.Name)
		require.NoError(t, err)
		require.Equal(t, "projectcalico.org/v3, Kind="+kind.Name, o.GetObjectKind().GroupVersionKind().String())
		singular := strings.ToLower(kind.Name)
		names := map[string]bool{singular: true, kind.Plural: true}
		for _, alias := range kind.Aliases {
			require.Equal(t, strings.ToLower(alias), alias)
			names[alias] = true
		}
		for name := range names {
			require.Empty(t, taken[name], "%s stands for two kinds", name)
			taken[name] = kind.Name
			for _, spelling := range []string{name, strings.ToUpper(name), kind.Name} {
				found, ok := api.LookupKind(spelling)
				require.True(t, ok, spelling)
				require.Equal(t, kind.Name, found.Name)
			}
		}
	}
	// spec §8.1
	for name, aliases := range map[string]string{
		"BGPConfiguration": "bgpconfig", "BGPFilter": "bgpf bf", "BGPPeer": "bgpp bp", "CalicoNodeStatus": "nodestatus",
		"ClusterInformation": "clusterinfo", "FelixConfiguration": "felixconfig", "GlobalNetworkPolicy": "gnp",
		"GlobalNetworkSet": "gnetsets", "HostEndpoint": "hep heps", "IPAMConfiguration": "ipamconfig", "IPPool": "ipp pool pools",
		"IPReservation": "reservation", "NetworkPolicy": "np policy pol", "NetworkSet": "netsets", "Node": "no", "Profile": "pro",
		"StagedNetworkPolicy": "snp", "StagedGlobalNetworkPolicy": "sgnp", "StagedKubernetesNetworkPolicy": "sknp", "WorkloadEndpoint": "wep",
	} {
		for alias := range strings.FieldsSeq(aliases) {
			require.Equal(t, name, taken[alias], alias)
		}
	}
	_, ok := api.LookupKind("widget")
	require.False(t, ok)
	_, err := api.New("Widget")
	require.ErrorContains(t, err, `there is no kind "Widget"`)

	kinds := api.Kinds()
	kinds[0].Name = "changed"
	require.NotEqual(t, "changed", api.Kinds()[0].Name, "the registry can be changed from outside")
}

// TestLimits: lists and texts have a most.
func TestLimits(t *testing.T) {
	repeat := func(n int, format string) string {
		items := make([]string, n)
		for i := range items {
			items[i] = fmt.Sprintf(format, i/250, i%250)
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	for name, c := range map[string]struct{ kind, spec, meta, want string }{
		"rules":          {"GlobalNetworkPolicy", "{ingress: " + repeat(1025, "{action: Allow, source: {nets: [10.0.%d.%d]}}") + "}", "", "spec.ingress: 1025: is the number of items, but 1024 is the most"},
		"nets":           {"GlobalNetworkPolicy", "{ingress: [{action: Allow, source: {nets: " + repeat(257, "10.0.%d.%d") + "}}]}", "", "spec.ingress[0].source.nets: 257: is the number of items, but 256 is the most"},
		"notNets":        {"GlobalNetworkPolicy", "{egress: [{action: Allow, destination: {notNets: " + repeat(257, "10.0.%d.%d") + "}}]}", "", "spec.egress[0].destination.notNets: 257: is the number of items, but 256 is the most"},
		"ports":          {"GlobalNetworkPolicy", "{ingress: [{action: Allow, protocol: TCP, source: {ports: " + repeat(51, "1%d%03d") + "}}]}", "", "spec.ingress[0].source.ports: 51: is the number of items, but 50 is the most"},
		"communities":    {"BGPConfiguration", "{communities: " + repeat(501, "{name: c%d-%d, value: \"1:2\"}") + ", prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: [\"1:2\"]}]}", "", "spec.communities: 501: is the number of items, but 500 is the most"},
		"advertisements": {"BGPConfiguration", "{prefixAdvertisements: " + repeat(501, "{cidr: 10.0.%d.%d, communities: [\"1:2\"]}") + "}", "", "spec.prefixAdvertisements: 501: is the number of items, but 500 is the most"},
		"of one prefix":  {"BGPConfiguration", "{prefixAdvertisements: [{cidr: 10.0.0.0/8, communities: " + repeat(51, "\"%d:%d\"") + "}]}", "", "spec.prefixAdvertisements[0].communities: 51: is the number of items, but 50 is the most"},
		"annotations":    {"Tier", "{}", ", annotations: {a: " + strings.Repeat("x", 256<<10) + "}", "metadata.annotations: 262145: is the size of the annotations in bytes; keep them under 262144 bytes together"},
	} {
		t.Run(name, func(t *testing.T) {
			err := judgeGo("apiVersion: projectcalico.org/v3\nkind: " + c.kind + "\nmetadata: {name: default" + c.meta + "}\nspec: " + c.spec)
			require.ErrorContains(t, err, c.want)
			require.Len(t, err, 1)
		})
	}
}
