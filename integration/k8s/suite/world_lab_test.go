//go:build k8s

package suite

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
	"github.com/muslin-net/muslin/integration/lab"
)

// patience bounds every wait, installPatience those for all of Muslin to come up. Nothing hangs on them but how soon a failure is told.
const (
	patience        = 3 * time.Minute
	installPatience = 10 * time.Minute
	glance          = 200 * time.Millisecond
)

// envCluster names a cluster that is up (bin/k8s up --workers 3), to try single tests in it again and again.
const envCluster = "MUSLIN_K8S"

// workers is how many machines run pods: worker-1 and worker-3 are in one subnet, worker-2 is in another.
const workers = 3

// world is the cluster that the tests share. Its methods fail the test rather than return errors.
type world struct {
	*cluster.Cluster
	source    string                 // the project's directory
	next      func() (string, error) // the archive of an image of the next version, once it is built
	datastore []string               // the environment by which calicoctl reaches it, on the machine of the control plane
	kubelets  map[string]netip.AddrPort
}

// shared is the cluster of TestKubernetes, with Muslin in it: one that is up already, or a new one.
func shared(t *testing.T) *world {
	t.Helper()
	source := project(t)
	building := within(t, 30*time.Minute)
	next := sync.OnceValues(func() (string, error) { return buildNext(building, source) })
	go func() { _, _ = next() }()
	var w *world
	if name := os.Getenv(envCluster); name != "" {
		c, err := cluster.Open(name)
		require.NoError(t, err)
		w = newWorld(t, c)
	} else {
		w = up(t, cluster.Options{Name: "kubernetes", Workers: workers}, (*world).install)
	}
	w.next = next
	return w
}

// up brings a cluster up, has Muslin installed in it, and brings it down at the end of the test, with what is wrong with it if that
// failed.
func up(t *testing.T, o cluster.Options, install func(*world, *testing.T)) *world {
	t.Helper()
	began := time.Now()
	o.BinDir, o.Attached, o.Log = filepath.Join(project(t), "bin"), true, func(line string) { t.Log(line) }
	o.Progress = func(p lab.Progress) {
		if p.Done {
			t.Logf("%-40s %5.1f s", p.Step, p.Took.Seconds())
		}
	}
	c, err := cluster.Up(within(t, 30*time.Minute), o)
	require.NoError(t, err)
	var w *world
	t.Cleanup(func() {
		if t.Failed() && w != nil {
			w.explain(t)
		}
		assert.NoError(t, c.Down(context.Background()))
	})
	w = newWorld(t, c)
	install(w, t)
	t.Logf("the cluster is up after %.0f s", time.Since(began).Seconds())
	return w
}

// newWorld is a cluster with Kubernetes as the datastore, and the clone that guides are followed in.
func newWorld(t *testing.T, c *cluster.Cluster) *world {
	t.Helper()
	w := &world{
		Cluster: c, source: project(t), kubelets: map[string]netip.AddrPort{},
		datastore: append(cluster.Environment(), "DATASTORE_TYPE=kubernetes"),
	}
	w.prepare(t)
	return w
}

// project is the project's directory.
func project(t *testing.T) string {
	t.Helper()
	source, err := filepath.Abs("../../..")
	require.NoError(t, err)
	return source
}

// explain shows what people look at first.
func (w *world) explain(t *testing.T) {
	ctx := context.Background()
	for _, args := range [][]string{
		{"get", "nodes,pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"},
		{"logs", "-n", "kube-system", "-l", "k8s-app=calico-typha", "--tail=30", "--prefix"},
		{"logs", "-n", "kube-system", "-l", "k8s-app=calico-node", "--all-containers", "--tail=30", "--prefix"},
		{"logs", "-n", "kube-system", "-l", "k8s-app=calico-kube-controllers", "--tail=30", "--prefix"},
	} {
		text, err := w.Kubectl(ctx, "", args...)
		t.Logf("kubectl %s:\n%s%v", strings.Join(args, " "), text, err)
	}
	st, err := w.Status(ctx)
	if err != nil {
		return
	}
	for _, p := range st.Processes {
		if text, err := os.ReadFile(p.Log); err == nil {
			t.Logf("%s on %s (%s, started %d times):\n%s", p.Name, p.Node, p.State, p.Starts, text[max(0, len(text)-1500):])
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// kubectl runs kubectl.
func (w *world) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.Kubectl(within(t, patience), "", args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// apply applies documents, again and again while the API cannot take them yet.
func (w *world) apply(t *testing.T, documents string) {
	t.Helper()
	w.eventually(t, func() error {
		_, err := w.Kubectl(within(t, patience), documents, "apply", "-f", "-")
		return err
	})
}

// applyResource applies a document with calicoctl, which finds the datastore that there is.
func (w *world) applyResource(t *testing.T, document string) {
	t.Helper()
	var said bytes.Buffer
	code, err := w.Exec(within(t, patience), cluster.Control, lab.Command{
		Args: []string{"calicoctl", "apply", "-f", "-"}, Env: w.datastore, Stdin: strings.NewReader(document), Stdout: &said, Stderr: &said,
	})
	require.NoError(t, err)
	require.Zero(t, code, "%s", said.String())
}

// eventually waits until there is no error any more.
func (w *world) eventually(t *testing.T, ok func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			require.NoError(t, err)
		}
		<-time.After(glance)
	}
}

// namespace makes a namespace for a test, named as the test, which goes with it.
func (w *world) namespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(regexp.MustCompile(`[A-Z]`).ReplaceAllString(filepath.Base(t.Name()), "-$0"))
	name = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(name, "-"), "-")
	w.kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		_, err := w.Kubectl(context.Background(), "", "delete", "namespace", name, "--wait=false")
		assert.NoError(t, err)
	})
	w.eventually(t, func() error {
		_, err := w.Kubectl(within(t, patience), "", "get", "serviceaccount", "default", "-n", name)
		return err
	})
	return name
}

// pod describes a pod that runs the program of workloads.
func pod(name, node, fields string, args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = fmt.Sprintf("%q", a)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  containers: [{name: workload, image: %[3]q, args: [%[4]s]}]
  %[5]s
`, name, node, cluster.WorkloadImage, strings.Join(quoted, ", "), fields)
}

// run makes pods, and returns when they are ready.
func (w *world) run(t *testing.T, namespace string, pods ...string) {
	t.Helper()
	_, err := w.Kubectl(within(t, patience), strings.Join(pods, ""), "apply", "-n", namespace, "-f", "-")
	require.NoError(t, err)
	w.kubectl(t, "wait", "pod", "--all", "-n", namespace, "--for=condition=Ready", "--timeout", patience.String())
}

// address is a pod's.
func (w *world) address(t *testing.T, namespace, pod string) string {
	t.Helper()
	return w.kubectl(t, "get", "pod", pod, "-n", namespace, "-o", "jsonpath={.status.podIP}")
}

// ask has a pod run the program of workloads, and returns what it wrote.
func (w *world) ask(t *testing.T, namespace, pod string, args ...string) (string, error) {
	t.Helper()
	out, err := w.Kubectl(within(t, patience), "", append([]string{"exec", "-n", namespace, pod, "--", "/workload"}, args...)...)
	return strings.TrimSpace(out), err
}

// answers waits until a pod gets an answer, and returns it.
func (w *world) answers(t *testing.T, namespace, pod string, args ...string) (said string) {
	t.Helper()
	w.eventually(t, func() (err error) {
		said, err = w.ask(t, namespace, pod, args...)
		return err
	})
	return said
}

// refused waits until a pod gets no answer.
func (w *world) refused(t *testing.T, namespace, pod string, args ...string) {
	t.Helper()
	w.eventually(t, func() error {
		said, err := w.ask(t, namespace, pod, args...)
		if err == nil {
			return fmt.Errorf("%s still gets an answer to %v: %s", pod, args, said)
		}
		return nil
	})
}

// conversation is a connection between two pods that is kept busy, as a pod that ends with an error if it is lost.
type conversation struct {
	w         *world
	namespace string
}

// talk begins one, between a server on worker-2 and a client on worker-1.
func (w *world) talk(t *testing.T, namespace string) conversation {
	t.Helper()
	w.run(t, namespace, pod("listener", cluster.Worker(2), "", "serve"))
	w.run(t, namespace, pod("talker", cluster.Worker(1), "restartPolicy: Never", "talk", "-timeout", "60s", w.address(t, namespace, "listener")+":8081"))
	c := conversation{w: w, namespace: namespace}
	c.goesOn(t)
	return c
}

var wordsSpoken = regexp.MustCompile(`(\d+) words, the longest took (\d+) ms`)

// words is how many words came back until now.
func (c conversation) words(t *testing.T) (words, longest int) {
	t.Helper()
	said := wordsSpoken.FindAllStringSubmatch(c.w.kubectl(t, "logs", "-n", c.namespace, "talker"), -1)
	if len(said) == 0 {
		return 0, 0
	}
	last := said[len(said)-1]
	_, err := fmt.Sscan(last[1]+" "+last[2], &words, &longest)
	require.NoError(t, err)
	return words, longest
}

// longestPause is how long a word may take. A connection that is lost takes minutes to be given up, so that this is what tells of a
// stall; one whose packets were lost for seconds sends them again seconds later.
const longestPause = 10 * time.Second

// goesOn proves that the connection is there, that words still come back, and that none has taken long since it was made.
func (c conversation) goesOn(t *testing.T) {
	t.Helper()
	before, _ := c.words(t)
	c.w.eventually(t, func() error {
		phase := c.w.kubectl(t, "get", "pod", "talker", "-n", c.namespace, "-o", "jsonpath={.status.phase}")
		require.Equal(t, "Running", phase, "the connection was lost")
		if now, _ := c.words(t); now <= before {
			return fmt.Errorf("still %d words", now)
		}
		return nil
	})
	words, longest := c.words(t)
	t.Logf("%d words came back, the longest took %d ms", words, longest)
	assert.LessOrEqual(t, int64(longest), longestPause.Milliseconds(), "the connection stalled")
}
