package etcd_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/etcd"
)

var update = flag.Bool("update", false, "rewrite golden files")

// server starts an etcd for one test, and returns it with a raw client.
func server(t *testing.T, cfg embedded.Config) (*embedded.Server, *clientv3.Client) {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := embedded.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { raw.Close() })
	return s, raw
}

func client(t *testing.T, cfg etcd.Config) *etcd.Client {
	t.Helper()
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, 30*time.Second) // the machine may be busy
	c, err := etcd.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// quiet drops what a test provokes.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// number-preserving JSON, for comparisons by meaning.
func meaning(t *testing.T, value []byte) any {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.UseNumber()
	var v any
	require.NoError(t, dec.Decode(&v), "%s", value)
	return v
}

func stored(t *testing.T, raw *clientv3.Client) map[string][]byte {
	t.Helper()
	resp, err := raw.Get(t.Context(), "/calico/", clientv3.WithPrefix())
	require.NoError(t, err)
	out := map[string][]byte{}
	for _, kv := range resp.Kvs {
		out[string(kv.Key)] = kv.Value
	}
	return out
}

// TestCalicoData serves what real Calico wrote, and writes every object once: nothing but the touched label may change.
func TestCalicoData(t *testing.T) {
	s, raw := server(t, embedded.Config{})
	text, err := os.ReadFile("testdata/calico.json")
	require.NoError(t, err)
	var dump map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &dump))
	paths := map[string]string{} // by the revision that wrote them
	for path, value := range dump {
		resp, err := raw.Put(t.Context(), path, string(value))
		require.NoError(t, err)
		paths[strconv.FormatInt(resp.Header.Revision, 10)] = path
	}
	c := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}, Logger: quiet()})

	served := map[string]api.Object{}
	for _, kind := range api.Kinds() {
		l, err := c.List(t.Context(), kind.Name, datastore.ListOptions{})
		require.NoError(t, err)
		for _, o := range l.Items {
			path, ok := paths[o.GetResourceVersion()]
			require.True(t, ok, "%v has a revision that no key has", api.KeyOf(o))
			require.NotContains(t, served, path)
			served[path] = o
		}
	}
	require.Len(t, served, len(dump), "every key is served")
	var golden strings.Builder
	for _, path := range slices.Sorted(maps.Keys(served)) {
		fmt.Fprintf(&golden, "%s\n\t%s\n", path, api.KeyOf(served[path]))
	}
	if *update {
		require.NoError(t, os.WriteFile("testdata/calico.keys", []byte(golden.String()), 0o644))
	}
	want, err := os.ReadFile("testdata/calico.keys")
	require.NoError(t, err)
	require.Equal(t, string(want), golden.String())

	for path, listed := range served {
		o, err := c.Get(t.Context(), api.KeyOf(listed))
		require.NoError(t, err, path)
		require.Equal(t, listed, o, path)
		touched := !strings.HasPrefix(path, "/calico/ipam/") // which has no labels in etcd
		if touched {
			labels := maps.Clone(o.GetLabels())
			if labels == nil {
				labels = map[string]string{}
			}
			labels["touched"] = "yes"
			o.SetLabels(labels)
		}
		_, err = c.Update(t.Context(), o)
		require.NoError(t, err, path)

		expected := meaning(t, dump[path])
		if touched {
			meta := expected.(map[string]any)["metadata"].(map[string]any)
			if meta["labels"] == nil {
				meta["labels"] = map[string]any{}
			}
			meta["labels"].(map[string]any)["touched"] = "yes"
		}
		resp, err := raw.Get(t.Context(), path)
		require.NoError(t, err)
		require.Len(t, resp.Kvs, 1, path)
		require.Equal(t, expected, meaning(t, resp.Kvs[0].Value), path)
	}
	require.Equal(t, slices.Sorted(maps.Keys(dump)), slices.Sorted(maps.Keys(stored(t, raw))), "the same keys as before")
}

// TestDamagedValues checks that one value that cannot be read takes no other with it, and that a watch sees it as gone.
func TestDamagedValues(t *testing.T) {
	s, raw := server(t, embedded.Config{})
	c := client(t, etcd.Config{Endpoints: []string{s.Endpoint()}, Logger: quiet()})
	put := func(path, value string) {
		_, err := raw.Put(t.Context(), path, value)
		require.NoError(t, err)
	}
	const pools = "/calico/resources/v3/projectcalico.org/ippools/"
	good := func(name string) string {
		return `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"` + name + `"},"spec":{"cidr":"10.0.0.0/16"}}`
	}
	put(pools+"good", good("other")) // the name in the value does not count
	put(pools+"damaged", `{"spec":`)
	put(pools+"not/a/pool", good("x"))
	put("/calico/ipam/v2/assignment/ipv4/block/10.9.0.5-30", `{"cidr":"10.9.0.5/30"}`) // not canonical
	put("/calico/ipam/v2/assignment/ipv6/block/10.9.0.4-30", `{"cidr":"10.9.0.4/30"}`) // wrong family

	l, err := c.List(t.Context(), "IPPool", datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, l.Items, 1)
	require.Equal(t, "good", l.Items[0].GetName())
	blocks, err := c.List(t.Context(), "IPAMBlock", datastore.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, blocks.Items)
	_, err = c.Get(t.Context(), api.Key{Kind: "IPPool", Name: "damaged"})
	require.ErrorContains(t, err, "IPPool(damaged)")
	require.NotErrorIs(t, err, datastore.ErrNotFound)

	w, err := c.Watch(t.Context(), "IPPool", datastore.WatchOptions{Revision: l.Revision})
	require.NoError(t, err)
	defer w.Stop()
	put(pools+"new", "[]")          // never was an object: nothing to tell
	put(pools+"good", "")           // is one no more
	put(pools+"damaged", good("x")) // is one now
	expect := func(typ datastore.EventType, name string) {
		t.Helper()
		e := <-w.Events()
		require.Equal(t, typ, e.Type)
		require.Equal(t, name, e.Key.Name)
		require.Equal(t, name, e.Object.GetName())
	}
	expect(datastore.Deleted, "good")
	expect(datastore.Modified, "damaged")

	removed, err := c.Delete(t.Context(), api.Key{Kind: "IPPool", Name: "new"}, datastore.Precondition{})
	require.NoError(t, err, "a damaged value can be deleted")
	require.Equal(t, "new", removed.GetName())
}
