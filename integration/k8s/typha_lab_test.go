//go:build lab

package k8s

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/kube"
	"github.com/muslin-net/muslin/typha/views"
)

// object is an object of Kubernetes as JSON.
type object = map[string]any

// rig is a real API server and a real datastore, and everything of typha from these two to the views.
type rig struct {
	*testing.T
	ctx    context.Context
	server *Server
	data   datastore.Client
	store  *views.Store
	intake *intake.Intake
}

// control starts a control plane in which typha may do what docs/bgp.md says it must, and nothing else.
func control(t *testing.T) *Server {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute) // the first time it is built
	defer cancel()
	s, err := Start(ctx, t.TempDir(), func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	require.NoError(t, s.AllowTypha(ctx))
	return s
}

func start(t *testing.T, objects ...api.Object) *rig { return startOn(t, control(t), objects...) }

func startOn(t *testing.T, server *Server, objects ...api.Object) *rig {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	client, err := embedded.Open(ctx, embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	r := &rig{T: t, ctx: ctx, server: server, data: client, store: views.NewStore()}
	for _, o := range objects {
		r.put(o)
	}
	apiServer := kube.API{Config: server.Config(Typha), Log: log}
	services, err := kube.NewServices(apiServer)
	require.NoError(t, err)
	secrets, err := kube.NewSecrets(apiServer, "kube-system")
	require.NoError(t, err)
	policies, err := kube.NewPolicies(apiServer)
	require.NoError(t, err)
	r.intake = intake.New(client, cache.New(), intake.Options{Logger: log, Services: services, Policies: policies, Secrets: secrets})
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	group.Go(func() error { return intake.NewLoop(r.intake, compute.New(), r.store).Run(run) })
	t.Cleanup(func() {
		stop()
		require.ErrorIs(t, group.Wait(), context.Canceled)
	})
	return r
}

func (r *rig) put(o api.Object) {
	r.Helper()
	_, err := r.data.Create(r.ctx, o)
	require.NoError(r, err)
}

func (r *rig) change(o api.Object) {
	r.Helper()
	_, err := r.data.Update(r.ctx, o)
	require.NoError(r, err)
}

func (r *rig) do(err error) {
	r.Helper()
	require.NoError(r, err)
}

// until waits for what a node's BGP view has of services and secrets.
func (r *rig) until(what, node string, items ...string) {
	r.Helper()
	items = slices.Sorted(slices.Values(items))
	var have []string
	for {
		have = r.have(node)
		if _, inSync := r.store.Checkpoint(); inSync && slices.Equal(have, items) {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.ctx.Done():
			without := func(list, of []string) []string {
				return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(of, s) })
			}
			r.Fatalf("%s: node %s lacks %q and should not have %q", what, node, without(items, have), without(have, items))
		}
	}
}

func (r *rig) have(node string) (have []string) {
	for _, e := range r.store.View(views.Scope{Node: node, View: views.BGPView}) {
		switch it := e.Item().(type) {
		case view.Origination:
			have = append(have, it.Prefix.String())
		case view.Secret:
			have = append(have, it.Name+"="+string(it.Value))
		}
	}
	slices.Sort(have)
	return have
}

func node(name string) *api.Node {
	o := &api.Node{}
	o.Name = name
	o.Spec.BGP = &api.NodeBGPSpec{IPv4Address: "10.0.0." + name[1:] + "/24"}
	return o
}

const (
	servicesPath = "/api/v1/namespaces/default/services"
	slicesPath   = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	secretsPath  = "/api/v1/namespaces/kube-system/secrets"
)

// slice is an EndpointSlice of a service with one endpoint on each node.
func slice(name, service string, ready bool, nodes ...string) object {
	endpoints := []object{}
	for i, n := range nodes {
		endpoints = append(endpoints, object{
			"addresses": []string{fmt.Sprintf("192.168.0.%d", i+1)}, "nodeName": n, "conditions": object{"ready": ready},
		})
	}
	return object{
		"metadata": object{"name": name, "labels": object{"kubernetes.io/service-name": service}}, "addressType": "IPv4",
		"endpoints": endpoints, "ports": []object{{"port": 80, "protocol": "TCP"}},
	}
}

// TestServicesReachTheView has a Service with the policy Local, its slices and a password come and go in a real Kubernetes.
func TestServicesReachTheView(t *testing.T) {
	config := &api.BGPConfiguration{}
	config.Name = api.DefaultName
	config.Spec.ServiceClusterIPs = []api.ServiceIPBlock{{CIDR: "10.96.0.0/16"}}
	config.Spec.ServiceExternalIPs = []api.ServiceIPBlock{{CIDR: "172.20.0.0/16"}}
	config.Spec.ServiceLoadBalancerIPs = []api.ServiceIPBlock{{CIDR: "172.21.0.1/32"}}
	config.Spec.NodeMeshPassword = &api.BGPPassword{SecretKeyRef: &api.SecretKeySelector{Name: "bgp-passwords", Key: "mesh"}}
	np := &api.NetworkPolicy{}
	np.Namespace, np.Name = "default", "to-web"
	np.Spec.Egress = []api.Rule{{Action: api.Allow, Destination: api.EntityRule{Services: &api.ServiceMatch{Name: "web"}}}}
	pod := &api.WorkloadEndpoint{}
	pod.Namespace = "default"
	pod.Spec = api.WorkloadEndpointSpec{
		Node: "n1", Orchestrator: api.OrchestratorKubernetes, Pod: "p", Endpoint: "eth0", InterfaceName: "cali1",
		IPNetworks: []string{"192.168.0.9/32"}, ContainerID: "c",
	}
	pod.Name = "n1-k8s-p-eth0"
	forbidden := &api.BGPPeer{}
	forbidden.Name = "not-allowed"
	forbidden.Spec.PeerIP, forbidden.Spec.ASNumber = "10.0.0.253", 65000
	forbidden.Spec.Password = &api.BGPPassword{SecretKeyRef: &api.SecretKeySelector{Name: "other", Key: "k"}}
	r := start(t, node("n1"), node("n2"), config, np, pod, forbidden)
	const ranges, external = "10.96.0.0/16", "172.20.0.0/16"
	r.until("Secrets that are missing, or that typha may not read, hold nothing up for long", "n1", ranges, external)

	r.do(r.server.Create(r.ctx, servicesPath, object{
		"metadata": object{"name": "web"},
		"spec": object{
			"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.80",
			"externalIPs": []string{"172.20.0.80", "8.8.8.8"}, "ports": []object{{"port": 80}},
		},
	}))
	r.do(r.server.Patch(r.ctx, servicesPath+"/web/status", object{
		"status": object{"loadBalancer": object{"ingress": []object{{"ip": "172.21.0.1"}, {"hostname": "lb.example.org"}}}},
	}))
	r.do(r.server.Create(r.ctx, slicesPath, slice("web-1", "web", true, "n2")))
	r.until("the node of the endpoint announces", "n2", ranges, external, "10.96.0.80/32", "172.20.0.80/32", "172.21.0.1/32")
	r.until("the other one does not", "n1", ranges, external)
	r.do(r.server.Create(r.ctx, slicesPath, slice("web-2", "web", true, "n1")))
	r.until("slices are judged together", "n1", ranges, external, "10.96.0.80/32", "172.20.0.80/32", "172.21.0.1/32")
	require.Equal(t, []string{"192.168.0.1/32:80"}, r.members("n1"))

	r.do(r.server.Patch(r.ctx, slicesPath+"/web-2", object{"endpoints": slice("", "", false, "n1")["endpoints"]}))
	r.until("its endpoint is not ready any more", "n1", ranges, external)
	r.do(r.server.Delete(r.ctx, slicesPath+"/web-1"))
	r.until("the last slice of the node is gone", "n2", ranges, external)

	t.Log("passwords")
	r.do(r.server.Create(r.ctx, secretsPath, object{"metadata": object{"name": "other"}, "stringData": object{"k": "not to be read"}}))
	r.do(r.server.Create(r.ctx, secretsPath, object{"metadata": object{"name": "bgp-passwords"}, "stringData": object{"mesh": "one", "tor": "two"}}))
	const mesh = "kube-system/bgp-passwords/mesh="
	r.until("a late arrival", "n1", ranges, external, mesh+"one")
	r.until("all of the mesh have it", "n2", ranges, external, mesh+"one")
	r.do(r.server.Patch(r.ctx, secretsPath+"/bgp-passwords", object{"stringData": object{"mesh": "uno"}}))
	r.until("a change", "n1", ranges, external, mesh+"uno")
	peer := &api.BGPPeer{}
	peer.Name = "tor"
	peer.Spec.Node, peer.Spec.PeerIP, peer.Spec.ASNumber = "n2", "10.0.0.254", 65000
	peer.Spec.Password = &api.BGPPassword{SecretKeyRef: &api.SecretKeySelector{Name: "bgp-passwords", Key: "tor"}}
	r.put(peer)
	r.until("a password of one node", "n2", ranges, external, mesh+"uno", "kube-system/bgp-passwords/tor=two")
	r.until("is that node's alone", "n1", ranges, external, mesh+"uno")

	t.Log("an API server that is away, and one that comes back when things have changed")
	r.do(r.server.KillAPI())
	stored, err := r.data.Get(r.ctx, api.Key{Kind: "BGPConfiguration", Name: api.DefaultName})
	require.NoError(t, err)
	config = stored.(*api.BGPConfiguration)
	config.Spec.ServiceClusterIPs = append(config.Spec.ServiceClusterIPs, api.ServiceIPBlock{CIDR: "fd96::/112"})
	r.change(config)
	const ranges6 = "fd96::/112"
	r.until("the rest goes on, and what is known stays", "n1", ranges, ranges6, external, mesh+"uno")
	r.do(r.server.StartAPI(r.ctx))
	r.do(r.server.Create(r.ctx, slicesPath, slice("web-3", "web", true, "n1")))
	r.until("followed again", "n1", ranges, ranges6, external, mesh+"uno", "10.96.0.80/32", "172.20.0.80/32", "172.21.0.1/32")
	r.do(r.server.Delete(r.ctx, secretsPath+"/bgp-passwords"))
	r.until("a Secret that vanished", "n1", ranges, ranges6, external, "10.96.0.80/32", "172.20.0.80/32", "172.21.0.1/32")
	r.do(r.server.Delete(r.ctx, servicesPath+"/web"))
	r.until("the Service is gone, its slice is not", "n1", ranges, ranges6, external)
}

// members are those of the one service set in a node's view.
func (r *rig) members(node string) []string {
	found := map[string]bool{}
	for _, e := range r.store.View(views.Scope{Node: node, View: views.NodeView}) {
		if set, ok := e.Item().(view.IPSet); ok && set.Type == view.SetIPPort {
			for _, m := range set.Members {
				found[fmt.Sprintf("%s:%d", m.Prefix, m.Port)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// TestManyServices lists more than a page, through trouble in the middle, and follows them.
func TestManyServices(t *testing.T) {
	config := &api.BGPConfiguration{}
	config.Name = api.DefaultName
	config.Spec.ServiceClusterIPs = []api.ServiceIPBlock{{CIDR: "10.96.0.0/16"}}
	config.Spec.ServiceLoadBalancerAggregation = new("Disabled")
	server := control(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const services = 1100 // pages are of 500
	var group errgroup.Group
	group.SetLimit(8)
	want := []string{"10.96.0.0/16"}
	for i := range services {
		a := netip.AddrFrom4([4]byte{10, 96, byte(1 + i/250), byte(1 + i%250)})
		want = append(want, a.String()+"/32")
		group.Go(func() error {
			name := fmt.Sprintf("s%d", i)
			if err := server.Create(ctx, servicesPath, object{
				"metadata": object{"name": name}, "spec": object{"clusterIP": a.String(), "ports": []object{{"port": 80}}},
			}); err != nil {
				return err
			}
			return server.Create(ctx, slicesPath, slice(name, name, true, "n1"))
		})
	}
	require.NoError(t, group.Wait())
	r := startOn(t, server, node("n1"), node("n2"), config)
	r.until("all pages", "n1", want...)
	r.until("all pages", "n2", want...)
	for i := range 3 {
		r.do(server.Delete(r.ctx, fmt.Sprintf("%s/s%d", slicesPath, i)))
	}
	r.until("without endpoints", "n1", append(want[:1:1], want[4:]...)...)
}
