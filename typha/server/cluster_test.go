package server_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/integration/lab/pki"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/authority"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/server"
)

// reviewer knows the tokens of some pods. What the API server says of real ones is tested in integration/k8s.
type reviewer struct{ down bool }

func (r *reviewer) Node(_ context.Context, token string) (node, refused string, err error) {
	switch {
	case r.down:
		return "", "", errors.New("connection refused")
	case token == "token.of.n1":
		return "n1", "", nil
	}
	return "", "the service-account token is expired", nil
}

func TestNodeEnrolsWithAServiceAccountToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	review := &reviewer{}
	r := w.replica(func(c *server.Config) { c.TokenReviewer = review })
	enroll := func(node, token string) (client.Enrollment, error) {
		e := w.enrollment(node, "", r)
		e.ServiceAccountToken = token
		_, err := client.Enroll(t.Context(), e)
		return e, err
	}
	e, err := enroll("n1", "token.of.n1")
	require.NoError(t, err)
	assert.True(t, exists(t, e.Files.Cert))
	_, err = enroll("n1", "token.of.n1")
	require.NoError(t, err, "it is good for more than one enrolment")

	for _, c := range []struct{ node, token, says string }{
		{"n2", "token.of.n1", `bound to node "n1", and gets no certificate for node "n2"`},
		{"n1", "token.of.others", "expired"},
		{"n1", "guess", "is none"},
	} {
		e, err := enroll(c.node, c.token)
		require.ErrorIs(t, err, client.ErrDenied, c.says)
		assert.Contains(t, err.Error(), c.says)
		assert.False(t, exists(t, e.Files.Cert))
	}
	review.down = true
	_, err = enroll("n1", "token.of.n1")
	require.ErrorIs(t, err, client.ErrUnavailable)
	assert.Contains(t, err.Error(), "connection refused")

	none := w.replica()
	e = w.enrollment("n1", "", none)
	e.ServiceAccountToken = "token.of.n1"
	_, err = client.Enroll(t.Context(), e)
	require.ErrorContains(t, err, "no Kubernetes")
}

// A new certificate of typha, a new CA beside the old one, and then the new one alone: the stream goes on through all of it, and
// whoever connects anew finds what is valid by then.
func TestRotationDropsNoStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	keeper, err := authority.NewKeeper(dir, authority.Names{DNS: []string{"typha"}}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	read := func(path string) []byte {
		body, err := os.ReadFile(path)
		require.NoError(t, err)
		return body
	}
	one := authority.CA{Certs: read(filepath.Join(w.dir, "ca.crt")), Key: read(filepath.Join(w.dir, "ca.key"))}
	require.NoError(t, keeper.Take(one))
	r := w.replica(func(c *server.Config) {
		c.Files, c.CAKey, c.ReplicaName, c.TokenReviewer = keeper.Files(), keeper.CAKey(), "typha", &reviewer{}
	})
	r.put("n1", 1, policy("a", "1"))
	e := w.enrollment("n1", "", r)
	e.ServiceAccountToken, e.ServerName = "token.of.n1", "typha"
	_, err = client.Enroll(t.Context(), e)
	require.NoError(t, err)
	named := func(files rpc.Files) func(*client.Config, *follower) {
		return func(c *client.Config, _ *follower) { c.Files, c.ServerName = files, "typha" }
	}
	f := w.follow("n1", []string{r.address}, named(e.Files))
	require.Equal(t, "+np/a=1 @1 in sync", text(f.first(1)))

	two, err := authority.New(time.Now())
	require.NoError(t, err)
	both := append(append([]byte{}, one.Certs...), two.Certs...)
	require.NoError(t, keeper.Take(authority.CA{Certs: both, Key: one.Key}))
	r.put("n1", 2, policy("a", "both"))
	require.Equal(t, "+np/a=both @2 in sync", text(f.next()))
	_, err = f.client.Renew(t.Context())
	require.NoError(t, err)
	require.Equal(t, both, read(e.Files.CA), "it trusts the new one by now")
	require.NoError(t, keeper.Take(authority.CA{Certs: both, Key: two.Key}))
	_, err = f.client.Renew(t.Context())
	require.NoError(t, err)
	require.NoError(t, keeper.Take(two))
	r.put("n1", 3, policy("a", "two"))
	require.Equal(t, "+np/a=two @3 in sync", text(f.next()), "over the stream of the beginning")
	assert.Equal(t, 1.0, metric(t, r, "typha_clients"))
	require.NoError(t, f.client.Status().Err)

	w.follow("n1", []string{r.address}, named(e.Files)).first(1)
	left := w.files(pki.Node("n3")) // of the first CA alone
	_, err = mustClient(t, client.Config{Addresses: []string{r.address}, Files: left, ServerName: "typha", Node: "n3"}).Replicas(t.Context())
	require.ErrorIs(t, err, client.ErrUnavailable, "the first CA is trusted no more")
}

func mustClient(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// Replicas that come and go are told to the clients that are there; a node that is said to be connected to one that is no more is
// said not to be, by another.
func TestDiscoveredReplicas(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.typha(func(c *server.Config) { c.Discover, c.ReplicaName = true, "127.0.0.1" })
	srv := r.server
	node := &api.Node{}
	node.Name = "n9"
	meta.SetStatusCondition(&node.Status.Conditions, metav1.Condition{
		Type: api.ConditionConnected, Status: metav1.ConditionTrue, Reason: "Connected", Message: "felix is connected to 10.0.0.9:5473",
	})
	w.create(node)
	f := w.follow("n1", []string{r.address})
	eventually(t, "in sync", func() bool { return f.client.Status().InSync })
	list, err := f.client.Replicas(t.Context())
	require.NoError(t, err)
	require.Empty(t, list, "nothing is known yet")
	srv.SetReplicas("", []string{"10.0.0.8:5473"}, []string{"10.0.0.8:5473"})
	list, err = f.client.Replicas(t.Context())
	require.NoError(t, err)
	require.Empty(t, list, "while its own is not known, nothing is")
	srv.SetReplicas(r.address, []string{"10.0.0.8:5473"}, []string{"10.0.0.8:5473", r.address})
	list, err = f.client.Replicas(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, client.Replica{Address: r.address, ServerName: "127.0.0.1", Clients: 1}, list[0])
	require.Equal(t, "10.0.0.8:5473", list[1].Address)
	eventually(t, "n9 is missed", func() bool {
		c := meta.FindStatusCondition(get[*api.Node](w, "Node", "n9").Status.Conditions, api.ConditionConnected)
		return c != nil && c.Status == "False" && c.Message == "felix was connected to 10.0.0.9:5473 last, and has not come back"
	})
}

// network is what Kubernetes was told of nodes.
type network struct {
	mu    sync.Mutex // guards all below
	fails int
	told  map[string]string
}

func (n *network) SetUnavailable(_ context.Context, node string, unavailable bool, reason, message string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fails > 0 {
		n.fails--
		return errors.New("connection refused")
	}
	n.told[node] = map[bool]string{true: "True", false: "False"}[unavailable] + " " + reason + ": " + message
	return nil
}

func (n *network) of(node string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told[node]
}

// A node has a network once its felix has programmed its view, and none when that is about to end.
func TestKubernetesIsToldWhichNodesHaveANetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := &network{told: map[string]string{}, fails: 1}
	r := w.replica(func(c *server.Config) { c.NodeNetwork = n })
	r.put("n1", 1, policy("a", "1"))
	f := w.follow("n1", []string{r.address}, func(_ *client.Config, f *follower) { f.hold = true })
	b := f.next()
	require.Empty(t, n.of("n1"), "it is not programmed yet")
	b.Applied()
	const up = "False CalicoIsUp: Calico is running on this node"
	eventually(t, "told, also after a failure", func() bool { return n.of("n1") == up })
	require.NoError(t, f.client.Leave(t.Context()))
	require.Equal(t, "True CalicoIsDown: Calico is shutting down on this node", n.of("n1"))
	f.stop()
	w.follow("n1", []string{r.address})
	eventually(t, "back again", func() bool { return n.of("n1") == up })
	n.mu.Lock()
	n.fails = 1
	n.mu.Unlock()
	require.ErrorContains(t, w.node("n2", r.address).Leave(t.Context()), "connection refused")
	require.NoError(t, w.node("n2", w.replica().address).Leave(t.Context()), "there is no Kubernetes to be told")
}

// pods tells of pods once, and of no changes.
type pods []*api.WorkloadEndpoint

func (p pods) Pods(ctx context.Context, tell func(intake.Told[api.WorkloadEndpoint]) error) error {
	told := intake.Told[api.WorkloadEndpoint]{InSync: true, Seen: 1, Reached: 1, Changes: map[string]*api.WorkloadEndpoint{}}
	for _, o := range p {
		told.Changes[o.Namespace+"/"+o.Spec.Pod] = o
	}
	if err := tell(told); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (p pods) Namespaces(ctx context.Context, tell func(intake.Told[api.Profile]) error) error {
	if err := tell(intake.Told[api.Profile]{InSync: true, Seen: 1, Reached: 1}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// Where pods are known they say what they are. A node cannot give a pod labels, another account, or the place of another one.
func TestWhatAPodIsItsNodeDoesNotSay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	of := func(name, node string, annotations map[string]string) *api.WorkloadEndpoint {
		o := &api.WorkloadEndpoint{}
		o.Namespace, o.UID, o.Annotations = "shop", kubernetes.ReversedUID("0b5a9a4e-7d3c-4a52-9f51-0c1d2e3f4a5b"), annotations
		o.Labels = map[string]string{"app": "web", "projectcalico.org/namespace": "shop", "projectcalico.org/orchestrator": "k8s"}
		o.Spec = api.WorkloadEndpointSpec{
			Orchestrator: "k8s", Node: node, Pod: name, Endpoint: "eth0", InterfaceName: "cali" + name,
			ServiceAccountName: "cook", Profiles: []string{"kns.shop", "ksa.shop.cook"},
		}
		o.Default()
		return o
	}
	w.pods = pods{of("web", "n1", nil), of("there", "n2", nil), of("own", "n1", map[string]string{"cni.projectcalico.org/ipAddrsNoIpam": `["10.99.0.9"]`})}
	r, n1, _ := w.cluster()
	eventually(t, "in sync", func() bool { _, ok := r.views.Checkpoint(); return ok })
	endpoint := func(name, uid, container string) client.Endpoint {
		e := pod(container, reserve(t, n1, container))
		e.ID, e.Pod, e.ContainerID, e.UID = view.EndpointID{Orchestrator: "k8s", Workload: "shop/" + name, Endpoint: "eth0"}, name, container, uid
		e.Interface, e.Labels, e.Profiles = "cali"+name, map[string]string{"app": "forged", "pcns.admin": "true"}, []string{"kns.kube-system"}
		return e
	}
	const uid = "0b5a9a4e-7d3c-4a52-9f51-0c1d2e3f4a5b"
	own := endpoint("own", uid, "c4")
	own.Addresses = append(own.Addresses[:0:0], netip.MustParseAddr("10.99.0.9"))
	strange := endpoint("web", uid, "c5")
	strange.ID.Workload, strange.Pod, strange.Interface, strange.Addresses = "shop/strange", "strange", "calistrange", append(strange.Addresses[:0:0], netip.MustParseAddr("10.99.0.9"))
	refused := report(t, n1, "x", 1, endpoint("web", uid, "c1"), endpoint("there", uid, "c2"), endpoint("unknown", "other", "c3"), own, strange)
	require.Len(t, refused, 2)
	assert.Contains(t, refused[0].Reason, `pod shop/there is on node "n2"`)
	assert.Contains(t, refused[1].Reason, "address 10.99.0.9 is not allocated", "only a pod that asks for it may have it")
	w.eventuallyEndpoints("n1-k8s-own-eth0", "n1-k8s-unknown-eth0", "n1-k8s-web-eth0")
	stored := func(name string) *api.WorkloadEndpoint {
		o, err := w.store.Get(t.Context(), api.Key{Kind: "WorkloadEndpoint", Namespace: "shop", Name: "n1-k8s-" + name + "-eth0"})
		require.NoError(t, err)
		return o.(*api.WorkloadEndpoint)
	}
	web := stored("web")
	assert.Equal(t, "web", web.Labels["app"])
	assert.NotContains(t, web.Labels, "pcns.admin")
	assert.Equal(t, []string{"kns.shop", "ksa.shop.cook"}, web.Spec.Profiles)
	assert.Equal(t, "cook", web.Spec.ServiceAccountName)
	unknown := stored("unknown")
	assert.NotContains(t, unknown.Labels, "app")
	assert.Equal(t, []string{"kns.shop"}, unknown.Spec.Profiles)
}
