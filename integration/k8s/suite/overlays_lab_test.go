//go:build k8s

package suite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/deploy/image"
	"github.com/muslin-net/muslin/deploy/render"
	"github.com/muslin-net/muslin/integration/k8s/cluster"
)

// nextVersion is that of the nodes' programs in the registry of the guide's kustomization.
const nextVersion = "v0.2.0"

// thePool is the pool that the nodes have proposed.
const thePool = "default-ipv4-ippool"

// overlays: the cluster goes from overlay to overlay, to other images with programs of another version and back, as the guide says:
// under an open connection, and while pods are made. Each overlay carries packets as it says, between nodes of a subnet and of two.
func (w *world) overlays(t *testing.T) {
	ns := w.namespace(t)
	talk := w.talk(t, ns)
	w.run(t, ns, pod("near", cluster.Worker(3), "", "serve"))
	near, far := w.address(t, ns, "near"), w.address(t, ns, "listener")
	version := render.Defaults().Image.Tag
	assert.Equal(t, []string{version}, w.versions(t))
	w.importNext(t)
	w.routePods(t)
	apply := func(overlay string) func(*testing.T) {
		return func(t *testing.T) { w.types(t, "kubectl apply --server-side -k deploy/overlays/"+overlay) }
	}
	for _, step := range []struct {
		name      string
		apply     func(*testing.T)
		ipip      string // mode of the pool, edited afterwards; empty: before, by the guide
		version   string // awaited on all nodes; empty: the next step comes while this one is still being rolled out
		near, far string // by which device worker-1 sends to the others
	}{
		{"vxlan", func(t *testing.T) { w.follow(t, "mode"); w.applyMine(t) }, "", nextVersion, "vxlan.calico", "vxlan.calico"},
		{"ipip", func(t *testing.T) { w.follow(t, "upgrade") }, "Always", version, "tunl0", "tunl0"},
		{"bgp", apply("bgp"), "Never", "", "eth0", "eth0"},
		{"cross-subnet", apply("cross-subnet"), "CrossSubnet", version, "eth0", "tunl0"},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.apply(t)
			if step.version != "" {
				w.run(t, ns, pod(step.name, cluster.Worker(1), "", "serve"))
				w.awaitMuslin(t)
				assert.Equal(t, []string{step.version}, w.versions(t))
			}
			if step.ipip != "" {
				w.types(t, fmt.Sprintf(`KUBE_EDITOR="sed -i -e 's/ipipMode: .*/ipipMode: %s/' -e 's/vxlanMode: .*/vxlanMode: Never/'" kubectl edit ippool %s`, step.ipip, thePool))
			}
			for _, to := range []struct{ address, device string }{{near, step.near}, {far, step.far}} {
				w.eventually(t, func() error {
					route, err := w.Run(within(t, patience), cluster.Worker(1), "ip", "route", "get", to.address)
					if err == nil && !strings.Contains(route, "dev "+to.device+" ") {
						err = errors.New(route)
					}
					return err
				})
				w.answers(t, ns, "talker", "get", "http://"+to.address+":8080")
			}
			talk.goesOn(t)
		})
	}
}

// awaitMuslin waits until all of Muslin is as it was applied last.
func (w *world) awaitMuslin(t *testing.T) {
	t.Helper()
	for _, what := range []string{"daemonset/calico-node", "deployment/calico-typha", "deployment/calico-kube-controllers"} {
		require.NoError(t, w.AwaitRollout(within(t, installPatience), what))
	}
}

// versions are those that felix and calico-node on all nodes are of, by the images that they run from.
func (w *world) versions(t *testing.T) (all []string) {
	t.Helper()
	pods := strings.Fields(w.kubectl(t, "get", "pods", "-n", "kube-system", "-l", "k8s-app=calico-node", "-o", "jsonpath={.items[*].metadata.name}"))
	assert.Len(t, pods, workers)
	for _, p := range pods {
		all = append(all, w.kubectl(t, "exec", "-n", "kube-system", p, "-c", "felix", "--", "/bin/felix", "version"),
			w.kubectl(t, "exec", "-n", "kube-system", p, "-c", "calico-node", "--", "/bin/calico-node", "-v"))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// buildNext builds the nodes' image of the next version, as it is in the registry that the guide's kustomization names.
func buildNext(ctx context.Context, source string) (archive string, err error) {
	all, err := image.List()
	if err != nil {
		return "", err
	}
	node := slices.IndexFunc(all, func(i image.Image) bool { return i.Name == "node" })
	archive, _, err = image.Archive(ctx, source, filepath.Join(source, "bin/images/next"), all[node],
		image.Made{Prefix: registry + "/muslin", Tag: nextVersion, Arch: runtime.GOARCH})
	return archive, err
}

// registry is the one that the guide's kustomization names.
const registry = "registry.example.org"

// importNext brings onto all workers what is in that registry.
func (w *world) importNext(t *testing.T) {
	t.Helper()
	archive, err := w.next()
	require.NoError(t, err)
	require.NoError(t, w.Import(within(t, patience), archive))
	for _, worker := range w.Workers() {
		for _, name := range []string{"typha", "kube-controllers"} {
			reference := "muslin/" + name + ":" + render.Defaults().Image.Tag
			_, err := w.Run(within(t, patience), worker, "ctr", "-n", "k8s.io", "images", "tag", "--force", image.Canonical(reference), registry+"/"+reference)
			require.NoError(t, err)
		}
	}
}

// applyMine applies the guide's example of an own kustomization, with nodes of the next version.
func (w *world) applyMine(t *testing.T) {
	t.Helper()
	mine := w.blocks(t, "mine")[0]
	node := "newName: " + registry + "/muslin/node"
	require.Contains(t, mine, node)
	mine = strings.Replace(mine, node, node+", newTag: "+nextVersion, 1)
	w.types(t, fmt.Sprintf("mkdir -p deploy/overlays/mine\ncat > deploy/overlays/mine/kustomization.yaml <<'END'\n%s\nEND\nkubectl apply --server-side -k deploy/overlays/mine", mine))
}

// routePods has the router between the subnets know pods, as a network must that is to carry their packets as they are.
func (w *world) routePods(t *testing.T) {
	t.Helper()
	st, err := w.Status(within(t, patience))
	require.NoError(t, err)
	blocks := w.kubectl(t, "get", "ipamblocks", "-o", `jsonpath={range .items[*]}{.spec.cidr} {.spec.affinity}{"\n"}{end}`)
	for _, n := range st.Nodes {
		for line := range strings.Lines(blocks) {
			if cidr, owner, _ := strings.Cut(strings.TrimSpace(line), " "); owner == "host:"+n.Name {
				_, err := w.Run(within(t, patience), "router", "ip", "route", "replace", cidr, "via", n.Addresses[0].String())
				require.NoError(t, err)
			}
		}
	}
}
