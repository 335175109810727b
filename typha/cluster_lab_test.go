//go:build lab

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/deploy"
	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/client"
)

// object is an object of Kubernetes as JSON.
type object = map[string]any

// control is a real kube-apiserver with RBAC, and who may do everything there.
type control struct {
	*testing.T
	ctx context.Context
	*k8s.Server
	http *http.Client
}

func newControl(t *testing.T) *control {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute) // the first time the server is built
	t.Cleanup(cancel)
	s, err := k8s.Start(ctx, t.TempDir(), func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	c, err := rest.HTTPClientFor(s.Config(k8s.Admin))
	require.NoError(t, err)
	return &control{T: t, ctx: ctx, Server: s, http: c}
}

// ask sends a request and returns what the server answers.
func (c *control) ask(method, path string, body any) object {
	c.Helper()
	var document []byte
	var err error
	if body != nil {
		document, err = json.Marshal(body)
		require.NoError(c, err)
	}
	r, err := http.NewRequestWithContext(c.ctx, method, c.URL()+path, bytes.NewReader(document))
	require.NoError(c, err)
	r.Header.Set("Content-Type", "application/json")
	answer, err := c.http.Do(r)
	require.NoError(c, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(c, err)
	require.Less(c, answer.StatusCode, 300, "%s %s: %s", method, path, text)
	var out object
	require.NoError(c, json.Unmarshal(text, &out))
	return out
}

func (c *control) make(path string, o object) object { return c.ask(http.MethodPost, path, o) }

// field is a value somewhere in an object; nil if it is not there.
func field(o any, path ...string) any {
	for _, key := range path {
		m, _ := o.(object)
		o = m[key]
	}
	return o
}

// account makes a service account and returns a token of it.
func (c *control) account(name string) string {
	c.make("/api/v1/namespaces/kube-system/serviceaccounts", object{"metadata": object{"name": name}})
	return c.token(name, object{"expirationSeconds": 3600})
}

// token returns a token of a service account.
func (c *control) token(account string, spec object) string {
	c.Helper()
	o := c.make("/api/v1/namespaces/kube-system/serviceaccounts/"+account+"/token", object{"spec": spec})
	return field(o, "status", "token").(string)
}

// pod makes a pod that is on a node.
func (c *control) pod(namespace, name, node, account string, annotations object) (uid string) {
	o := c.make("/api/v1/namespaces/"+namespace+"/pods", object{
		"metadata": object{"name": name, "labels": object{"app": name}, "annotations": annotations},
		"spec": object{
			"nodeName": node, "serviceAccountName": account, "containers": []object{{"name": "c", "image": "i"}},
		},
	})
	return field(o, "metadata", "uid").(string)
}

// roles gives typha the roles of deploy/, and nothing else.
func (c *control) roles() {
	text, err := os.ReadFile("../deploy/base/rbac.yaml")
	require.NoError(c, err)
	made := 0
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var o object
		require.NoError(c, yaml.Unmarshal([]byte(document), &o))
		if field(o, "metadata", "name") != "calico-typha" {
			continue
		}
		path := "/apis/rbac.authorization.k8s.io/v1"
		if namespace, ok := field(o, "metadata", "namespace").(string); ok {
			path += "/namespaces/" + namespace
		}
		c.make(path+"/"+strings.ToLower(o["kind"].(string))+"s", o)
		made++
	}
	require.Equal(c, 4, made)
}

const bindingsPath = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"

func (c *control) bind() {
	c.make(bindingsPath, object{
		"metadata": object{"name": "calico-typha"},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "calico-typha"},
		"subjects": []object{{"kind": "ServiceAccount", "name": "calico-typha", "namespace": "kube-system"}},
	})
}

func (c *control) definitions() {
	for _, f := range deploy.CRDs() {
		var o object
		require.NoError(c, yaml.Unmarshal(f.Text, &o), f.Name)
		if o["kind"] == "CustomResourceDefinition" {
			c.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", o)
		}
	}
}

// until waits for something.
func (c *control) until(what string, holds func() bool) {
	c.Helper()
	require.Eventually(c, holds, 3*time.Minute, 50*time.Millisecond, what)
}

// typha is a running typha, as a pod has it.
type typha struct {
	*control
	listen, enroll, health, pki string
}

// typha starts one. Its token is in a file, from which it is read anew, as in a pod.
func (c *control) typha(tokenFile string) *typha {
	r := &typha{control: c, listen: loopback.Address(), enroll: loopback.Address(), health: loopback.Address(), pki: c.TempDir()}
	kubeconfig := filepath.Join(c.TempDir(), "kubeconfig")
	require.NoError(c, os.WriteFile(kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: typha, user: {tokenFile: %q}}]
contexts: [{name: test, context: {cluster: test, user: typha}}]
current-context: test
`, c.URL(), tokenFile), 0o600))
	ctx, stop := context.WithCancel(c.ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if code := start(ctx, c.Output(), "--datastore=kubernetes", "--kubeconfig="+kubeconfig, "--listen="+r.listen, "--enroll-listen="+r.enroll,
			"--health="+r.health, "--ca-secret=calico-ca", "--pki-dir="+r.pki, "--k8s-service-name=calico-typha", "--replicas="+r.listen); code != 0 {
			c.Errorf("typha ended with %d", code)
		}
	})
	c.Cleanup(func() { stop(); running.Wait() })
	return r
}

// readiness is what typha says of itself.
func (r *typha) readiness() (ready bool, text string) {
	answer, err := http.Get("http://" + r.health + "/readiness")
	if err != nil {
		return false, ""
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return err == nil && answer.StatusCode < 300, string(body)
}

// says waits until typha's readiness is so, and says this of trouble; empty for none.
func (r *typha) says(ready bool, trouble string) {
	r.Helper()
	r.until(fmt.Sprintf("ready %v, trouble %q", ready, trouble), func() bool {
		is, text := r.readiness()
		return is == ready && text != "" && (trouble != "" && strings.Contains(text, trouble) || trouble == "" && !strings.Contains(text, "what cannot be read"))
	})
}

// follower keeps the endpoints of a node's view.
type follower struct {
	mu        sync.Mutex // guards endpoints
	endpoints map[string]view.WorkloadEndpoint
}

func (f *follower) OnBatch(b client.Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, it := range b.Updates {
		if e, ok := it.(view.WorkloadEndpoint); ok {
			f.endpoints[e.ID.Workload] = e
		}
	}
	for _, k := range b.Removes {
		delete(f.endpoints, strings.TrimSuffix(strings.TrimPrefix(k.ID, "k8s/"), "/eth0"))
	}
	b.Applied()
}

func (f *follower) OnQuery(context.Context, client.Question, func([]byte) error) error {
	return client.ErrUnserved
}

func (f *follower) of(workload string) view.WorkloadEndpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endpoints[workload]
}

// TestInAKubernetes takes typha through the life of a cluster: with a real kube-apiserver, its own account's tokens, and the roles
// of deploy/ alone. It comes up before roles and definitions are there, says what is missing, and goes on by itself.
func TestInAKubernetes(t *testing.T) {
	c := newControl(t)
	tokenFile := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(tokenFile, []byte(c.account("calico-typha")), 0o600))
	c.make("/api/v1/namespaces/kube-system/serviceaccounts", object{"metadata": object{"name": "calico-node"}})

	t.Log("two replicas, and nothing that they need")
	one, two := c.typha(tokenFile), c.typha(tokenFile)
	one.says(false, "Forbidden: typha's account lacks permissions")
	c.roles()
	one.says(false, "Missing: the API server does not know these kinds; apply the CustomResourceDefinitions")
	c.definitions()
	one.says(true, "")
	two.says(true, "")

	t.Log("one CA for both, and for the nodes")
	secret := c.ask(http.MethodGet, "/api/v1/namespaces/kube-system/secrets/calico-ca", nil)
	published := field(c.ask(http.MethodGet, "/api/v1/namespaces/kube-system/configmaps/calico-ca", nil), "data", "ca.crt").(string)
	for _, r := range []*typha{one, two} {
		ca, err := os.ReadFile(filepath.Join(r.pki, "ca.crt"))
		require.NoError(t, err)
		require.Equal(t, published, string(ca))
	}
	c.ask(http.MethodDelete, "/api/v1/namespaces/kube-system/secrets/calico-ca", nil)
	c.until("the secret is made again, with the same CA", func() bool {
		again := object{}
		answer, err := c.http.Get(c.URL() + "/api/v1/namespaces/kube-system/secrets/calico-ca")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return json.NewDecoder(answer.Body).Decode(&again) == nil && field(again, "data", "ca.crt") == field(secret, "data", "ca.crt") &&
			field(again, "data", "ca.crt") != nil
	})

	t.Log("a node enrols")
	for _, name := range []string{"n1", "n2"} {
		c.make("/api/v1/nodes", object{"metadata": object{"name": name}})
	}
	daemon := c.pod("kube-system", "calico-node-1", "n1", "calico-node", nil)
	bound := func(account, audience, pod, uid string) string {
		return c.token(account, object{"audiences": []string{audience}, "expirationSeconds": 600, "boundObjectRef": object{"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}})
	}
	files := func() rpc.Files {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(published), 0o600))
		return rpc.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	}
	enroll := func(node, token string) (rpc.Files, error) {
		f := files()
		_, err := client.Enroll(c.ctx, client.Enrollment{Addresses: []string{one.enroll}, ServerName: "typha", Files: f, Node: node, ServiceAccountToken: token})
		return f, err
	}
	own := bound("calico-node", "typha", "calico-node-1", daemon)
	mine, err := enroll("n1", own)
	require.NoError(t, err)
	other := c.pod("kube-system", "other", "n1", "default", nil)
	c.make("/api/v1/namespaces/kube-system/serviceaccounts", object{"metadata": object{"name": "default"}})
	for says, try := range map[string]struct{ node, token string }{
		`bound to node "n1"`:               {"n2", own},
		"does not accept":                  {"n1", bound("calico-node", "https://kubernetes.default.svc", "calico-node-1", daemon)},
		"serviceaccount:kube-system:defau": {"n1", bound("default", "typha", "other", other)},
		"not bound to a pod":               {"n1", c.token("calico-node", object{"audiences": []string{"typha"}, "expirationSeconds": 600})},
	} {
		_, err := enroll(try.node, try.token)
		require.ErrorIs(t, err, client.ErrDenied, says)
		require.ErrorContains(t, err, says)
	}

	t.Log("it registers, and has a network once it has programmed its view")
	node, err := client.New(client.Config{Addresses: []string{one.listen}, ServerName: "typha", Files: mine, Node: "n1", View: client.NodeView})
	require.NoError(t, err)
	defer node.Close()
	pool := &api.IPPool{}
	pool.Name, pool.Spec.CIDR = "default-ipv4-ippool", "192.168.0.0/16"
	got, err := node.Register(c.ctx, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24"), Pools: []*api.IPPool{pool}})
	require.NoError(t, err)
	require.Equal(t, []string{"default-ipv4-ippool"}, got.PoolsCreated)
	annotation := func(path, key string) any {
		return field(c.ask(http.MethodGet, path, nil), "metadata", "annotations", key)
	}
	require.Equal(t, "10.0.0.1/24", annotation("/api/v1/nodes/n1", "projectcalico.org/IPv4Address"))
	f := &follower{endpoints: map[string]view.WorkloadEndpoint{}}
	following, stop := context.WithCancel(c.ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = node.Run(following, f) })
	defer func() { stop(); running.Wait() }()
	available := func(want string) func() bool {
		return func() bool {
			list, _ := field(c.ask(http.MethodGet, "/api/v1/nodes/n1", nil), "status", "conditions").([]any)
			for _, k := range list {
				if field(k, "type") == "NetworkUnavailable" {
					return fmt.Sprint(field(k, "status"), " ", field(k, "reason")) == want
				}
			}
			return false
		}
	}
	c.until("the node has a network", available("False CalicoIsUp"))
	c.until("it is told of its pods", func() bool { return node.Status().Pods })

	t.Log("it learns of the replicas of the Service, and that one has gone")
	const slices = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
	c.make(slices, object{
		"metadata": object{"name": "calico-typha-1", "labels": object{"kubernetes.io/service-name": "calico-typha"}}, "addressType": "IPv4",
		"endpoints": []object{{"addresses": []string{"10.0.0.9"}}, {"addresses": []string{"10.0.0.8"}, "conditions": object{"ready": false}}},
		"ports":     []object{{"port": 5473, "protocol": "TCP"}},
	})
	replicas := func(want ...string) func() bool {
		return func() bool {
			list, err := node.Replicas(c.ctx)
			require.NoError(t, err)
			var have []string
			for _, r := range list {
				require.Equal(t, "typha", r.ServerName)
				have = append(have, r.Address)
			}
			return fmt.Sprint(have) == fmt.Sprint(want)
		}
	}
	_, port, _ := strings.Cut(one.listen, ":")
	c.until("two replicas", replicas(one.listen, "10.0.0.9:"+port))
	c.ask(http.MethodDelete, slices+"/calico-typha-1", nil)
	c.until("one replica", replicas(one.listen))

	t.Log("a pod is told before it is made, and is noted when it is")
	c.make("/api/v1/namespaces", object{"metadata": object{"name": "shop", "annotations": object{"cni.projectcalico.org/ipv4pools": `["default-ipv4-ippool"]`}}})
	web := c.pod("shop", "web", "n1", "default", object{"cni.projectcalico.org/hwAddr": "02:00:00:00:00:07"})
	c.until("n1 is told of its pod", func() bool {
		return f.of("shop/web").UID == web && f.of("shop/web").Request != nil && len(f.of("shop/web").Request.Pools4) > 0
	})
	require.Equal(t, &view.AddressRequest{Pools4: []string{"default-ipv4-ippool"}, MAC: "02:00:00:00:00:07"}, f.of("shop/web").Request)
	c.until("its profile is known", func() bool {
		return len(f.of("shop/web").Incomplete) == 0 || f.of("shop/web").Incomplete[0] == "profile ksa.shop.default"
	})
	c.make("/api/v1/namespaces/shop/serviceaccounts", object{"metadata": object{"name": "default"}})
	c.until("and its account's", func() bool { return len(f.of("shop/web").Incomplete) == 0 })
	reserved, err := node.Reserve(c.ctx, client.Reserve{Count4: 1, Owner: &client.Owner{Handle: "k8s-pod-network.c1"}})
	require.NoError(t, err)
	endpoint := client.Endpoint{
		ID: view.EndpointID{Orchestrator: "k8s", Workload: "shop/web", Endpoint: "eth0"}, UID: web, Pod: "web", ContainerID: "c1",
		Interface: f.of("shop/web").Interface, MAC: "02:00:00:00:00:07", Addresses: []netip.Addr{reserved[0].Address}, Labels: map[string]string{"app": "forged"},
	}
	report := func(sequence uint64, list ...client.Endpoint) {
		refused, _, err := node.Report(c.ctx, client.Report{Instance: "x", Sequence: sequence, Endpoints: list})
		require.NoError(t, err)
		require.Empty(t, refused)
	}
	report(1, endpoint)
	const webPath = "/api/v1/namespaces/shop/pods/web"
	c.until("noted on the pod", func() bool {
		return annotation(webPath, "cni.projectcalico.org/podIP") == reserved[0].Address.String()+"/32" && annotation(webPath, "cni.projectcalico.org/containerID") == "c1"
	})
	c.until("and told back", func() bool { return len(f.of("shop/web").Addresses) == 1 && f.of("shop/web").ContainerID == "c1" })
	report(2)
	c.until("no longer wired", func() bool { return annotation(webPath, "cni.projectcalico.org/podIP") == "" })

	t.Log("the API server goes; what is known stays, and it is told why nothing new comes")
	require.NoError(t, c.KillAPI())
	one.says(true, "Unreachable: the API server or etcd does not answer")
	require.True(t, node.Status().InSync)
	require.NoError(t, c.StartAPI(c.ctx))
	one.says(true, "")

	t.Log("a role is taken away")
	c.ask(http.MethodDelete, bindingsPath+"/calico-typha", nil)
	require.NoError(t, c.KillAPI())
	require.NoError(t, c.StartAPI(c.ctx))
	one.says(true, "Forbidden: typha's account lacks permissions")
	c.bind()
	one.says(true, "")

	t.Log("the account goes, and with it the token; there is a new one")
	c.ask(http.MethodDelete, "/api/v1/namespaces/kube-system/serviceaccounts/calico-typha", nil)
	require.NoError(t, c.KillAPI())
	require.NoError(t, c.StartAPI(c.ctx))
	one.says(true, "Unauthorized: the server does not accept typha's credentials")
	require.NoError(t, os.WriteFile(tokenFile, []byte(c.account("calico-typha")), 0o600))
	one.says(true, "")

	t.Log("and all still works")
	late := c.pod("shop", "late", "n1", "default", nil)
	c.until("n1 is told of a new pod", func() bool { return f.of("shop/late").UID == late })
	require.NoError(t, node.Leave(c.ctx))
	c.until("the node has none any more", available("True CalicoIsDown"))
}
