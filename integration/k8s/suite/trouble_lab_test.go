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
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/k8s/cluster"
	"github.com/muslin-net/muslin/integration/lab/pki"
)

// apiAway is for how long the API is away, at least.
const apiAway = 40 * time.Second

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
		was := certificate(worker, "tls.crt")
		_, err := w.Run(within(t, patience), worker, "rm", "/run/calico/pki/tls.crt")
		require.NoError(t, err)
		w.eventually(t, func() error {
			if is := certificate(worker, "tls.crt"); is == "" || is == was {
				return fmt.Errorf("%s has no new certificate", worker)
			}
			return nil
		})
	}
	talk.goesOn(t)
	ask := []string{"get", "-timeout", "1s", "http://" + w.address(t, ns, "listener") + ":8080"}
	w.answers(t, ns, "stranger", ask...)
	w.apply(t, fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: talkers, namespace: %s}
spec:
  podSelector: {matchLabels: {app: listener}}
  ingress: [{from: [{podSelector: {matchLabels: {app: talker}}}]}]
`, ns))
	w.refused(t, ns, "stranger", ask...)
	talk.goesOn(t)
}

// staticPods is where a kubelet finds pods that it runs without the API.
const staticPods = "/etc/kubernetes/manifests"

// withoutTheAPI: while the API is away pods start, at once, reach others and end, and what was there before goes on. All of it is
// accounted for when the API is back.
func (w *world) withoutTheAPI(t *testing.T) {
	ns := w.namespace(t)
	talk := w.talk(t, ns)
	one := cluster.Worker(1)
	listener := netip.AddrPortFrom(netip.MustParseAddr(w.address(t, ns, "listener")), 8080)
	require.NoError(t, w.Kill(within(t, patience), cluster.Control, string(k8s.APIServer)))
	away := time.Now()
	rounds := 0
	for ; time.Since(away) < apiAway; rounds++ {
		name := fmt.Sprintf("static-%d", rounds)
		manifest := strings.TrimPrefix(pod(name, one, "", "serve"), "---\n")
		write := fmt.Sprintf("mkdir -p %s && cat > %[1]s/%s.yaml <<'END'\n%s\nEND", staticPods, name, manifest)
		_, err := w.Run(within(t, patience), one, "sh", "-ec", write)
		require.NoError(t, err)
		began := time.Now()
		var address netip.Addr
		w.eventually(t, func() (err error) {
			address, err = w.addressByKubelet(t, one, name)
			return err
		})
		for _, from := range w.Workers() {
			w.eventually(t, func() error { return w.asks(from, netip.AddrPortFrom(address, 8080)) })
			w.eventually(t, func() error { return w.asks(from, listener) })
		}
		t.Logf("%s has %s and serves after %.1f s", name, address, time.Since(began).Seconds())
		_, err = w.Run(within(t, patience), one, "rm", staticPods+"/"+name+".yaml")
		require.NoError(t, err)
		w.eventually(t, func() error {
			if _, err := w.addressByKubelet(t, one, name); !errors.Is(err, errNoAddress) {
				return fmt.Errorf("%s is still there: %w", name, err)
			}
			return nil
		})
	}
	assert.Positive(t, rounds)
	require.NoError(t, w.Start(within(t, patience), cluster.Control, string(k8s.APIServer)))
	require.NoError(t, w.AwaitAPI(within(t, patience)))
	t.Logf("the API was away for %.0f s, while %d pods came and went", time.Since(away).Seconds(), rounds)
	talk.goesOn(t)
	w.nothingLeaks(t)
	w.run(t, ns, pod("after", one, "", "serve"))
	w.answers(t, ns, "after", "get", "http://"+listener.String())
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
	st, err := w.Status(within(t, patience))
	require.NoError(t, err)
	for _, n := range st.Nodes {
		if n.Name == worker {
			return netip.AddrPortFrom(n.Addresses[0], 10250)
		}
	}
	require.Failf(t, "no such machine", "%s", worker)
	return netip.AddrPort{}
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

// nothingLeaks waits until calicoctl finds every address with a pod or a node.
func (w *world) nothingLeaks(t *testing.T) {
	t.Helper()
	w.eventually(t, func() error {
		_, err := w.calicoctl(t, "ipam", "check")
		return err
	})
}

// calicoctl runs it as an administrator of the cluster does.
func (w *world) calicoctl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return w.Run(within(t, patience), cluster.Control, append([]string{"env", "DATASTORE_TYPE=kubernetes", "KUBECONFIG=/etc/kubernetes/admin/kubeconfig", "calicoctl"}, args...)...)
}

// drainAndDelete: a worker is drained, its machine ends and its Node is deleted. Its addresses are free then, and the worker can come
// back.
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
	assert.Contains(t, shown, "not")
	w.nothingLeaks(t)
}
