//go:build k8s

package suite

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/deploy/image"
	"github.com/muslin-net/muslin/deploy/render"
	"github.com/muslin-net/muslin/integration/guide"
	"github.com/muslin-net/muslin/integration/k8s/cluster"
	"github.com/muslin-net/muslin/integration/lab"
)

// clone is the clone of the repository on the machine of the control plane, in which people type what docs/install.md says: what
// is written there is that machine's.
const clone = "/run/muslin"

// prepare makes the clone, with what was built before, and images where people have brought them.
func (w *world) prepare(t *testing.T) {
	t.Helper()
	_, err := w.Run(within(t, patience), cluster.Control, "sh", "-ec", fmt.Sprintf(`
		rm -rf %[1]s
		mkdir -p %[1]s/home/.kube
		cp -r %[2]s/deploy %[1]s
		ln -s %[2]s/bin %[1]s/bin
		ln -s /etc/kubernetes/admin/kubeconfig %[1]s/home/.kube/config`, clone, w.source))
	require.NoError(t, err)
}

// blocks are those of docs/install.md with that mark.
func (w *world) blocks(t *testing.T, part string) []string {
	t.Helper()
	blocks, err := guide.Blocks(filepath.Join(w.source, "docs/install.md"), "tried: "+part)
	require.NoError(t, err)
	return blocks
}

// follow types the commands of a part of docs/install.md, with words changed that are the reader's to fill in.
func (w *world) follow(t *testing.T, part string, words ...string) {
	t.Helper()
	commands := strings.Join(guide.Commands(w.blocks(t, part)...), "\n")
	w.types(t, strings.NewReplacer(words...).Replace(commands))
}

// types runs what an administrator types in the clone, where calicoctl was told before which datastore there is.
func (w *world) types(t *testing.T, commands string) {
	t.Helper()
	var said bytes.Buffer
	code, err := w.Exec(within(t, installPatience), cluster.Control, lab.Command{
		Args: []string{"sh", "-exc", "cd " + clone + "\n" + commands}, Env: append(w.datastore, "HOME="+clone+"/home"), Stdout: &said, Stderr: &said,
	})
	require.NoError(t, err)
	require.Zero(t, code, "%s", said.String())
	t.Logf("%s", said.String())
}

// install brings images onto all workers and installs Muslin, as the guide says.
func (w *world) install(t *testing.T) {
	t.Helper()
	w.bringImages(t)
	w.follow(t, "apply")
	w.awaitInstalled(t)
}

// awaitInstalled waits until all of Muslin, and with it all nodes, are ready.
func (w *world) awaitInstalled(t *testing.T) {
	t.Helper()
	w.awaitMuslin(t)
	require.NoError(t, w.AwaitNodes(within(t, installPatience)))
}

// bringImages brings images onto all workers, as the guide says.
func (w *world) bringImages(t *testing.T) {
	t.Helper()
	var all errgroup.Group
	for _, worker := range w.Workers() {
		all.Go(func() error {
			for _, image := range []string{"node.tar", "typha.tar", "kube-controllers.tar"} {
				for _, command := range guide.Commands(w.blocks(t, "import")...) {
					command = strings.ReplaceAll(command, "node.tar", image)
					if _, err := w.Run(within(t, patience), worker, "sh", "-ec", "cd "+w.source+"/bin/images && "+command); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, all.Wait())
}

// firstSteps: what the guide says to try first.
func (w *world) firstSteps(t *testing.T) {
	w.follow(t, "calicoctl", "make build && ", "") // it was, before all tests
	w.follow(t, "look")
	said, err := w.calicoctl(t, "version")
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^Cluster Version: +`+regexp.QuoteMeta(render.Defaults().Image.Tag)+`\nCluster Type: +k8s,bgp,typha,kdd$`, said)
	w.types(t, "kubectl calico get nodes")
	// By the first command kubectl learns of the new kinds, and of their category.
	w.types(t, "kubectl get ippools && kubectl get calico")
	for _, worker := range w.Workers() { // there is no registry: the program of workloads goes by the names httpd and nc too
		_, err := w.Run(within(t, patience), worker, "ctr", "-n", "k8s.io", "images", "tag", image.Canonical(cluster.WorkloadImage), image.Canonical("busybox:1.37"))
		require.NoError(t, err)
	}
	see := guide.Commands(w.blocks(t, "see")...)
	w.types(t, see[0])
	t.Cleanup(func() {
		w.kubectl(t, "delete", "deployment/web", "cnp/nobody-to-web", "--ignore-not-found", "--wait=false")
	})
	w.kubectl(t, "rollout", "status", "deployment/web", "--timeout", patience.String())
	w.types(t, see[1])
	addresses := strings.Fields(w.kubectl(t, "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"))
	require.Len(t, addresses, 2)
	answer := func() (n int) {
		for _, a := range addresses { // one of them is that of the pod that asks
			words := strings.Fields(strings.ReplaceAll(see[2], "ADDRESS-OF-THE-OTHER", a))
			if _, err := w.Kubectl(within(t, patience), "", words[1:]...); err == nil {
				n++
			}
		}
		return n
	}
	answers := func(want int) {
		w.eventually(t, func() error {
			if n := answer(); n != want {
				return fmt.Errorf("%d pods answer, not %d", n, want)
			}
			return nil
		})
	}
	answers(2)
	w.apply(t, w.blocks(t, "nobody")[0])
	answers(1)
}

// uninstalled: pods keep their network, as the guide says, when all of Muslin is gone.
func (w *world) uninstalled(t *testing.T) {
	ns := w.namespace(t)
	w.run(t, ns, pod("one", cluster.Worker(1), "", "serve"), pod("three", cluster.Worker(3), "", "serve"))
	ask := []string{"get", "http://" + w.address(t, ns, "three") + ":8080"}
	w.answers(t, ns, "one", ask...)
	w.follow(t, "uninstall")
	w.kubectl(t, "wait", "pod", "-n", "kube-system", "-l", "k8s-app in (calico-node, calico-typha, calico-kube-controllers)",
		"--field-selector", "spec.nodeName!="+cluster.Worker(2), "--for=delete", "--timeout", patience.String()) // which is gone
	w.answers(t, ns, "one", ask...)
}
