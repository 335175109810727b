package kubernetes

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
)

const (
	uid      types.UID = "30316465-6365-4463-ad63-3564622d3638"
	reversed types.UID = "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c"
)

func kindOf(t *testing.T, name string) api.Kind {
	t.Helper()
	k, ok := api.LookupKind(name)
	require.True(t, ok)
	return k
}

func TestNames(t *testing.T) {
	nativeLayout, classicLayout := &layout{group: nativeGroup}, &layout{group: classicGroup, classic: true}
	long := strings.Repeat("n", 250)
	for _, c := range []struct {
		layout     *layout
		kind, name string
		want       []string
	}{
		{nativeLayout, "IPPool", "a.b", []string{"a.b"}},
		{nativeLayout, "IPAMBlock", "10.9.0.4/30", []string{"10-9-0-4-30"}},
		{nativeLayout, "IPAMBlock", "fd00:10::/122", []string{"fd00-10---122"}},
		{nativeLayout, "BlockAffinity", "host/node-a/10.9.0.4/30", []string{"node-a-10-9-0-4-30"}},
		{nativeLayout, "BlockAffinity", "virtual/load-balancer/10.9.0.4/30", []string{"load-balancer-10-9-0-4-30"}},
		{nativeLayout, "IPAMHandle", "k8s-pod-network.4F1c", []string{"k8s-pod-network.4f1c"}},
		{nativeLayout, "NetworkPolicy", "web", []string{"web"}},
		{classicLayout, "NetworkPolicy", "web", []string{"web", "default.web"}},
		{classicLayout, "GlobalNetworkPolicy", "web", []string{"web", "default.web"}},
		{classicLayout, "IPPool", "a", []string{"a"}},
	} {
		got, err := c.layout.names(kindOf(t, c.kind), api.Key{Kind: c.kind, Name: c.name})
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, "%s %s", c.kind, c.name)
	}
	short := affinityName(long, netip.MustParsePrefix("10.9.0.4/30"))
	require.Len(t, short, 252)
	require.Regexp(t, `^n{228}-10-9-0-4-30-[0-9a-f]{11}$`, short)
	for _, bad := range []struct{ kind, name string }{
		{"IPPool", "a/b"}, {"IPPool", ".."}, {"IPAMBlock", "10.9.0.5/30"}, {"IPAMBlock", "x"}, {"BlockAffinity", "node/10.0.0.0/26"},
	} {
		_, err := nativeLayout.names(kindOf(t, bad.kind), api.Key{Kind: bad.kind, Name: bad.name})
		require.ErrorContains(t, err, bad.name)
	}
}

// stored is what a server would answer to a document.
func stored(t *testing.T, body []byte, more string) *document {
	t.Helper()
	doc, meta := fields{}, fields{}
	require.NoError(t, json.Unmarshal(body, &doc))
	require.NoError(t, json.Unmarshal(doc["metadata"], &meta))
	require.NoError(t, json.Unmarshal([]byte(more), &meta))
	doc.set("metadata", meta)
	text, err := json.Marshal(doc)
	require.NoError(t, err)
	d := &document{}
	require.NoError(t, json.Unmarshal(text, d))
	return d
}

// TestClassic writes objects in the classic form and reads them again.
func TestClassic(t *testing.T) {
	l := &layout{group: classicGroup, classic: true}
	set := &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{
		Name: "a", UID: "x", ResourceVersion: "7", Labels: map[string]string{"role": "front", "projectcalico.org/tier": "x"},
		Annotations: map[string]string{"note": "y"}, OwnerReferences: []metav1.OwnerReference{{APIVersion: api.GroupVersion, Kind: "Tier", Name: "t", UID: reversed}},
	}}
	set.Spec.Nets = []string{"192.0.2.0/24"}
	body, err := l.encode(kindOf(t, "GlobalNetworkSet"), set, "a")
	require.NoError(t, err)
	require.JSONEq(t, `{"apiVersion":"crd.projectcalico.org/v1","kind":"GlobalNetworkSet","metadata":{"name":"a","resourceVersion":"7",
		"labels":{"projectcalico.org/tier":"x"},
		"ownerReferences":[{"apiVersion":"crd.projectcalico.org/v1","kind":"Tier","name":"t","uid":"`+string(uid)+`"}],
		"annotations":{"projectcalico.org/metadata":`+quoted(t, `{"labels":{"projectcalico.org/tier":"x","role":"front"},"annotations":{"note":"y"},"ownerReferences":[{"apiVersion":"crd.projectcalico.org/v1","kind":"Tier","name":"t","uid":"`+string(uid)+`"}]}`)+`}},
		"spec":{"nets":["192.0.2.0/24"]}}`, string(body))

	it, err := l.decode(kindOf(t, "GlobalNetworkSet"), stored(t, body, `{"uid":"`+string(uid)+`","creationTimestamp":"2026-01-01T00:00:00Z","generation":3,"managedFields":[{"manager":"m"}]}`))
	require.NoError(t, err)
	got := it.object.(*api.GlobalNetworkSet)
	require.Equal(t, reversed, got.UID)
	require.Equal(t, "7", got.ResourceVersion)
	require.Equal(t, set.Labels, got.Labels)
	require.Equal(t, set.Annotations, got.Annotations)
	require.Equal(t, set.OwnerReferences, got.OwnerReferences)
	require.Equal(t, set.Spec, got.Spec)
	require.Equal(t, int64(3), got.Generation)
	require.Empty(t, got.ManagedFields)
	require.Equal(t, 2026, got.CreationTimestamp.Year())
}

func quoted(t *testing.T, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	require.NoError(t, err)
	return string(b)
}

// TestClassicPolicyNames reads policies as several versions named them.
func TestClassicPolicyNames(t *testing.T) {
	l := &layout{group: classicGroup, classic: true}
	for _, c := range []struct{ name, annotation, tier, want string }{
		{"default.web", "", "", "web"},
		{"default.web", "", "default", "web"},
		{"web", "", "default", "web"},
		{"ops.web", "", "ops", "ops.web"},
		{"default.web", "", "ops", "default.web"},
		{"default.web", `{"labels":{"a":"b"}}`, "default", "web"},
		{"default.web", `{"name":"default.web"}`, "default", "default.web"},
		{"web", `{"name":"web"}`, "", "web"},
	} {
		annotations := ""
		if c.annotation != "" {
			annotations = `,"annotations":{"projectcalico.org/metadata":` + quoted(t, c.annotation) + `}`
		}
		d := &document{}
		require.NoError(t, json.Unmarshal([]byte(`{"apiVersion":"crd.projectcalico.org/v1","kind":"NetworkPolicy","metadata":{"namespace":"shop","name":"`+c.name+`"`+annotations+`},"spec":{"tier":"`+c.tier+`"}}`), d))
		it, err := l.decode(kindOf(t, "NetworkPolicy"), d)
		require.NoError(t, err)
		require.Equal(t, api.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: c.want}, it.key, "%+v", c)
		require.Equal(t, c.want, it.object.GetName())
	}
}

// TestClassicIPAM has the values of address management as classic clusters have them (spec §5.1).
func TestClassicIPAM(t *testing.T) {
	l := &layout{group: classicGroup, classic: true}
	affinity := api.NewBlockAffinity(api.AffinityHost, "node-a", netip.MustParsePrefix("10.9.0.4/30"), api.AffinityConfirmed)
	body, err := l.encode(kindOf(t, "BlockAffinity"), affinity, "node-a-10-9-0-4-30")
	require.NoError(t, err)
	var doc struct {
		Metadata metav1.ObjectMeta
		Spec     map[string]any
	}
	require.NoError(t, json.Unmarshal(body, &doc))
	require.Equal(t, map[string]any{"state": "confirmed", "node": "node-a", "type": "host", "cidr": "10.9.0.4/30", "deleted": "false"}, doc.Spec)
	require.Equal(t, "host", doc.Metadata.Labels["projectcalico.org/affinity-type"])
	require.Equal(t, "4", doc.Metadata.Labels["projectcalico.org/ip-version"])
	require.Regexp(t, `^[A-Z2-7]{52}$`, doc.Metadata.Labels["projectcalico.org/hostname-hash"])
	it, err := l.decode(kindOf(t, "BlockAffinity"), stored(t, body, `{}`))
	require.NoError(t, err)
	require.Equal(t, affinity.Spec, it.object.(*api.BlockAffinity).Spec)
	require.Equal(t, "host/node-a/10.9.0.4/30", it.key.Name)
	require.False(t, it.ended)

	body, err = l.encode(kindOf(t, "BlockAffinity"), marked(affinity), "node-a-10-9-0-4-30")
	require.NoError(t, err)
	require.Contains(t, string(body), `"deleted":"true"`)
	it, err = l.decode(kindOf(t, "BlockAffinity"), stored(t, body, `{}`))
	require.NoError(t, err)
	require.True(t, it.ended)

	const block = `{"apiVersion":"crd.projectcalico.org/v1","kind":"IPAMBlock","metadata":{"name":"10-9-0-4-30"},
		"spec":{"cidr":"10.9.0.4/30","affinity":"host:node-a","allocations":[0,null,1,null],"unallocated":[3,1],
		"attributes":[{"handle_id":"k8s-pod-network.4f1c"},{"releasedAt":"2026-08-22T10:05:00Z"}],"sequenceNumber":1787392800000000005,
		"sequenceNumberForAllocation":{"0":1787392800000000000},"deleted":false,"strictAffinity":false,"later":{"x":1}}}`
	it, err = l.decode(kindOf(t, "IPAMBlock"), stored(t, []byte(block), `{}`))
	require.NoError(t, err)
	b := it.object.(*api.IPAMBlock)
	require.Equal(t, "10.9.0.4/30", b.Name)
	require.Equal(t, uint64(1787392800000000005), b.Spec.SequenceNumber)
	body, err = l.encode(kindOf(t, "IPAMBlock"), b, "10-9-0-4-30")
	require.NoError(t, err)
	var want, got struct{ Spec json.RawMessage }
	require.NoError(t, json.Unmarshal([]byte(block), &want))
	require.NoError(t, json.Unmarshal(body, &got))
	require.JSONEq(t, string(want.Spec), string(got.Spec), "what is not known here stays")
}

// TestUnreadable tells what is wrong, and as much of the key as there is.
func TestUnreadable(t *testing.T) {
	l := &layout{group: classicGroup, classic: true}
	for _, text := range []string{
		`{"kind":"IPPool","metadata":{"name":"a","annotations":{"projectcalico.org/metadata":"x"}},"spec":{}}`,
		`{"kind":"IPPool","metadata":{"name":"a"},"spec":{"cidr":7}}`,
	} {
		d := &document{}
		require.NoError(t, json.Unmarshal([]byte(text), d))
		it, err := l.decode(kindOf(t, "IPPool"), d)
		require.Error(t, err)
		require.Equal(t, api.Key{Kind: "IPPool", Name: "a"}, it.key)
	}
}
