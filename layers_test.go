// Package muslin holds what must be true of the whole repository: who may import whom, and that packages say what they are.
package muslin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/muslin-net/muslin/"

type goPackage struct {
	ImportPath, Name, Doc string
	Imports, Deps         []string
}

// rule says what packages of a layer may import of ours, and what of the rest they may not.
type rule struct {
	layer    string
	packages []string // prefixes below the module, "/" at the end for whole trees
	may      []string // own packages that are allowed, by the same prefixes
	mayNot   []string // foreign import paths that are refused
}

// Impure is what a core must not touch: it decides, it does not act.
var impure = []string{
	"os", "net", "log/slog", "log", "github.com/vishvananda/netlink", "google.golang.org/grpc",
	"google.golang.org/protobuf/proto", "github.com/osrg/gobgp", "k8s.io/client-go",
}

var rules = []rule{
	{layer: "nouns", packages: []string{"api"}, may: []string{"api/selector", "api/spelling"}, mayNot: impure},
	{layer: "spelling", packages: []string{"api/spelling"}, may: nil, mayNot: impure},
	{layer: "selectors", packages: []string{"api/selector"}, may: nil, mayNot: impure},
	{layer: "maps", packages: []string{"api/keymap"}, may: []string{"api"}, mayNot: impure},
	{layer: "filters", packages: []string{"api/bgp"}, may: nil, mayNot: impure},
	{layer: "translation", packages: []string{"api/kubernetes"}, may: []string{"api", "api/annotation"}, mayNot: impure},
	{layer: "view", packages: []string{"api/view"}, may: []string{"api"}, mayNot: impure},
	{layer: "annotations", packages: []string{"api/annotation"}, may: nil, mayNot: impure},
	{layer: "packets", packages: []string{"api/view/packet"}, may: []string{"api/view"}, mayNot: impure},
	{layer: "wire", packages: []string{"proto/"}, may: []string{"proto/"}},
	// felix reads it
	{layer: "volumes", packages: []string{"csi/client"}, may: nil, mayNot: []string{"net", "google.golang.org/grpc", "github.com/container-storage-interface"}},
	{layer: "plumbing", packages: []string{"internal/"}, may: []string{"internal/"}},
	// it is the judge of what typha computes and felix renders, and so has nothing of theirs
	{layer: "oracle", packages: []string{"integration/oracle", "integration/oracle/generate"}, may: []string{"api", "integration/oracle"}},
	{
		layer: "manifests", packages: []string{"deploy/render"}, mayNot: impure,
		may: []string{"api", "api/spelling", "deploy", "node/detect", "node/pools"},
	},
	{
		layer: "cores", mayNot: impure,
		packages: []string{
			"typha/cache", "typha/compute", "typha/conditions", "typha/verdict", "typha/views", "felix/state", "felix/render", "felix/desired",
			"felix/judge", "felix/scope",
			"confd/render", "confd/bird2", "ipam/block", "cni/conf", "bird/bfd", "bird/policy", "bird/wire", "kube-controllers/reflector/elect",
			"ipam/audit", "kube-controllers/ipamgc/leak", "kube-controllers/configure", "kube-controllers/mirror/diff", "kube-controllers/nodes/gone",
			"kube-controllers/hostendpoints/auto", "kube-controllers/loadbalancer/assign", "kube-controllers/finalizers/hold",
		},
		may: []string{
			"api", "api/annotation", "api/bgp", "api/keymap", "api/kubernetes", "api/selector", "api/spelling", "api/view", "api/view/packet", "internal/delta", "internal/prefixes",
			// a core may build on the cores of its own component
			"typha/cache", "typha/compute", "typha/views", "felix/state", "felix/render", "felix/desired", "confd/render", "ipam/block",
		},
	},
}

// nodeBinaries run on nodes: none may reach the datastore or the Kubernetes API, not even through a dependency.
var nodeBinaries = []string{"felix", "confd", "bird", "cni/calico", "cni/calico-ipam", "csi", "node"}

// datastoreUsers are the only ones that may import datastore.
var datastoreUsers = []string{"datastore", "typha", "ipam/alloc", "kube-controllers", "calicoctl", "integration"}

func TestLayers(t *testing.T) {
	packages := list(t)
	for _, p := range packages {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, r := range rules {
			if !matches(path, r.packages) {
				continue
			}
			for _, imported := range p.Imports {
				if own, ok := strings.CutPrefix(imported, module); ok {
					require.True(t, matches(own, r.may), "%s (%s) must not import %s", path, r.layer, own)
				}
				require.False(t, slices.ContainsFunc(r.mayNot, func(no string) bool {
					return imported == no || strings.HasPrefix(imported, no+"/") && strings.Contains(no, ".")
				}), "%s (%s) must not import %s", path, r.layer, imported)
			}
		}
	}
}

// A component meets another one only through that one's client.
func TestComponentsMeetThroughClients(t *testing.T) {
	components := []string{"typha", "felix", "confd", "bird", "cni", "node", "kube-controllers", "calicoctl", "csi"}
	component := func(path string) string {
		first, _, _ := strings.Cut(path, "/")
		if slices.Contains(components, first) {
			return first
		}
		return ""
	}
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			own, ok := strings.CutPrefix(imported, module)
			other := component(own)
			if !ok || other == "" || component(path) == "" || other == component(path) {
				continue
			}
			require.True(t, under(own, other+"/client"), "%s must not import %s", path, own)
		}
	}
}

func TestNodesHoldNoDatastoreClient(t *testing.T) {
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		if !slices.ContainsFunc(nodeBinaries, func(b string) bool { return under(path, b) }) {
			continue
		}
		for _, dep := range p.Deps {
			for _, no := range []string{module + "datastore", "k8s.io/client-go", "go.etcd.io"} {
				require.False(t, under(dep, no), "%s reaches %s", path, dep)
			}
		}
	}
}

func TestOnlySomeUseTheDatastore(t *testing.T) {
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok && under(own, "datastore") {
				require.True(t, slices.ContainsFunc(datastoreUsers, func(u string) bool { return under(path, u) }),
					"%s must not import %s", path, own)
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range list(t) {
		// Generated packages carry the words of their .proto files; this one has nothing but tests.
		if p.Name != "" && p.Name != "muslin" && !strings.Contains(p.ImportPath, "/proto/") {
			require.NotEmpty(t, p.Doc, "%s has no package comment", p.ImportPath)
		}
	}
}

// under tells whether path is the tree's root or inside it.
func under(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func matches(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return path == p || strings.HasSuffix(p, "/") && strings.HasPrefix(path, p)
	})
}

func list(t *testing.T) []goPackage {
	t.Helper()
	all, err := listOnce()
	require.NoError(t, err)
	return all
}

// listOnce asks the go command, which takes a second.
var listOnce = sync.OnceValues(func() (all []goPackage, _ error) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports,Deps", "./...").Output()
	if err != nil {
		return nil, err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})
