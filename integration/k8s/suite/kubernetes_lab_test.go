//go:build k8s

package suite

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
)

// TestKubernetes brings one cluster up, as a user would, and tries in it, one after the other, what Muslin promises. What disturbs
// it most comes last.
func TestKubernetes(t *testing.T) {
	w := shared(t)
	for _, test := range []struct {
		name string
		fn   func(*testing.T)
	}{
		{"PodsAndServices", w.podsAndServices},
		{"NetworkPolicy", w.networkPolicy},
		{"LoadBalancer", w.loadBalancer},
		{"Idle", w.idle},
		{"Volume", w.volume},
		{"FirstSteps", w.firstSteps},
		{"Overlays", w.overlays},
		{"TyphaKilled", w.typhaKilled},
		{"CertificatesRotated", w.certificatesRotated},
		{"WithoutTheAPI", w.withoutTheAPI},
		{"DrainAndDelete", w.drainAndDelete},
		{"Uninstalled", w.uninstalled},
	} {
		t.Run(test.name, test.fn)
	}
}

// idleFor is how long the API is watched while nothing happens, mostIdle how many requests it may get from all of Muslin meanwhile.
const (
	idleFor  = time.Minute
	mostIdle = 120
)

// idle: where nothing happens, little is asked of the API.
func (w *world) idle(t *testing.T) {
	w.eventually(t, func() error { // what other tests have left goes
		if left := w.kubectl(t, "get", "pods", "-A", "--field-selector", "metadata.namespace!=kube-system", "-o", "name"); left != "" {
			return errors.New(left)
		}
		return nil
	})
	log, err := w.AuditEnd()
	require.NoError(t, err)
	<-time.After(idleFor)
	requests, err := w.Requests(log)
	require.NoError(t, err)
	what := map[string]int{}
	for _, r := range requests {
		what[r.Account+" "+r.Verb+" "+r.What]++
	}
	t.Logf("%d requests within %v: %v", len(requests), idleFor, what)
	assert.NotEmpty(t, requests, "whoever leads renews that")
	assert.LessOrEqual(t, len(requests), mostIdle)
}

// podsAndServices: pods on both workers have addresses of the pool, one each, and reach each other, the API and a Service by any of
// its endpoints, in TCP and UDP; and their nodes reach them.
func (w *world) podsAndServices(t *testing.T) {
	ns := w.namespace(t)
	one, two := cluster.Worker(1), cluster.Worker(2)
	w.run(t, ns, pod("a", one, "", "serve"), pod("b", one, "", "serve"), pod("c", two, "", "serve"))
	seen := map[string]string{}
	for _, p := range []string{"a", "b", "c"} {
		address := w.address(t, ns, p)
		assert.True(t, netip.MustParsePrefix(cluster.PodRange).Contains(netip.MustParseAddr(address)), "%s has %s", p, address)
		assert.NotContains(t, seen, address, "%s has the address of another", p)
		seen[address] = p
	}
	for _, from := range []string{"a", "b", "c"} {
		for address, to := range seen {
			said := w.answers(t, ns, from, "get", "http://"+address+":8080")
			assert.Equal(t, to+" "+w.address(t, ns, from), said, "the server sees the pod's own address")
			assert.Equal(t, "muslin", w.answers(t, ns, from, "udp", address+":8081"))
		}
	}
	w.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: both, namespace: %s}
spec:
  selector: {app: c}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, protocol: UDP, port: 81, targetPort: 8081}]
`, ns))
	service := w.kubectl(t, "get", "service", "both", "-n", ns, "-o", "jsonpath={.spec.clusterIP}")
	for _, from := range []string{"a", "c"} { // the second reaches itself
		assert.Contains(t, w.answers(t, ns, from, "get", "http://"+service), "c ")
		assert.Equal(t, "muslin", w.answers(t, ns, from, "udp", service+":81"))
	}
	for address := range seen {
		for _, node := range w.Workers() {
			c, err := w.Dial(within(t, patience), node, netip.AddrPortFrom(netip.MustParseAddr(address), 8080))
			if assert.NoError(t, err, "%s to %s", node, seen[address]) {
				assert.NoError(t, c.Close())
			}
		}
	}
}

// networkPolicy: a policy is enforced on both ways, and not when it is gone.
func (w *world) networkPolicy(t *testing.T) {
	ns := w.namespace(t)
	one, two := cluster.Worker(1), cluster.Worker(2)
	w.run(t, ns, pod("server", two, "", "serve"), pod("friend", one, "", "serve"), pod("stranger", one, "", "serve"))
	ask := []string{"get", "-timeout", "1s", "http://" + w.address(t, ns, "server") + ":8080"}
	assert.Equal(t, "server "+w.address(t, ns, "friend"), w.answers(t, ns, "friend", ask...), "the server sees the pod's own address")
	w.answers(t, ns, "stranger", ask...)
	w.apply(t, fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends, namespace: %s}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}]}]
`, ns))
	w.refused(t, ns, "stranger", ask...)
	w.answers(t, ns, "friend", ask...)
	w.kubectl(t, "delete", "networkpolicy", "friends", "-n", ns)
	w.answers(t, ns, "stranger", ask...)
	w.applyResource(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: silence, namespace: %s}
spec: {selector: app == 'stranger', types: [Egress], egress: [{action: Deny}]}
`, ns))
	w.refused(t, ns, "stranger", ask...)
	w.answers(t, ns, "friend", ask...)
}

// loadBalancer: a Service gets an address of the pool that is for them.
func (w *world) loadBalancer(t *testing.T) {
	ns := w.namespace(t)
	w.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: outside}
spec: {cidr: 172.31.255.0/28, blockSize: 29, allowedUses: [LoadBalancer], assignmentMode: Automatic}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: %s}
spec: {type: LoadBalancer, selector: {app: nobody}, ports: [{port: 80}]}
`, ns))
	const where = "jsonpath={.status.loadBalancer.ingress[0].ip}"
	w.eventually(t, func() error {
		address := w.kubectl(t, "get", "service", "outside", "-n", ns, "-o", where)
		if a, err := netip.ParseAddr(address); err != nil || !netip.MustParsePrefix("172.31.255.0/28").Contains(a) {
			return fmt.Errorf("the service has %q", address)
		}
		return nil
	})
	w.nothingLeaks(t)
	found, err := w.calicoctl(t, "ipam", "check", "--show-all-ips")
	require.NoError(t, err)
	require.Contains(t, found, fmt.Sprintf("belongs to Service(%s/outside)", ns))
	w.kubectl(t, "delete", "service", "outside", "-n", ns)
	w.kubectl(t, "delete", "ippool", "outside", "--timeout", patience.String())
}

// volume: a pod that asks for it by a volume is told its policy by felix, over a socket in a directory of its own.
func (w *world) volume(t *testing.T) {
	ns := w.namespace(t)
	w.apply(t, `
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {policySyncPathPrefix: /var/run/nodeagent}
`)
	document := pod("proxy", cluster.Worker(1), "volumes: [{name: policy, csi: {driver: csi.tigera.io}}]", "serve")
	document = strings.Replace(document, `args: ["serve"]`, `args: ["serve"], volumeMounts: [{name: policy, mountPath: /policy}]`, 1)
	w.run(t, ns, document)
	w.eventually(t, func() error {
		files, err := w.ask(t, ns, "proxy", "ls", "/policy/nodeagent")
		if err == nil && !strings.Contains(files, "S--------- socket") {
			err = fmt.Errorf("in the volume there is %q", files)
		}
		return err
	})
}
