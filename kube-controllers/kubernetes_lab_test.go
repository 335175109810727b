//go:build lab

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/internal/loopback"
	"github.com/muslin-net/muslin/ipam/alloc"
)

// account is who the controllers are to the API server.
const account = "system:serviceaccount:kube-system:calico-kube-controllers"

type object = map[string]any

// world is a real API server, a datastore, and controllers on both, which may do what deploy says, and nothing else.
type world struct {
	*testing.T
	ctx    context.Context
	server *k8s.Server
	store  datastore.Client
	core   rest.Interface
}

// newWorld starts an API server; roles are files with who may do what, of which the first that has an object counts.
func newWorld(t *testing.T, roles ...string) *world {
	starting, cancel := context.WithTimeout(t.Context(), 25*time.Minute) // the first time it is built
	defer cancel()
	s, err := k8s.Start(starting, t.TempDir(), func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	w := &world{T: t, ctx: ctx, server: s}
	for _, file := range roles {
		w.apply(file)
	}
	w.core, err = kubefollow.Client(s.Config(k8s.Admin), "test", corev1.SchemeGroupVersion, &corev1.Service{}, &corev1.Node{})
	require.NoError(t, err)
	return w
}

// apply creates what is in a YAML file.
func (w *world) apply(file string) {
	w.Helper()
	text, err := os.ReadFile(file)
	require.NoError(w, err)
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var o struct {
			APIVersion, Kind string
			Metadata         struct{ Namespace string }
		}
		var body object
		require.NoError(w, errors.Join(yaml.Unmarshal([]byte(document), &o), yaml.Unmarshal([]byte(document), &body)))
		if o.Kind == "" || o.Kind == "Kustomization" {
			continue
		}
		path := "/apis/" + o.APIVersion
		if o.Metadata.Namespace != "" {
			path += "/namespaces/" + o.Metadata.Namespace
		}
		if err := w.server.Create(w.ctx, path+"/"+strings.ToLower(o.Kind)+"s", body); err == nil || !strings.Contains(err.Error(), "AlreadyExists") {
			require.NoError(w, err, file)
		}
	}
}

// run runs the controllers until the test ends.
func (w *world) run(args ...string) {
	w.Helper()
	w.runAs(account, args...)
}

// runAs does with another account.
func (w *world) runAs(account string, args ...string) {
	w.Helper()
	kubeconfig := filepath.Join(w.TempDir(), "kubeconfig")
	text := strings.Replace(string(k8s.Kubeconfig(k8s.Admin, w.server.Port())), "user: {token:", fmt.Sprintf("user: {as: %q, token:", account), 1)
	require.Contains(w, text, account)
	require.NoError(w, os.WriteFile(kubeconfig, []byte(text), 0o600))
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.ctx))
	done := make(chan int, 1)
	go func() {
		done <- start(ctx, w.Output(), append(args, "--kubeconfig", kubeconfig, "--lease", "15s", "--node-gone", "1s")...)
	}()
	w.Cleanup(func() {
		cancel()
		require.Zero(w, <-done)
	})
}

func (w *world) soon(what string, ok func() bool) {
	w.Helper()
	for !ok() {
		select {
		case <-w.ctx.Done():
			w.Fatalf("%s: not in time", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *world) do(err error) {
	w.Helper()
	require.NoError(w, err)
}

func (w *world) create(o api.Object) {
	w.Helper()
	_, err := w.store.Create(w.ctx, o)
	require.NoError(w, err)
}

// get reads an object; nil if there is none.
func get[T api.Object](w *world, kind, namespace, name string) (none T) {
	w.Helper()
	o, err := w.store.Get(w.ctx, api.Key{Kind: kind, Namespace: namespace, Name: name})
	if errors.Is(err, datastore.ErrNotFound) {
		return none
	}
	require.NoError(w, err)
	return o.(T)
}

// change changes a stored object, however many others do.
func change[T api.Object](w *world, kind, namespace, name string, how func(T)) {
	w.Helper()
	for {
		o := get[T](w, kind, namespace, name)
		how(o)
		_, err := w.store.Update(w.ctx, o)
		if !errors.Is(err, datastore.ErrConflict) {
			require.NoError(w, err)
			return
		}
	}
}

func meta(name string) object { return object{"metadata": object{"name": name}} }

// ingress is what the status of a service shows.
func (w *world) ingress(name string) (list []string) {
	w.Helper()
	var s corev1.Service
	w.do(w.core.Get().Namespace("default").Resource("services").Name(name).Do(w.ctx).Into(&s))
	for _, i := range s.Status.LoadBalancer.Ingress {
		list = append(list, i.IP)
	}
	return list
}

const services = "/api/v1/namespaces/default/services"

func (w *world) makeService(name string, annotations map[string]string) {
	w.Helper()
	w.do(w.server.Create(w.ctx, services, object{
		"metadata": object{"name": name, "annotations": annotations}, "spec": object{"type": "LoadBalancer", "ports": []object{{"port": 80}}},
	}))
}

// balance goes through the life of addresses of services.
func (w *world) balance() {
	w.Helper()
	allocator := alloc.New(w.store, alloc.Options{})
	for name, cidr := range map[string]string{"lb-a": "172.20.0.0/28", "lb-b": "172.21.0.0/28"} {
		p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr, BlockSize: 28, AllowedUses: []api.IPPoolUse{api.UseLoadBalancer}}}
		p.Name = name
		p.Default()
		w.create(p)
	}
	within := func(cidr string, list []string) bool {
		return len(list) == 1 && netip.MustParsePrefix(cidr).Contains(netip.MustParseAddr(list[0]))
	}
	w.makeService("web", nil)
	w.soon("an address", func() bool { return within("172.20.0.0/28", w.ingress("web")) })
	first := w.ingress("web")[0]
	w.do(w.server.Patch(w.ctx, services+"/web", object{"metadata": object{"annotations": object{"projectcalico.org/ipv4pools": `["lb-b"]`}}}))
	w.soon("an address of the other pool", func() bool { return within("172.21.0.0/28", w.ingress("web")) })
	w.soon("the first address is given back", func() bool {
		_, err := allocator.Address(w.ctx, netip.MustParseAddr(first))
		return errors.Is(err, alloc.ErrNotAssigned)
	})
	w.makeService("named", map[string]string{"projectcalico.org/loadBalancerIPs": `["172.20.0.9"]`})
	w.soon("the address that was asked for", func() bool { return slices.Equal(w.ingress("named"), []string{"172.20.0.9"}) })
	w.makeService("second", map[string]string{"projectcalico.org/loadBalancerIPs": `["172.20.0.9"]`})
	w.soon("a reason", func() bool {
		var s corev1.Service
		w.do(w.core.Get().Namespace("default").Resource("services").Name("second").Do(w.ctx).Into(&s))
		return slices.ContainsFunc(s.Status.Conditions, func(c metav1.Condition) bool { return strings.Contains(c.Message, "172.20.0.9") })
	})
	w.do(w.server.Delete(w.ctx, services+"/named"))
	w.soon("the other service has it now", func() bool { return slices.Equal(w.ingress("second"), []string{"172.20.0.9"}) })
	w.do(w.server.Delete(w.ctx, services+"/second"))
	w.do(w.server.Delete(w.ctx, services+"/web"))
	w.soon("all is given back", func() bool {
		l, err := w.store.List(w.ctx, "IPAMHandle", datastore.ListOptions{})
		return err == nil && len(l.Items) == 0
	})
}

// TestWithEtcd runs the controllers on etcd and Kubernetes.
func TestWithEtcd(t *testing.T) {
	w := newWorld(t, "../deploy/overlays/etcd/rbac.yaml", "../deploy/base/rbac.yaml")
	etcd, err := embedded.Start(w.ctx, embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	w.do(err)
	t.Cleanup(func() { require.NoError(t, etcd.Close()) })
	client, err := etcd.Client(w.ctx)
	w.do(err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	w.store = datastore.Validating(client)
	w.do(datastore.Init(w.ctx, w.store))

	// what an earlier process left
	stale := &api.Profile{}
	stale.Name = "kns.stale"
	w.create(stale)
	mine := &api.Profile{}
	mine.Name = "mine"
	w.create(mine)
	w.run("--datastore", "etcdv3", "--datastore-endpoints", etcd.Endpoint(), "--cluster-type", "k8s,bgp")
	w.informed("k8s,bgp,typha")

	w.do(w.server.Create(w.ctx, "/api/v1/namespaces", object{"metadata": object{"name": "shop", "labels": object{"team": "a"}}}))
	profile := func(name string) map[string]string {
		if p := get[*api.Profile](w, "Profile", "", name); p != nil {
			return p.Spec.LabelsToApply
		}
		return nil
	}
	w.soon("a profile of the namespace", func() bool { return profile("kns.shop")["pcns.team"] == "a" })
	w.soon("one that is stale goes", func() bool { return get[*api.Profile](w, "Profile", "", "kns.stale") == nil })
	require.NotNil(t, get[*api.Profile](w, "Profile", "", "mine"))
	w.do(w.server.Patch(w.ctx, "/api/v1/namespaces/shop", object{"metadata": object{"labels": object{"team": "b"}}}))
	w.soon("its labels", func() bool { return profile("kns.shop")["pcns.team"] == "b" })
	w.do(w.server.Create(w.ctx, "/api/v1/namespaces/shop/serviceaccounts", meta("till")))
	w.soon("a profile of the service account", func() bool { return profile("ksa.shop.till")["pcsa.projectcalico.org/name"] == "till" })

	const policies = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
	w.do(w.server.Create(w.ctx, policies, object{"metadata": object{"name": "web"}, "spec": object{"podSelector": object{"matchLabels": object{"app": "web"}}}}))
	policy := func() string {
		if p := get[*api.NetworkPolicy](w, "NetworkPolicy", "shop", "knp.default.web"); p != nil {
			return p.Spec.Selector
		}
		return ""
	}
	w.soon("the policy", func() bool { return policy() == "projectcalico.org/orchestrator == 'k8s' && app == 'web'" })
	w.do(w.server.Delete(w.ctx, policies+"/web"))
	w.soon("no policy", func() bool { return policy() == "" })

	w.do(w.server.Create(w.ctx, "/api/v1/namespaces/shop/pods", object{
		"metadata": object{"name": "web-0", "labels": object{"app": "web"}},
		"spec":     object{"nodeName": "n1", "serviceAccountName": "till", "containers": []object{{"name": "c", "image": "x"}}},
	}))
	for _, pod := range []string{"web-0", "elsewhere"} {
		ep := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
			Orchestrator: "k8s", Node: "n1", Pod: pod, Endpoint: "eth0", InterfaceName: "cali1", IPNetworks: []string{"10.0.0.1/32"},
		}}
		ep.Namespace, ep.Labels = "shop", map[string]string{"app": "old"}
		ep.Default()
		w.create(ep)
	}
	endpoint := func(name string) map[string]string {
		return get[*api.WorkloadEndpoint](w, "WorkloadEndpoint", "shop", name).Labels
	}
	w.soon("labels of the endpoint", func() bool {
		l := endpoint("n1-k8s-web--0-eth0")
		return l["app"] == "web" && l["projectcalico.org/serviceaccount"] == "till" && l["projectcalico.org/namespace"] == "shop"
	})
	w.do(w.server.Patch(w.ctx, "/api/v1/namespaces/shop/pods/web-0", object{"metadata": object{"labels": object{"app": "new"}}}))
	w.soon("the new label", func() bool { return endpoint("n1-k8s-web--0-eth0")["app"] == "new" })
	require.Equal(t, "old", endpoint("n1-k8s-elsewhere-eth0")["app"])

	w.nodes()
	w.balance()

	// an entry that is removed stops its controller, and the API server may go and come back
	change(w, "KubeControllersConfiguration", "", "default", func(k *api.KubeControllersConfiguration) { k.Spec.Controllers.Namespace = nil })
	w.soon("it is stopped", func() bool {
		k := get[*api.KubeControllersConfiguration](w, "KubeControllersConfiguration", "", "default")
		return k.Status.RunningConfig != nil && k.Status.RunningConfig.Controllers.Namespace == nil
	})
	w.do(w.server.KillAPI())
	w.do(w.server.StartAPI(w.ctx))
	w.do(w.server.Create(w.ctx, "/api/v1/namespaces", meta("late")))
	w.do(w.server.Create(w.ctx, "/api/v1/namespaces/late/serviceaccounts", meta("robot")))
	w.soon("what came after the restart", func() bool { return profile("ksa.late.robot") != nil })
	require.Nil(t, profile("kns.late"))
}

// nodes goes through the life of a node in etcd mode.
func (w *world) nodes() {
	w.Helper()
	w.do(w.server.Create(w.ctx, "/api/v1/nodes", object{"metadata": object{"name": "n1", "labels": object{"zone": "z1"}}}))
	for _, name := range []string{"n1", "outside"} {
		n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGPSpec{IPv4Address: "10.0.0.7/24"}}}
		n.Name = name
		if name == "n1" {
			n.Spec.OrchRefs = []api.OrchRef{{Orchestrator: "k8s", NodeName: "n1"}}
		}
		w.create(n)
	}
	w.soon("labels of the node", func() bool { return get[*api.Node](w, "Node", "", "n1").Labels["zone"] == "z1" })
	change(w, "KubeControllersConfiguration", "", "default", func(k *api.KubeControllersConfiguration) {
		k.Spec.Controllers.Node.HostEndpoint = &api.AutoHostEndpointConfig{AutoCreate: api.Enabled}
	})
	for _, name := range []string{"n1", "outside"} {
		w.soon("a host endpoint", func() bool { return get[*api.HostEndpoint](w, "HostEndpoint", "", name+"-auto-hep") != nil })
	}
	e := get[*api.HostEndpoint](w, "HostEndpoint", "", "n1-auto-hep")
	require.Equal(w, []string{"10.0.0.7"}, e.Spec.ExpectedIPs)
	require.Equal(w, "z1", e.Labels["zone"])
	peer := &api.BGPPeer{Spec: api.BGPPeerSpec{Node: "n1", PeerIP: "10.0.0.1", ASNumber: 65001}}
	peer.Name = "of-n1"
	w.create(peer)
	felix := &api.FelixConfiguration{}
	felix.Name = "node.n1"
	w.create(felix)
	w.do(w.server.Delete(w.ctx, "/api/v1/nodes/n1"))
	w.soon("the node goes", func() bool { return get[*api.Node](w, "Node", "", "n1") == nil })
	require.Nil(w, get[*api.BGPPeer](w, "BGPPeer", "", "of-n1"))
	require.Nil(w, get[*api.FelixConfiguration](w, "FelixConfiguration", "", "node.n1"))
	w.soon("its host endpoint too", func() bool { return get[*api.HostEndpoint](w, "HostEndpoint", "", "n1-auto-hep") == nil })
	require.NotNil(w, get[*api.Node](w, "Node", "", "outside"))
	change(w, "KubeControllersConfiguration", "", "default", func(k *api.KubeControllersConfiguration) {
		k.Spec.Controllers.Node.HostEndpoint.AutoCreate = api.Disabled
	})
	w.soon("none are left", func() bool { return get[*api.HostEndpoint](w, "HostEndpoint", "", "outside-auto-hep") == nil })
}

// TestWithCustomResources runs the controllers on the API of Kubernetes alone, with Muslin's definitions and with those that Calico made.
func TestWithCustomResources(t *testing.T) {
	for group, definitions := range map[string]string{"projectcalico.org": "../deploy/chart/crds/*.yaml", "crd.projectcalico.org": "../deploy/classic/crds.yaml"} {
		t.Run(group, func(t *testing.T) { withCustomResources(t, definitions, group == "projectcalico.org") })
	}
}

func withCustomResources(t *testing.T, definitions string, native bool) {
	t.Helper()
	w := newWorld(t, "../deploy/base/rbac.yaml")
	files, err := filepath.Glob(definitions)
	w.do(err)
	require.NotEmpty(t, files)
	for _, f := range files {
		w.apply(f)
	}
	client, err := kubernetes.New(kubernetes.Config{REST: w.server.Config(k8s.Admin), Logger: slog.New(slog.DiscardHandler)})
	w.do(err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	w.store = datastore.Validating(client)
	w.soon("all kinds", func() bool {
		for _, k := range api.Kinds() {
			if _, err := client.List(w.ctx, k.Name, datastore.ListOptions{}); err != nil && k.Name != "LiveMigration" {
				return false
			}
		}
		return true
	})
	w.do(datastore.Init(w.ctx, w.store))
	w.run("--datastore", "kubernetes", "--cluster-type", "k8s")
	w.informed("k8s,typha,kdd")
	w.soon("the configuration and what runs", func() bool {
		k := get[*api.KubeControllersConfiguration](w, "KubeControllersConfiguration", "", "default")
		return k != nil && k.Status.RunningConfig != nil && k.Status.RunningConfig.Controllers.Policy == nil && k.Status.RunningConfig.Controllers.LoadBalancer != nil
	})
	w.forbidden()
	w.balance()
	if native { // kubectl sees nothing else
		w.finalizers()
	}

	w.do(w.server.Create(w.ctx, "/api/v1/nodes", object{"metadata": object{"name": "n1", "annotations": object{"projectcalico.org/IPv4Address": "10.0.0.7/24"}}}))
	change(w, "KubeControllersConfiguration", "", "default", func(k *api.KubeControllersConfiguration) {
		k.Spec.Controllers.Node.HostEndpoint = &api.AutoHostEndpointConfig{AutoCreate: api.Enabled}
	})
	w.soon("a host endpoint", func() bool {
		e := get[*api.HostEndpoint](w, "HostEndpoint", "", "n1-auto-hep")
		return e != nil && slices.Contains(e.Spec.ExpectedIPs, "10.0.0.7")
	})
	w.do(w.server.Delete(w.ctx, "/api/v1/nodes/n1"))
	w.soon("none without the node", func() bool { return get[*api.HostEndpoint](w, "HostEndpoint", "", "n1-auto-hep") == nil })
}

// informed waits until the cluster says which version it is of, and what it is made of.
func (w *world) informed(types string) {
	w.Helper()
	w.soon("the version", func() bool {
		info := get[*api.ClusterInformation](w, "ClusterInformation", "", "default")
		return info != nil && info.Spec.CalicoVersion == daemon.Version() && info.Spec.ClusterType == types && info.Spec.ClusterGUID != "" && !info.Locked()
	})
}

// forbidden has one more process run, with an account that has no role: it says so.
func (w *world) forbidden() {
	w.Helper()
	address := loopback.Address()
	w.runAs("system:serviceaccount:kube-system:nobody", "--datastore", "kubernetes", "--health", address)
	w.soon("a metric names the cause", says(address, "/metrics", `kube_controllers_unreadable_kinds{reason="Forbidden"} 1`))
	w.soon("the page says what to do", says(address, "/readiness", "apply the ClusterRole and the Role of kube-controllers (KubeControllersConfiguration)"))
}

// finalizers has a pool and a tier deleted past every check of ours.
func (w *world) finalizers() {
	w.Helper()
	const pools, tiers = "/apis/projectcalico.org/v3/ippools", "/apis/projectcalico.org/v3/tiers"
	w.do(w.server.Create(w.ctx, pools, object{"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": object{"name": "p"}, "spec": object{"cidr": "10.10.0.0/24", "blockSize": 28}}))
	w.soon("the pool is held", func() bool {
		return slices.Contains(get[*api.IPPool](w, "IPPool", "", "p").Finalizers, api.IPPoolFinalizer)
	})
	cidr := netip.MustParsePrefix("10.10.0.0/28")
	w.create(api.NewBlockAffinity(api.AffinityHost, "n9", cidr, api.AffinityConfirmed))
	w.do(w.server.Delete(w.ctx, pools+"/p"))
	w.soon("the pool goes", func() bool { return get[*api.IPPool](w, "IPPool", "", "p") == nil })
	l, err := w.store.List(w.ctx, "BlockAffinity", datastore.ListOptions{})
	w.do(err)
	for _, o := range l.Items {
		require.NotEqual(w, api.AffinityName(api.AffinityHost, "n9", cidr), o.GetName())
	}

	w.do(w.server.Create(w.ctx, tiers, object{"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": object{"name": "t"}, "spec": object{"order": 10}}))
	w.soon("the tier is held", func() bool {
		return slices.Contains(get[*api.Tier](w, "Tier", "", "t").Finalizers, api.TierFinalizer)
	})
	p := &api.GlobalNetworkPolicy{Spec: api.GlobalNetworkPolicySpec{NetworkPolicySpec: api.NetworkPolicySpec{Tier: "t"}}}
	p.Name = "in-t"
	w.create(p)
	w.do(w.server.Delete(w.ctx, tiers+"/t"))
	w.soon("the tier says what it waits for", func() bool {
		t := get[*api.Tier](w, "Tier", "", "t")
		return slices.ContainsFunc(t.Status.Conditions, func(c metav1.Condition) bool { return strings.Contains(c.Message, "GlobalNetworkPolicy(in-t)") })
	})
	_, err = w.store.Delete(w.ctx, api.Key{Kind: "GlobalNetworkPolicy", Name: "in-t"}, datastore.Precondition{})
	w.do(err)
	w.soon("the tier goes", func() bool { return get[*api.Tier](w, "Tier", "", "t") == nil })

	w.do(w.server.Delete(w.ctx, tiers+"/kube-admin"))
	w.soon("a built-in tier is back", func() bool {
		t := get[*api.Tier](w, "Tier", "", "kube-admin")
		return t != nil && t.DeletionTimestamp == nil
	})
}
