//go:build lab

package kubernetes_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/integration/k8s"
)

type object = map[string]any

// TestCluster runs what is Kubernetes' own on one real API server.
func TestCluster(t *testing.T) {
	s := control(t)
	namespace(t, s, "shop", map[string]string{"team": "sales"})
	t.Run("no CRDs", func(t *testing.T) { testNoCRDs(t, s) })
	apply(t, s, native, "../../deploy/chart/crds/*.yaml")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *k8s.Server)
	}{
		{"init", func(t *testing.T, s *k8s.Server) { testInit(t, open(t, s, "")) }},
		{"refusals", testRefusals},
		{"nodes", testNodes},
		{"pods", testPods},
		{"profiles", testProfiles},
		{"policies", testPolicies},
		{"status", testStatus},
		{"marks", testMarks},
		{"resume", testResume},
		{"forgotten", testForgotten},
		{"expired", testExpired},
		{"restart", testRestart},
		{"groups", testGroups},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
}

func set(name string) *api.GlobalNetworkSet {
	o := &api.GlobalNetworkSet{}
	o.SetName(name)
	o.Spec.Nets = []string{"192.0.2.0/24"}
	return o
}

func create(t *testing.T, c datastore.Client, o api.Object) api.Object {
	t.Helper()
	out, err := c.Create(patient(t), o)
	require.NoError(t, err)
	return out
}

// next is the next event that is not a Bookmark.
func next(t *testing.T, w datastore.Watcher) datastore.Event {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case e, ok := <-w.Events():
			require.True(t, ok, "the watch ended: %v", w.Err())
			if e.Type != datastore.Bookmark {
				return e
			}
		case <-timeout:
			require.FailNow(t, "no event came")
		}
	}
}

func watchFrom(t *testing.T, c datastore.Client, kind, revision string) datastore.Watcher {
	t.Helper()
	w, err := c.Watch(patient(t), kind, datastore.WatchOptions{Revision: revision})
	require.NoError(t, err)
	t.Cleanup(w.Stop)
	return w
}

// testNoCRDs has a cluster that knows none of our kinds.
func testNoCRDs(t *testing.T, s *k8s.Server) {
	c := open(t, s, "")
	ctx := patient(t)
	for name, do := range map[string]func() error{
		"ready":  func() error { return c.Ready(ctx) },
		"get":    func() error { _, err := c.Get(ctx, api.Key{Kind: "IPPool", Name: "a"}); return err },
		"create": func() error { _, err := c.Create(ctx, set("a")); return err },
		"list":   func() error { _, err := c.List(ctx, "IPPool", datastore.ListOptions{}); return err },
	} {
		err := do()
		require.ErrorContains(t, err, "deploy/chart/crds", name)
		require.NotErrorIs(t, err, datastore.ErrNotFound, name)
	}
	_, err := c.List(ctx, "Node", datastore.ListOptions{})
	require.NoError(t, err, "nodes need no CRD")
}

// testInit makes what every cluster must have, through the checks that all writers go through.
func testInit(t *testing.T, c datastore.Client) {
	ctx := patient(t)
	c = datastore.Validating(c)
	require.NoError(t, datastore.Init(ctx, c))
	require.NoError(t, datastore.Init(ctx, c))
	o, err := c.Get(ctx, api.Key{Kind: "ClusterInformation", Name: api.DefaultName})
	require.NoError(t, err)
	require.NotEmpty(t, o.(*api.ClusterInformation).Spec.ClusterGUID)
	l, err := c.List(ctx, "Tier", datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, l.Items, len(api.BuiltinTiers()))
	_, err = c.Get(ctx, api.Key{Kind: "FelixConfiguration", Name: api.DefaultName})
	require.NoError(t, err, "kubectl patch felixconfiguration default needs it")
}

// testRefusals has each way of not getting an answer, or not the one that was wanted.
func testRefusals(t *testing.T, s *k8s.Server) {
	ctx := patient(t)
	stranger := *s.Config(k8s.Typha) // it has no roles here
	expired := *s.Config(k8s.Admin)
	expired.BearerToken = "of yesterday"
	gone := *s.Config(k8s.Admin)
	gone.Host = "https://127.0.0.1:1"
	untrusted := *s.Config(k8s.Admin)
	untrusted.Insecure = false
	for _, c := range []struct {
		name        string
		config      *rest.Config
		want        []string
		unavailable bool
	}{
		{"no right", &stranger, []string{"a right is missing", "ippools", k8s.Typha}, false},
		{"expired token", &expired, []string{"credentials", "renew"}, false},
		{"nobody there", &gone, []string{"127.0.0.1:1", "refused", "K8S_API_ENDPOINT"}, true},
		{"untrusted", &untrusted, []string{"K8S_CA_FILE"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := openWith(t, kubernetes.Config{REST: c.config, APIGroup: native})
			_, err := client.Get(ctx, api.Key{Kind: "IPPool", Name: "a"})
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			require.Equal(t, c.unavailable, errors.Is(err, datastore.ErrUnavailable))
			require.NotErrorIs(t, err, datastore.ErrNotFound)
			require.Error(t, client.Ready(ctx))
		})
	}
	c := open(t, s, "")
	pool := &api.IPPool{}
	pool.SetName("wrong")
	pool.Spec.CIDR = "10.0.0.1/8"
	_, err := c.Create(ctx, pool)
	require.ErrorContains(t, err, "spec.cidr", "what the server says of an object comes through")
	orphan := &api.NetworkSet{}
	orphan.SetName("a")
	orphan.SetNamespace("nowhere")
	_, err = c.Create(ctx, orphan)
	require.ErrorContains(t, err, "create the namespace first")
	require.NotErrorIs(t, err, datastore.ErrNotFound)
}

func testNodes(t *testing.T, s *k8s.Server) {
	c, ctx := open(t, s, ""), patient(t)
	require.NoError(t, s.Create(ctx, "/api/v1/nodes", object{"metadata": object{
		"name": "node-a", "labels": object{"rack": "1"}, "annotations": object{"other": "stays", "projectcalico.org/IPv4VXLANTunnelAddr": "10.1.0.1"},
	}}))
	l, err := c.List(ctx, "Node", datastore.ListOptions{})
	require.NoError(t, err)
	w := watchFrom(t, c, "Node", l.Revision)
	key := api.Key{Kind: "Node", Name: "node-a"}
	o, err := c.Get(ctx, key)
	require.NoError(t, err)
	n := o.(*api.Node)
	require.Equal(t, "10.1.0.1", n.Spec.IPv4VXLANTunnelAddr)
	stale := n.DeepCopy()

	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: "10.0.0.7/24"}
	n.Spec.IPv4VXLANTunnelAddr = ""
	n.Annotations["muslin.net/ipam-epoch"] = "4"
	n.Labels["ours"] = "yes"
	updated, err := c.Update(ctx, n)
	require.NoError(t, err)
	require.Equal(t, n.Spec.BGP, updated.(*api.Node).Spec.BGP)
	require.Equal(t, updated, next(t, w).Object)
	raw := fetch(t, s, "/api/v1/nodes/node-a")["metadata"].(object)
	require.Equal(t, object{
		"other": "stays", "projectcalico.org/IPv4Address": "10.0.0.7/24",
		"projectcalico.org/annotations": `{"muslin.net/ipam-epoch":"4"}`, "projectcalico.org/labels": `{"ours":"yes"}`,
	}, raw["annotations"])
	require.Equal(t, object{"rack": "1"}, raw["labels"], "labels of the node itself are not ours to write")

	_, err = c.Update(ctx, stale)
	require.ErrorIs(t, err, datastore.ErrConflict)
	again, err := c.Update(ctx, updated)
	require.NoError(t, err)
	require.Equal(t, updated.GetResourceVersion(), again.GetResourceVersion(), "what changes nothing is not written")
	fresh := &api.Node{}
	fresh.SetName("none")
	_, err = c.Create(ctx, fresh)
	require.ErrorContains(t, err, "kubelet")
	_, err = c.Delete(ctx, key, datastore.Precondition{})
	require.ErrorContains(t, err, "kubectl delete node")
}

func pod(name, node string) object {
	return object{
		"metadata": object{"name": name, "labels": object{"app": "web", "pcns.team": "ops"}},
		"spec":     object{"nodeName": node, "containers": []object{{"name": "c", "image": "none"}}},
	}
}

func testPods(t *testing.T, s *k8s.Server) {
	c, ctx := open(t, s, ""), patient(t)
	const pods = "/api/v1/namespaces/shop/pods"
	l, err := c.List(ctx, "WorkloadEndpoint", datastore.ListOptions{})
	require.NoError(t, err)
	w := watchFrom(t, c, "WorkloadEndpoint", l.Revision)
	waiting := pod("web-0", "")
	delete(waiting["spec"].(object), "nodeName")
	require.NoError(t, s.Create(ctx, pods, waiting))
	require.NoError(t, s.Create(ctx, pods, pod("other", "node-b")))
	require.Equal(t, "node--b-k8s-other-eth0", next(t, w).Key.Name, "a pod that is on no node is no endpoint")
	require.NoError(t, s.Create(ctx, pods+"/web-0/binding", object{"metadata": object{"name": "web-0"}, "target": object{"kind": "Node", "name": "node-a"}}))
	e := next(t, w)
	require.Equal(t, datastore.Added, e.Type, "it is one when it is bound")
	key := api.Key{Kind: "WorkloadEndpoint", Namespace: "shop", Name: "node--a-k8s-web--0-eth0"}
	require.Equal(t, key, e.Key)

	o, err := c.Get(ctx, key)
	require.NoError(t, err)
	ep := o.(*api.WorkloadEndpoint)
	require.Equal(t, "web", ep.Labels["app"])
	require.NotContains(t, ep.Labels, "pcns.team")
	require.Empty(t, ep.Spec.IPNetworks)
	_, err = c.Delete(ctx, key, datastore.Precondition{})
	require.ErrorIs(t, err, datastore.ErrNotFound, "what is not wired cannot be unwired")

	wired := ep.DeepCopy()
	wired.Spec.ContainerID, wired.Spec.IPNetworks = "c1", []string{"10.1.2.3/32", "fd00::3/128"}
	stranger := wired.DeepCopy()
	stranger.UID = "8dbecb55-3103-468d-9448-f47664c2d915"
	_, err = c.Create(ctx, stranger)
	require.ErrorIs(t, err, datastore.ErrConflict, "another pod of that name is not written to")
	stored, err := c.Create(ctx, wired)
	require.NoError(t, err)
	require.Equal(t, wired.Spec, stored.(*api.WorkloadEndpoint).Spec)
	require.Equal(t, stored, next(t, w).Object)
	_, err = c.Create(ctx, wired)
	require.ErrorIs(t, err, datastore.ErrExists)
	require.Equal(t, object{
		"cni.projectcalico.org/podIP": "10.1.2.3/32", "cni.projectcalico.org/podIPs": "10.1.2.3/32,fd00::3/128", "cni.projectcalico.org/containerID": "c1",
	}, fetch(t, s, pods+"/web-0")["metadata"].(object)["annotations"])

	require.NoError(t, s.Patch(ctx, pods+"/web-0/status", object{"status": object{"phase": "Running"}}))
	next(t, w)
	wired.Spec.ContainerID = "c2"
	updated, err := c.Update(ctx, wired)
	require.NoError(t, err, "that kubelet has changed the pod is no conflict")
	require.Equal(t, "c2", updated.(*api.WorkloadEndpoint).Spec.ContainerID)
	next(t, w)

	all, err := c.List(ctx, "WorkloadEndpoint", datastore.ListOptions{})
	require.NoError(t, err)
	require.Len(t, all.Items, 2)
	ofNode, err := c.List(ctx, "WorkloadEndpoint", datastore.ListOptions{Node: "node-a"})
	require.NoError(t, err)
	require.Len(t, ofNode.Items, 1)

	_, err = c.Delete(ctx, key, datastore.Precondition{UID: string(stranger.UID)})
	require.ErrorIs(t, err, datastore.ErrConflict)
	_, err = c.Delete(ctx, key, datastore.Precondition{UID: string(ep.UID)})
	require.NoError(t, err)
	require.Equal(t, object{
		"cni.projectcalico.org/podIP": "", "cni.projectcalico.org/podIPs": "", "cni.projectcalico.org/containerID": "c2",
	}, fetch(t, s, pods+"/web-0")["metadata"].(object)["annotations"])
	_, err = c.Delete(ctx, key, datastore.Precondition{})
	require.ErrorIs(t, err, datastore.ErrNotFound)
	_, err = c.Get(ctx, api.Key{Kind: "WorkloadEndpoint", Namespace: "shop", Name: "node--b-k8s-web--0-eth0"})
	require.ErrorIs(t, err, datastore.ErrNotFound, "it is on another node")
}

func testProfiles(t *testing.T, s *k8s.Server) {
	c, ctx := datastore.Validating(open(t, s, "")), patient(t)
	l, err := c.List(ctx, "Profile", datastore.ListOptions{})
	require.NoError(t, err)
	require.Regexp(t, `^\d+/\d+$`, l.Revision)
	w := watchFrom(t, c, "Profile", l.Revision)
	require.NoError(t, s.Create(ctx, "/api/v1/namespaces/shop/serviceaccounts", object{"metadata": object{"name": "web.blue", "labels": object{"role": "front"}}}))
	e := next(t, w)
	require.Equal(t, "ksa.shop.web.blue", e.Key.Name)
	require.Equal(t, "front", e.Object.(*api.Profile).Spec.LabelsToApply["pcsa.role"])
	namespace(t, s, "late", nil)
	for e.Key.Name != "kns.late" { // the cluster's own controllers may make accounts
		e = next(t, w)
	}
	again := watchFrom(t, c, "Profile", l.Revision)
	names := map[string]bool{}
	for len(names) < 2 {
		names[next(t, again).Key.Name] = true
	}
	require.Equal(t, map[string]bool{"ksa.shop.web.blue": true, "kns.late": true}, names, "a watch takes up both resources where it was")

	for _, name := range []string{"kns.shop", "ksa.shop.web.blue", api.ProfileDefaultAllow} {
		_, err := c.Get(ctx, api.Key{Kind: "Profile", Name: name})
		require.NoError(t, err, name)
	}
	for _, name := range []string{"kns.none", "ksa.shop.none", "other"} {
		_, err := c.Get(ctx, api.Key{Kind: "Profile", Name: name})
		require.ErrorIs(t, err, datastore.ErrNotFound, name)
	}
	p := &api.Profile{}
	p.SetName("mine")
	_, err = c.Create(ctx, p)
	require.ErrorContains(t, err, "namespaces and service accounts")
	_, err = c.Watch(ctx, "Profile", datastore.WatchOptions{Revision: "5"})
	require.ErrorContains(t, err, "2 resources")
}

func testPolicies(t *testing.T, s *k8s.Server) {
	c, ctx := open(t, s, ""), patient(t)
	l, err := c.List(ctx, "NetworkPolicy", datastore.ListOptions{})
	require.NoError(t, err)
	w := watchFrom(t, c, "NetworkPolicy", l.Revision)
	require.NoError(t, s.Create(ctx, "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies", object{
		"metadata": object{"name": "web"}, "spec": object{"podSelector": object{"matchLabels": object{"app": "web"}}},
	}))
	e := next(t, w)
	require.Equal(t, "knp.default.web", e.Key.Name)
	ours := &api.NetworkPolicy{}
	ours.SetNamespace("shop")
	ours.SetName("web")
	ours.Default()
	created := create(t, c, ours)
	require.Equal(t, created, next(t, w).Object)
	all, err := c.List(ctx, "NetworkPolicy", datastore.ListOptions{Namespace: "shop"})
	require.NoError(t, err)
	require.Len(t, all.Items, 2)
	require.Equal(t, e.Object, all.Items[0])
	got, err := c.Get(ctx, e.Key)
	require.NoError(t, err)
	require.Equal(t, e.Object, got)
	_, err = c.Update(ctx, got)
	require.ErrorContains(t, err, "kubectl")
	_, err = c.Delete(ctx, e.Key, datastore.Precondition{})
	require.ErrorContains(t, err, "kubectl")
}

// testStatus writes an object with a status, which the server keeps apart.
func testStatus(t *testing.T, s *k8s.Server) {
	c, ctx := open(t, s, ""), patient(t)
	node := &api.CalicoNodeStatus{}
	node.SetName("one")
	node.Spec.Node, node.Spec.Classes, node.Spec.UpdatePeriodSeconds = "node-a", []api.StatusClass{api.StatusBGP}, new(uint32(5))
	node.Status.BGP.NumberEstablishedV4 = 3
	stored := create(t, c, node).(*api.CalicoNodeStatus)
	require.Equal(t, 3, stored.Status.BGP.NumberEstablishedV4)
	stored.Spec.UpdatePeriodSeconds = new(uint32(7))
	stored.Status.BGP.NumberEstablishedV4 = 4
	o, err := c.Update(ctx, stored)
	require.NoError(t, err)
	both := o.(*api.CalicoNodeStatus)
	require.Equal(t, uint32(7), *both.Spec.UpdatePeriodSeconds)
	require.Equal(t, 4, both.Status.BGP.NumberEstablishedV4)
	_, err = c.Update(ctx, stored)
	require.ErrorIs(t, err, datastore.ErrConflict)
}

// testMarks has IPAM objects that somebody marked as deleted, and did not get to delete.
func testMarks(t *testing.T, s *k8s.Server) {
	c, ctx := open(t, s, ""), patient(t)
	cidr := netip.MustParsePrefix("10.9.0.4/30")
	const path = "/apis/projectcalico.org/v3/ipamblocks/10-9-0-4-30"
	mark := func() {
		require.NoError(t, s.Patch(ctx, path, object{"spec": object{"deleted": true}}))
	}
	block := create(t, c, api.NewIPAMBlock(cidr))
	w := watchFrom(t, c, "IPAMBlock", block.GetResourceVersion())
	mark()
	require.Equal(t, datastore.Deleted, next(t, w).Type)
	l, err := c.List(ctx, "IPAMBlock", datastore.ListOptions{})
	require.NoError(t, err)
	require.Empty(t, l.Items)
	_, err = c.Get(ctx, api.KeyOf(block))
	require.ErrorIs(t, err, datastore.ErrNotFound)
	require.ErrorContains(t, s.Delete(ctx, path), "404", "looking at it has finished it")

	create(t, c, api.NewIPAMBlock(cidr))
	require.Equal(t, datastore.Added, next(t, w).Type, "its end is not told twice")
	mark()
	create(t, c, api.NewIPAMBlock(cidr)) // is not in the way of another
	_, err = c.Delete(ctx, api.KeyOf(block), datastore.Precondition{})
	require.NoError(t, err)
}

// testGroups has both groups of custom resources in one cluster.
func testGroups(t *testing.T, s *k8s.Server) {
	c, ctx := open(t, s, ""), patient(t)
	create(t, c, set("of-native"))
	apply(t, s, classic, "testdata/classic-crds.yaml")
	found := open(t, s, "") // the classic one wins
	_, err := found.Get(ctx, api.Key{Kind: "GlobalNetworkSet", Name: "of-native"})
	require.ErrorIs(t, err, datastore.ErrNotFound)
	told := open(t, s, native)
	_, err = told.Get(ctx, api.Key{Kind: "GlobalNetworkSet", Name: "of-native"})
	require.NoError(t, err, "CALICO_API_GROUP decides")

	testInit(t, found)
	create(t, found, api.NewIPAMConfiguration())
	require.Equal(t, "IPAMConfig", fetch(t, s, "/apis/crd.projectcalico.org/v1/ipamconfigs/default")["kind"])
	config, err := found.Get(ctx, api.Key{Kind: "IPAMConfiguration", Name: "default"})
	require.NoError(t, err)
	require.True(t, config.(*api.IPAMConfiguration).Spec.AutoAllocates())

	// A policy that an older version wrote is found by its name of today, and keeps the name of its resource.
	const policies = "/apis/crd.projectcalico.org/v1/globalnetworkpolicies"
	require.NoError(t, s.Create(ctx, policies, object{
		"apiVersion": classic, "kind": "GlobalNetworkPolicy", "metadata": object{"name": "default.old"}, "spec": object{"tier": "default", "selector": "all()"},
	}))
	key := api.Key{Kind: "GlobalNetworkPolicy", Name: "old"}
	o, err := found.Get(ctx, key)
	require.NoError(t, err)
	_, err = found.Create(ctx, o)
	require.ErrorIs(t, err, datastore.ErrExists)
	o.SetLabels(map[string]string{"a": "b"})
	_, err = found.Update(ctx, o)
	require.NoError(t, err)
	raw := fetch(t, s, policies+"/default.old")["metadata"].(object)
	require.Contains(t, raw["annotations"].(object)["projectcalico.org/metadata"], `"a":"b"`)
	testRename(t, s, found, key)
	_, err = found.Delete(ctx, key, datastore.Precondition{})
	require.NoError(t, err)
	_, err = found.Get(ctx, key)
	require.ErrorIs(t, err, datastore.ErrNotFound)
}

// testRename renames the resource of a policy, default.old, as others do: there are two for a while. Nobody loses the policy.
func testRename(t *testing.T, s *k8s.Server, c datastore.Client, key api.Key) {
	const policies = "/apis/crd.projectcalico.org/v1/globalnetworkpolicies"
	ctx := patient(t)
	selector := func(o api.Object) string { return o.(*api.GlobalNetworkPolicy).Spec.Selector }
	list := func() datastore.List {
		l, err := c.List(ctx, key.Kind, datastore.ListOptions{})
		require.NoError(t, err)
		require.Len(t, l.Items, 1, "one policy, under however many names")
		return l
	}
	w := watchFrom(t, c, key.Kind, list().Revision)
	require.NoError(t, s.Create(ctx, policies, object{
		"apiVersion": classic, "kind": key.Kind, "metadata": object{"name": key.Name}, "spec": object{"tier": "default", "selector": "has(new)"},
	}))
	require.Equal(t, "has(new)", selector(next(t, w).Object))
	require.Equal(t, "has(new)", selector(list().Items[0]))
	require.NoError(t, s.Delete(ctx, policies+"/default."+key.Name))
	e := next(t, w)
	require.Equal(t, datastore.Modified, e.Type)
	require.Equal(t, "has(new)", selector(e.Object))
	require.Equal(t, "has(new)", selector(list().Items[0]))

	// Back again, and then both go.
	require.NoError(t, s.Create(ctx, policies, object{
		"apiVersion": classic, "kind": key.Kind, "metadata": object{"name": "default." + key.Name}, "spec": object{"tier": "default", "selector": "has(old)"},
	}))
	require.Equal(t, "has(new)", selector(next(t, w).Object), "the usual name counts")
	require.NoError(t, s.Delete(ctx, policies+"/"+key.Name))
	e = next(t, w)
	require.Equal(t, datastore.Modified, e.Type)
	require.Equal(t, "has(old)", selector(e.Object))
	require.Equal(t, "has(old)", selector(list().Items[0]))
	require.NoError(t, s.Delete(ctx, policies+"/default."+key.Name))
	e = next(t, w)
	require.Equal(t, datastore.Deleted, e.Type)
	o := &api.GlobalNetworkPolicy{}
	o.Name = key.Name
	create(t, c, o)
}
