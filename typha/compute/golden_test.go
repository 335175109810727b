package compute

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden computes the objects in testdata/*.yaml and compares what node-a is sent with the .txt file beside it. Sets
// are shown by what they select, and policy lists by number, instead of by hash.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			in, err := os.ReadFile(file)
			require.NoError(t, err)
			objects, err := api.Decode(in)
			require.NoError(t, err)
			e, store := New(), views.NewStore()
			for _, o := range objects {
				e.Apply(cache.Change{Key: api.KeyOf(o), Object: o})
			}
			store.Commit(e.Flush())
			got := dump(t, e, store)
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}

// dump prints both views of node-a.
func dump(t *testing.T, e *Engine, store *views.Store) string {
	var names []string // pairs of hash and name
	for id, set := range e.sets {
		names = append(names, id, setName(set.spec))
	}
	lists := slices.SortedFunc(maps.Values(e.lists), func(a, b *list) int { return strings.Compare(a.content, b.content) })
	for _, key := range slices.Sorted(maps.Keys(e.groups.by)) {
		lists = append(lists, e.groups.by[key].list)
	}
	for i, l := range lists {
		names = append(names, l.id, fmt.Sprintf("list-%d", i+1))
	}
	readable := strings.NewReplacer(names...)
	var b strings.Builder
	for _, s := range []views.Scope{nodeView("node-a"), bgpView("node-a")} {
		fmt.Fprintf(&b, "=== %s\n", s)
		v := store.View(s)
		keys := slices.SortedFunc(maps.Keys(v), func(a, b view.Key) int {
			if a.Kind != b.Kind {
				return int(a.Kind) - int(b.Kind)
			}
			return strings.Compare(readable.Replace(a.ID), readable.Replace(b.ID))
		})
		for _, k := range keys {
			var text bytes.Buffer
			enc := json.NewEncoder(&text)
			enc.SetEscapeHTML(false)
			require.NoError(t, enc.Encode(shown(v[k].Item())))
			fmt.Fprintf(&b, "%s %s\n  %s", strings.TrimPrefix(fmt.Sprintf("%T", v[k].Item()), "view."), readable.Replace(k.ID), readable.Replace(text.String()))
		}
	}
	return b.String()
}

// shown leaves out what would only fill the page.
func shown(it view.Item) any {
	switch it := it.(type) {
	case view.Resource:
		if c, ok := it.Object.(*api.FelixConfiguration); ok {
			return map[string]any{"logPrefix": c.Spec.LogPrefix, "logSeverityScreen": c.Spec.LogSeverityScreen, "vxlanPort": c.Spec.VXLANPort}
		}
		return it.Object
	case view.IPSet:
		var members []string
		for _, m := range it.Members {
			if it.Type == view.SetNet {
				members = append(members, m.Prefix.String())
			} else {
				members = append(members, fmt.Sprintf("%s,%d:%d", m.Prefix.Addr(), m.Protocol, m.Port))
			}
		}
		return members
	}
	return it
}

func setName(s setSpec) string {
	switch {
	case s.service != "" && s.kind == view.SetIPPort:
		return "<service " + s.service + ">"
	case s.service != "":
		return "<service " + s.service + " without ports>"
	case s.port != "":
		return fmt.Sprintf("<port %s/%d of %s>", s.port, s.protocol, strings.ReplaceAll(s.selector.String(), `"`, "'"))
	}
	return "<" + strings.ReplaceAll(s.selector.String(), `"`, "'") + ">"
}
