//go:build k8s

package suite

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/k8s/cluster"
	"github.com/muslin-net/muslin/integration/lab/pki"
)

// apiAway is for how long the API is away, at least.
const apiAway = 2 * time.Minute

// typhaKilled: each replica is killed in turn while the others live, and all at once for good. Connections stay, nodes find another
// replica or the one that is back, what is new comes to pass, and Kubernetes is never told that a node has no network.
func (w *world) typhaKilled(t *testing.T) {
	ns := w.namespace(t)
	talk := w.talk(t, ns)
	listener := w.address(t, ns, "listener")
	known := w.networkKnown(t)
	at := strings.Fields(w.kubectl(t, "get", "pods", "-n", "kube-system", "-l", "k8s-app=calico-typha", "-o", "jsonpath={.items[*].spec.nodeName}"))
	require.Len(t, at, 2)
	for _, worker := range at {
		t.Logf("nodes are connected to %v; that on %s is killed", w.connected(t), worker)
		w.kill(t, worker, "calico-typha")
		w.newComesToPass(t, ns, "after-"+worker, listener)
		talk.goesOn(t)
	}
	t.Logf("nodes are connected to %v; all are killed", w.connected(t))
	w.kubectl(t, "delete", "pod", "-n", "kube-system", "-l", "k8s-app=calico-typha", "--grace-period=0", "--force")
	talk.goesOn(t)
	w.newComesToPass(t, ns, "later", listener)
	talk.goesOn(t)
	require.NoError(t, w.AwaitRollout(within(t, patience), "deployment/calico-typha"))
	t.Logf("nodes are connected to %v", w.connected(t))
	assert.Equal(t, known, w.networkKnown(t), "what Kubernetes is told of nodes' networks, and since when")
}

// newComesToPass: a new pod has a network, and a new policy of another node shuts it out, and lets it in again when it is gone.
func (w *world) newComesToPass(t *testing.T, ns, name, listener string) {
	t.Helper()
	w.run(t, ns, pod(name, cluster.Worker(1), "", "serve"))
	ask := []string{"get", "-timeout", "1s", "http://" + listener + ":8080"}
	w.answers(t, ns, name, ask...)
	w.apply(t, onlyFromTalkers(ns, "listener"))
	w.refused(t, ns, name, ask...)
	w.kubectl(t, "delete", "networkpolicy", "talkers", "-n", ns)
	w.answers(t, ns, name, ask...)
}

// onlyFromTalkers is a policy by which only a talker may reach a pod.
func onlyFromTalkers(ns, to string) string {
	return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: talkers, namespace: %s}
spec:
  podSelector: {matchLabels: {app: %s}}
  ingress: [{from: [{podSelector: {matchLabels: {app: talker}}}]}]
`, ns, to)
}

// kill kills a container of kube-system on a worker; its kubelet starts it again.
func (w *world) kill(t *testing.T, worker, container string) {
	t.Helper()
	_, err := w.Run(within(t, patience), worker, "sh", "-ec", `ids=$(`+running("kube-system", "", container)+`); for id in $ids; do
		ctr -n k8s.io tasks kill -s SIGKILL "$id"; done`)
	require.NoError(t, err)
}

// running is a command for the running containers of a name, of a pod if that is named, by containerd: it needs no API.
func running(namespace, pod, container string) string {
	filter := fmt.Sprintf(`labels."io.kubernetes.pod.namespace"==%q,labels."io.kubernetes.container.name"==%q`, namespace, container)
	if pod != "" {
		filter += fmt.Sprintf(`,labels."io.kubernetes.pod.name"==%q`, pod)
	}
	return `found=; for id in $(ctr -n k8s.io containers ls -q '` + filter + `'); do
		if ctr -n k8s.io tasks ls | grep -q "^$id .*RUNNING"; then found=1; echo "$id"; fi; done; [ "$found" ]`
}

// inside runs a program in a container on a worker without the API, and returns what it wrote.
func (w *world) inside(t *testing.T, worker, namespace, pod, container string, args ...string) (string, error) {
	t.Helper()
	script := fmt.Sprintf(`id=$(%s); exec ctr -n k8s.io tasks exec --exec-id test-%d "$id" %s`, running(namespace, pod, container), time.Now().UnixNano(), strings.Join(args, " "))
	return w.Run(within(t, patience), worker, "sh", "-ec", script)
}

// connected waits until all nodes are said to be connected to replicas of typha that are ready, and returns to which.
func (w *world) connected(t *testing.T) map[string]string {
	t.Helper()
	const words = "felix is connected to "
	to := map[string]string{}
	w.eventually(t, func() error {
		ready := strings.Fields(w.kubectl(t, "get", "pods", "-n", "kube-system", "-l", "k8s-app=calico-typha", "-o",
			`jsonpath={range .items[?(@.status.containerStatuses[0].ready)]}{.status.podIP} {end}`))
		for _, node := range w.Workers() {
			var conditions []metav1.Condition
			text := w.kubectl(t, "get", "node", node, "-o", `jsonpath={.metadata.annotations.muslin\.net/conditions}`)
			if err := json.Unmarshal([]byte(text), &conditions); err != nil {
				return fmt.Errorf("%s has the conditions %q: %w", node, text, err)
			}
			c := meta.FindStatusCondition(conditions, "Connected")
			if c == nil || c.Status != metav1.ConditionTrue {
				return fmt.Errorf("%s is not connected: %+v", node, c)
			}
			replica, err := netip.ParseAddrPort(strings.TrimPrefix(c.Message, words))
			if err != nil || !slices.Contains(ready, replica.Addr().String()) {
				return fmt.Errorf("%s: %q, of the replicas %v", node, c.Message, ready)
			}
			to[node] = replica.String()
		}
		return nil
	})
	return to
}

// networkKnown is what Kubernetes knows of the networks of nodes: that they are available, and since when.
func (w *world) networkKnown(t *testing.T) string {
	t.Helper()
	known := w.kubectl(t, "get", "nodes", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {range .status.conditions[?(@.type=="NetworkUnavailable")]}{.status} {.lastTransitionTime}{end}{"\n"}{end}`)
	assert.Equal(t, workers, strings.Count(known, " False "), "%s", known)
	return known
}

// certificatesRotated: the CA is replaced by another, as docs and typha's DESIGN.md say: trusted beside the old one first. A node
// whose certificate is due gets one that the new one has signed. An open connection, and policy, do not notice.
func (w *world) certificatesRotated(t *testing.T) {
	ns := w.namespace(t)
	talk := w.talk(t, ns)
	w.run(t, ns, pod("stranger", cluster.Worker(2), "", "serve"))
	dir := t.TempDir()
	next, err := pki.NewCA("the next one", time.Now())
	require.NoError(t, err)
	require.NoError(t, next.Write(dir))
	key, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	require.NoError(t, err)
	old, err := base64.StdEncoding.DecodeString(w.kubectl(t, "get", "secret", "calico-ca", "-n", "kube-system", "-o", `jsonpath={.data.ca\.crt}`))
	require.NoError(t, err)
	both, err := json.Marshal(map[string]any{"data": map[string][]byte{"ca.crt": append(next.CertPEM(), old...), "ca.key": key}})
	require.NoError(t, err)
	w.kubectl(t, "patch", "secret", "calico-ca", "-n", "kube-system", "--type=merge", "-p", string(both))
	certificate := func(worker, file string) string {
		text, err := w.Run(within(t, patience), worker, "cat", "/run/calico/pki/"+file)
		if err != nil {
			return ""
		}
		return text
	}
	for _, worker := range w.Workers() {
		w.eventually(t, func() error { // the kubelet looks at ConfigMaps once a minute
			if !strings.Contains(certificate(worker, "ca.crt"), string(next.CertPEM())) {
				return fmt.Errorf("%s does not trust the new CA", worker)
			}
			return nil
		})
	}
	was := map[string]string{}
	for _, worker := range w.Workers() {
		was[worker] = certificate(worker, "tls.crt")
		_, err := w.Run(within(t, patience), worker, "rm", "/run/calico/pki/tls.crt")
		require.NoError(t, err)
	}
	for _, worker := range w.Workers() {
		w.eventually(t, func() error {
			if is := certificate(worker, "tls.crt"); is == "" || is == was[worker] {
				return fmt.Errorf("%s has no new certificate", worker)
			}
			return nil
		})
	}
	talk.goesOn(t)
	ask := []string{"get", "-timeout", "1s", "http://" + w.address(t, ns, "listener") + ":8080"}
	w.answers(t, ns, "stranger", ask...)
	w.apply(t, onlyFromTalkers(ns, "listener"))
	w.refused(t, ns, "stranger", ask...)
	talk.goesOn(t)
}

// staticPods is where a kubelet finds pods that it runs without the API.
const staticPods = "/etc/kubernetes/manifests"

// withoutTheAPI: while the API is away pods start, at once, reach others and end, on two workers, and what was there before goes on:
// connections, policy, a felix that is killed and a typha that is. All of it is accounted for when the API is back, and nobody asks it
// for everything again and again then.
func (w *world) withoutTheAPI(t *testing.T) {
	ns := w.namespace(t)
	talk := w.talk(t, ns)
	one, two := cluster.Worker(1), cluster.Worker(2)
	w.run(t, ns, pod("guarded", two, "", "serve"), pod("stranger", one, "", "serve"))
	ask := []string{"get", "-timeout", "1s", "http://" + w.address(t, ns, "guarded") + ":8080"}
	w.answers(t, ns, "stranger", ask...)
	w.apply(t, onlyFromTalkers(ns, "guarded"))
	w.refused(t, ns, "stranger", ask...)
	listener := netip.AddrPortFrom(netip.MustParseAddr(w.address(t, ns, "listener")), 8080)
	typha := w.kubectl(t, "get", "pods", "-n", "kube-system", "-l", "k8s-app=calico-typha", "-o", "jsonpath={.items[0].spec.nodeName}")
	log, err := w.AuditEnd()
	require.NoError(t, err)

	require.NoError(t, w.Kill(within(t, patience), cluster.Control, string(k8s.APIServer)))
	away := time.Now()
	troubles := []struct{ worker, container string }{{one, "felix"}, {typha, "calico-typha"}, {one, "felix"}}
	rounds := 0
	for ; len(troubles) > 0 || time.Since(away) < apiAway; rounds++ {
		if rounds%4 == 2 && len(troubles) > 0 {
			w.kill(t, troubles[0].worker, troubles[0].container)
			troubles = troubles[1:]
		}
		w.staticPod(t, fmt.Sprintf("static-%d", rounds), one, two)
		for _, from := range w.Workers() {
			w.eventually(t, func() error { return w.asks(from, listener) })
		}
		w.eventually(t, func() error {
			_, err := w.inside(t, one, ns, "talker", "workload", append([]string{"/workload"}, ask...)...)
			return err
		})
		_, err := w.inside(t, one, ns, "stranger", "workload", append([]string{"/workload"}, ask...)...)
		require.Error(t, err, "policy is not in force")
	}
	w.eventually(t, func() error {
		_, err := w.inside(t, one, "kube-system", "", "felix", "/bin/calico-node", "-felix-ready")
		return err
	})
	_, err = w.calicoctl(t, "get", "nodes")
	require.ErrorContains(t, err, "datastore cannot be reached")

	require.NoError(t, w.Start(within(t, patience), cluster.Control, string(k8s.APIServer)))
	require.NoError(t, w.AwaitAPI(within(t, patience)))
	t.Logf("the API was away for %.0f s, while %d pods came and went on each of two workers", time.Since(away).Seconds(), rounds)
	talk.goesOn(t)
	w.nothingLeaks(t)
	w.run(t, ns, pod("after", one, "", "serve"))
	w.answers(t, ns, "after", "get", "http://"+listener.String())
	w.refused(t, ns, "after", ask...)
	w.connected(t)
	w.asksLittle(t, log)
}

// staticPod starts a pod on each of some workers by a file of its kubelet, has it reached from all workers, and ends it.
func (w *world) staticPod(t *testing.T, name string, on ...string) {
	t.Helper()
	began := time.Now()
	for _, worker := range on {
		manifest := strings.TrimPrefix(pod(name, worker, "", "serve"), "---\n")
		write := fmt.Sprintf("mkdir -p %s && cat > %[1]s/%s.yaml <<'END'\n%s\nEND", staticPods, name, manifest)
		_, err := w.Run(within(t, patience), worker, "sh", "-ec", write)
		require.NoError(t, err)
	}
	for _, worker := range on {
		var address netip.Addr
		w.eventually(t, func() (err error) {
			address, err = w.addressByKubelet(t, worker, name)
			return err
		})
		for _, from := range w.Workers() {
			w.eventually(t, func() error { return w.asks(from, netip.AddrPortFrom(address, 8080)) })
		}
		t.Logf("%s on %s has %s and serves after %.1f s", name, worker, address, time.Since(began).Seconds())
	}
	for _, worker := range on {
		_, err := w.Run(within(t, patience), worker, "rm", staticPods+"/"+name+".yaml")
		require.NoError(t, err)
	}
	for _, worker := range on {
		w.eventually(t, func() error {
			if _, err := w.addressByKubelet(t, worker, name); !errors.Is(err, errNoAddress) {
				return fmt.Errorf("%s is still there: %w", name, err)
			}
			return nil
		})
	}
}

// mostLists is how often a process may list what it follows after an API server that has forgotten all history is there: once, and
// once more if that breaks off. mostTries counts those that failed too, while the server does not know its roles or what it serves, or for
// good, since it has no such kind: waits between them grow.
const (
	mostLists = 2
	mostTries = 20
)

// asksLittle looks through what the API was asked for since a place in its log: nodes ask nothing, and no process lists the same
// again and again.
func (w *world) asksLittle(t *testing.T, from int64) {
	t.Helper()
	requests, err := w.Requests(from)
	require.NoError(t, err)
	lists, tries, all, second, total := map[string]int{}, map[string]int{}, map[string]int{}, map[time.Time]int{}, 0
	for _, r := range requests {
		assert.NotEqual(t, "node", r.Account, "%+v", r)
		all[fmt.Sprintf("%s %s %d", r.Pod, r.Verb, r.Code)]++
		if r.Verb != "list" || r.Query.Get("continue") != "" || r.Query.Get("limit") == "1" { // a look at how far the server is
			continue
		}
		tries[r.Pod+" "+r.Selection()]++
		second[r.At.Truncate(time.Second)]++
		total++
		if r.Code == http.StatusOK {
			lists[r.Pod+" "+r.Selection()]++
		}
	}
	t.Logf("%d requests: %v", len(requests), all)
	t.Logf("%d lists, at most %d in a second, and %d of the same", total, slices.Max(slices.Collect(maps.Values(second))), slices.Max(slices.Collect(maps.Values(tries))))
	for what, n := range tries {
		assert.LessOrEqual(t, n, mostTries, "tries to list %s", what)
	}
	for what, n := range lists {
		assert.LessOrEqual(t, n, mostLists, what)
	}
}

var errNoAddress = errors.New("the kubelet knows no address of the pod")

// addressByKubelet asks a worker's kubelet itself for the address of a pod.
func (w *world) addressByKubelet(t *testing.T, worker, name string) (netip.Addr, error) {
	t.Helper()
	config, err := w.Config()
	require.NoError(t, err)
	address := w.kubelet(t, worker)
	config.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Dial(ctx, worker, address) }
	config.CAData, config.Insecure = nil, true
	client, err := rest.HTTPClientFor(config)
	require.NoError(t, err)
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(within(t, 10*time.Second), http.MethodGet, "https://"+address.String()+"/pods", nil)
	require.NoError(t, err)
	answer, err := client.Do(r)
	if err != nil {
		return netip.Addr{}, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return netip.Addr{}, err
	}
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ PodIP string }
		}
	}
	if err := json.Unmarshal(body, &pods); err != nil {
		return netip.Addr{}, fmt.Errorf("%s: %s", answer.Status, body)
	}
	for _, p := range pods.Items {
		if p.Metadata.Name == name+"-"+worker && p.Status.PodIP != "" {
			return netip.ParseAddr(p.Status.PodIP)
		}
	}
	return netip.Addr{}, errNoAddress
}

// kubelet is where a worker's kubelet serves.
func (w *world) kubelet(t *testing.T, worker string) netip.AddrPort {
	t.Helper()
	if at, known := w.kubelets[worker]; known {
		return at
	}
	st, err := w.Status(within(t, patience))
	require.NoError(t, err)
	for _, n := range st.Nodes {
		w.kubelets[n.Name] = netip.AddrPortFrom(n.Addresses[0], 10250)
	}
	require.Contains(t, w.kubelets, worker)
	return w.kubelets[worker]
}

// asks sends one request from a machine to a server of the program of workloads.
func (w *world) asks(machine string, server netip.AddrPort) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Dial(ctx, machine, server) },
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+server.String(), nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("from %s: %w", machine, err)
	}
	return answer.Body.Close()
}

// nothingLeaks waits until calicoctl finds every address with a pod or a node. It ends well whatever it finds.
func (w *world) nothingLeaks(t *testing.T) {
	t.Helper()
	w.eventually(t, func() error {
		found, err := w.calicoctl(t, "ipam", "check", "--show-problem-ips")
		if err == nil && !strings.Contains(found, "Check complete; found 0 problems.") {
			err = errors.New(found)
		}
		return err
	})
}

// calicoctl runs it as an administrator of the cluster does.
func (w *world) calicoctl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return w.Run(within(t, patience), cluster.Control, append(append(append([]string{"env"}, w.datastore...), "calicoctl"), args...)...)
}

// drainAndDelete: a worker is drained, its machine ends and its Node is deleted. Its addresses and blocks are nobody's then.
func (w *world) drainAndDelete(t *testing.T) {
	ns := w.namespace(t)
	one, two := cluster.Worker(1), cluster.Worker(2)
	w.run(t, ns, pod("stays", one, "", "serve"), pod("goes", two, "", "serve"))
	address := w.address(t, ns, "goes")
	w.kubectl(t, "drain", two, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout", patience.String())
	blocks := func() string {
		return w.kubectl(t, "get", "ipamblocks", "-o", `jsonpath={range .items[*]}{.spec.cidr} {.spec.affinity}{"\n"}{end}`)
	}
	require.Contains(t, blocks(), two)
	for _, p := range []string{string(k8s.Kubelet), cluster.Containerd} {
		require.NoError(t, w.Kill(within(t, patience), two, p))
	}
	w.kubectl(t, "delete", "node", two)
	w.eventually(t, func() error {
		if now := blocks(); strings.Contains(now, two) {
			return fmt.Errorf("%s, which is gone, still has blocks:\n%s", two, now)
		}
		return nil
	})
	shown, err := w.calicoctl(t, "ipam", "show", "--ip", address)
	require.NoError(t, err)
	assert.Equal(t, address+" is not assigned", strings.TrimSpace(shown))
	w.nothingLeaks(t)
}
