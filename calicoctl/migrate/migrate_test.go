package migrate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/calicoctl/migrate"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
)

var informationKey = api.Key{Kind: "ClusterInformation", Name: "default"}

func newDatastore(t *testing.T) (datastore.Client, *embedded.Server) {
	t.Helper()
	s, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	c, err := s.Client(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c, s
}

// calicos is the data of a cluster that real Calico wrote, locked.
func calicos(t *testing.T) datastore.Client {
	t.Helper()
	c, s := newDatastore(t)
	text, err := os.ReadFile("../verb/testdata/etcd.json")
	require.NoError(t, err)
	var keys map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &keys))
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, DialTimeout: 5 * time.Second})
	require.NoError(t, err)
	defer raw.Close()
	for key, value := range keys {
		_, err := raw.Put(t.Context(), key, string(value))
		require.NoError(t, err)
	}
	return c
}

func lock(t *testing.T, c datastore.Client) {
	t.Helper()
	o, err := c.Get(t.Context(), informationKey)
	require.NoError(t, err)
	o.(*api.ClusterInformation).Spec.DatastoreReady = new(false)
	_, err = c.Update(t.Context(), o)
	require.NoError(t, err)
}

func export(t *testing.T, c datastore.Client) (*migrate.Export, []byte) {
	t.Helper()
	var out bytes.Buffer
	n, err := migrate.WriteExport(t.Context(), c, "v1.2.3", &out)
	require.NoError(t, err)
	x, err := migrate.Read(bytes.NewReader(out.Bytes()))
	require.NoError(t, err)
	require.Len(t, x.Objects, n)
	return x, out.Bytes()
}

// withNodes is an empty datastore but for nodes, as Kubernetes has them.
func withNodes(t *testing.T, names ...string) datastore.Client {
	t.Helper()
	c, _ := newDatastore(t)
	for _, name := range names {
		_, err := c.Create(t.Context(), &api.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}})
		require.NoError(t, err)
	}
	return c
}

// contents are all objects without what differs between datastores.
func contents(t *testing.T, c datastore.Client) map[api.Key]string {
	t.Helper()
	out := map[api.Key]string{}
	for _, kind := range api.Kinds() {
		l, err := c.List(t.Context(), kind.Name, datastore.ListOptions{})
		require.NoError(t, err)
		for _, o := range l.Items {
			o.Default()
			o.SetUID("")
			o.SetResourceVersion("")
			o.SetCreationTimestamp(metav1.Time{})
			o.SetOwnerReferences(nil)
			text, err := api.Encode(o)
			require.NoError(t, err)
			out[api.KeyOf(o)] = string(text)
		}
	}
	return out
}

var nodesOfCalico = []string{"master", "worker-1", "worker-3"}

// What real Calico wrote comes out of the target as it went in, but for what Kubernetes has itself.
func TestCalicosDataMoves(t *testing.T) {
	t.Parallel()
	from := calicos(t)
	_, err := migrate.WriteExport(t.Context(), from, "v1.2.3", &bytes.Buffer{})
	require.ErrorContains(t, err, "not locked")
	lock(t, from)
	x, _ := export(t, from)

	_, err = migrate.Import(t.Context(), withNodes(t, "master"), x, false)
	require.ErrorContains(t, err, "worker-1, worker-3")

	to := withNodes(t, nodesOfCalico...)
	require.NoError(t, datastore.Init(t.Context(), to)) // an installation that was begun
	done, err := migrate.Import(t.Context(), to, x, false)
	require.NoError(t, err)
	require.False(t, done.Already)
	require.Contains(t, strings.Join(done.Left, "\n"), "5 workload endpoints that are no pods")

	want, have := contents(t, from), contents(t, to)
	for key, text := range want {
		switch key.Kind {
		case "WorkloadEndpoint", "Profile":
			require.NotContains(t, have, key)
		case "Node", "ClusterInformation": // have something of their own
			require.Contains(t, have, key)
		default:
			require.JSONEq(t, text, have[key], key)
		}
		delete(have, key)
	}
	require.Empty(t, have)
	o, err := to.Get(t.Context(), api.Key{Kind: "Node", Name: "worker-1"})
	require.NoError(t, err)
	require.Equal(t, "10.30.0.206/24", o.(*api.Node).Spec.BGP.IPv4Address)
	require.Equal(t, map[string]string{"rack": "a", "kubernetes.io/hostname": "worker-1"}, o.GetLabels())
	o, err = to.Get(t.Context(), informationKey)
	require.NoError(t, err)
	require.True(t, o.(*api.ClusterInformation).Locked())
	require.Equal(t, "0123456789abcdef0123456789abcdef", o.(*api.ClusterInformation).Spec.ClusterGUID)
	require.NoError(t, migrate.CheckFinished(o.(*api.ClusterInformation)))

	done, err = migrate.Import(t.Context(), to, x, false)
	require.NoError(t, err)
	require.True(t, done.Already)
}

// flaky fails from a write on.
type flaky struct {
	datastore.Client
	left int
}

var errFlaky = errors.New("the network is gone")

func (f *flaky) spend() error {
	if f.left--; f.left < 0 {
		return errFlaky
	}
	return nil
}

func (f *flaky) Create(ctx context.Context, o api.Object) (api.Object, error) {
	if err := f.spend(); err != nil {
		return nil, err
	}
	return f.Client.Create(ctx, o)
}

func (f *flaky) Update(ctx context.Context, o api.Object) (api.Object, error) {
	if err := f.spend(); err != nil {
		return nil, err
	}
	return f.Client.Update(ctx, o)
}

// An import that ends anywhere is known to be unfinished, goes on with the same file, and comes to the same.
func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	from := calicos(t)
	lock(t, from)
	x, _ := export(t, from)
	whole := withNodes(t, nodesOfCalico...)
	_, err := migrate.Import(t.Context(), whole, x, false)
	require.NoError(t, err)
	want := contents(t, whole)

	other := *x
	other.ID = "another"
	for _, writes := range []int{1, 2, 9, 20, 33} {
		to := withNodes(t, nodesOfCalico...)
		_, err := migrate.Import(t.Context(), &flaky{Client: to, left: writes}, x, false)
		require.ErrorIs(t, err, errFlaky)
		require.ErrorContains(t, err, "run the same command again")
		o, err := to.Get(t.Context(), informationKey)
		require.NoError(t, err)
		require.True(t, o.(*api.ClusterInformation).Locked())
		require.ErrorContains(t, migrate.CheckFinished(o.(*api.ClusterInformation)), "has not finished")
		_, err = migrate.Import(t.Context(), to, &other, false)
		require.ErrorContains(t, err, "--overwrite")

		_, err = migrate.Import(t.Context(), to, x, false)
		require.NoError(t, err, "after %d writes", writes)
		require.Equal(t, want, contents(t, to))
	}
	to := withNodes(t, nodesOfCalico...)
	_, err = migrate.Import(t.Context(), &flaky{Client: to, left: 5}, x, false)
	require.Error(t, err)
	_, err = migrate.Import(t.Context(), to, &other, true)
	require.NoError(t, err)
	_, err = migrate.Import(t.Context(), to, x, false)
	require.ErrorContains(t, err, "another export has been imported")
}

func TestImportWantsAnEmptyDatastore(t *testing.T) {
	t.Parallel()
	from := calicos(t)
	lock(t, from)
	x, _ := export(t, from)
	to := withNodes(t, nodesOfCalico...)
	pool := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: api.IPPoolSpec{CIDR: "10.9.0.0/16"}}
	_, err := to.Create(t.Context(), pool)
	require.NoError(t, err)
	_, err = migrate.Import(t.Context(), to, x, false)
	require.ErrorContains(t, err, "not empty: it has IPPool(mine)")
	_, err = to.Get(t.Context(), informationKey)
	require.ErrorIs(t, err, datastore.ErrNotFound, "nothing was written")
}

// A file that was cut off anywhere, or changed, is not imported.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	from := calicos(t)
	lock(t, from)
	_, text := export(t, from)
	lines := bytes.SplitAfter(text, []byte("\n"))
	for n := range len(lines) - 1 {
		_, err := migrate.Read(bytes.NewReader(bytes.Join(lines[:n], nil)))
		require.Error(t, err, "after line %d", n)
	}
	for name, damage := range map[string]func([][]byte) [][]byte{
		"a line less": func(l [][]byte) [][]byte { return slices.Delete(l, 3, 4) },
		"a line more": func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[4]) },
		"a change":    func(l [][]byte) [][]byte { l[2] = bytes.Replace(l[2], []byte("name"), []byte("Name"), 1); return l },
		"two exports": func(l [][]byte) [][]byte { return append(l, l...) },
		"no header":   func(l [][]byte) [][]byte { return l[1:] },
		"no JSON":     func(l [][]byte) [][]byte { l[1] = []byte("{\n"); return l },
	} {
		_, err := migrate.Read(bytes.NewReader(bytes.Join(damage(slices.Clone(lines)), nil)))
		require.Error(t, err, name)
	}
}

// Objects that other systems know by their identity are found again: owners are told with the target's.
func TestOwnersFollow(t *testing.T) {
	t.Parallel()
	from := calicos(t)
	set := &api.GlobalNetworkSet{ObjectMeta: metav1.ObjectMeta{Name: "owned", UID: types.UID("22222222-0000-0000-0000-000000000000")}}
	owner, err := from.Get(t.Context(), api.Key{Kind: "GlobalNetworkPolicy", Name: "host-guard"}) // comes later
	require.NoError(t, err)
	set.OwnerReferences = []metav1.OwnerReference{
		{APIVersion: api.GroupVersion, Kind: "GlobalNetworkPolicy", Name: "host-guard", UID: owner.GetUID()},
		{APIVersion: "v1", Kind: "ConfigMap", Name: "elsewhere", UID: "33333333-0000-0000-0000-000000000000"},
	}
	_, err = from.Create(t.Context(), set)
	require.NoError(t, err)
	lock(t, from)
	x, _ := export(t, from)
	to := withNodes(t, nodesOfCalico...)
	_, err = migrate.Import(t.Context(), to, x, false)
	require.NoError(t, err)
	now, err := to.Get(t.Context(), api.KeyOf(owner))
	require.NoError(t, err)
	require.NotEqual(t, owner.GetUID(), now.GetUID())
	moved, err := to.Get(t.Context(), api.KeyOf(set))
	require.NoError(t, err)
	require.Equal(t, []metav1.OwnerReference{{APIVersion: api.GroupVersion, Kind: "GlobalNetworkPolicy", Name: "host-guard", UID: now.GetUID()}}, moved.GetOwnerReferences())
}

// A node that has another name in Kubernetes gets it wherever it is named.
func TestNodesTakeTheirKubernetesNames(t *testing.T) {
	t.Parallel()
	from := calicos(t)
	o, err := from.Get(t.Context(), api.Key{Kind: "Node", Name: "worker-1"})
	require.NoError(t, err)
	o.(*api.Node).Spec.OrchRefs = []api.OrchRef{{Orchestrator: "k8s", NodeName: "ip-10-30-0-206"}}
	_, err = from.Update(t.Context(), o)
	require.NoError(t, err)
	lock(t, from)
	x, text := export(t, from)
	names := map[string]bool{}
	for _, o := range x.Objects {
		names[api.KeyOf(o).String()] = true
		if kind := api.KindOf(o).Name; kind == "IPAMBlock" || kind == "BlockAffinity" || kind == "HostEndpoint" {
			require.NoError(t, o.Validate())
			line, err := api.Encode(o)
			require.NoError(t, err)
			require.NotContains(t, string(line), `:worker-1"`)
			require.NotContains(t, string(line), `"node":"worker-1"`)
		}
	}
	require.Contains(t, names, "Node(ip-10-30-0-206)")
	require.Contains(t, names, "BGPConfiguration(node.ip-10-30-0-206)")
	require.Contains(t, names, "BlockAffinity(host/ip-10-30-0-206/192.168.226.64/26)")
	require.Contains(t, string(text), `"affinity":"host:ip-10-30-0-206"`)

	master, err := from.Get(t.Context(), api.Key{Kind: "Node", Name: "master"})
	require.NoError(t, err)
	master.(*api.Node).Spec.OrchRefs = []api.OrchRef{{Orchestrator: "k8s", NodeName: "ip-10-30-0-206"}}
	_, err = from.Update(t.Context(), master)
	require.NoError(t, err)
	_, err = migrate.WriteExport(t.Context(), from, "v1.2.3", &bytes.Buffer{})
	require.ErrorContains(t, err, "master and worker-1 both say that they are node ip-10-30-0-206")
}

func TestPolicyNames(t *testing.T) {
	t.Parallel()
	c, _ := newDatastore(t)
	policy := func(name, selector, tier string) *api.GlobalNetworkPolicy {
		p := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"own": "yes"}}}
		p.Spec.Selector, p.Spec.Tier = selector, tier
		return p
	}
	for _, p := range []*api.GlobalNetworkPolicy{
		policy("default.a", "all()", "default"), policy("default.b", "all()", ""), policy("b", "all()", "default"),
		policy("default.c", "all()", "security"), policy("plain", "all()", "default"),
	} {
		_, err := c.Create(t.Context(), p)
		require.NoError(t, err)
	}
	renamed, err := migrate.PolicyNames(t.Context(), c)
	require.NoError(t, err)
	require.Len(t, renamed, 2)
	names := func() (out []string) {
		l, err := c.List(t.Context(), "GlobalNetworkPolicy", datastore.ListOptions{})
		require.NoError(t, err)
		for _, o := range l.Items {
			require.Equal(t, "yes", o.GetLabels()["own"])
			out = append(out, o.GetName())
		}
		return out
	}
	require.Equal(t, []string{"a", "b", "default.c", "plain"}, names())
	_, err = c.Create(t.Context(), policy("default.plain", "has(x)", "default"))
	require.NoError(t, err)
	_, err = migrate.PolicyNames(t.Context(), c)
	require.ErrorContains(t, err, "GlobalNetworkPolicy(default.plain) cannot become GlobalNetworkPolicy(plain)")
	require.Contains(t, names(), "default.plain")
}
