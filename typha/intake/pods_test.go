package intake

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/typha/cache"
)

// podScript tells of pods and namespaces what a test has it tell.
type podScript struct {
	pods       chan Told[api.WorkloadEndpoint]
	namespaces chan Told[api.Profile]
}

func (s podScript) Pods(ctx context.Context, tell func(Told[api.WorkloadEndpoint]) error) error {
	return pass(ctx, s.pods, tell)
}

func (s podScript) Namespaces(ctx context.Context, tell func(Told[api.Profile]) error) error {
	return pass(ctx, s.namespaces, tell)
}

func podAt(node, address string) *api.WorkloadEndpoint {
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.Labels = "shop", map[string]string{"app": "web"}
	o.Spec = api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: node, Pod: "web", Endpoint: "eth0", InterfaceName: "cali1"}
	if address != "" {
		o.Spec.IPNetworks, o.Spec.ContainerID = []string{address}, "c1"
	}
	o.Default()
	return o
}

// Where the datastore is Kubernetes the pods are all the endpoints: one watch, under both kinds. What a node reports of a pod counts
// until the pod shows it.
func TestPodsAreTheEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := podAt("n9", "10.0.0.9/32") // a datastore that has endpoints of its own is not asked for them
		data := quiet{map[string][]api.Object{"WorkloadEndpoint": {stored}}}
		source := podScript{make(chan Told[api.WorkloadEndpoint]), make(chan Told[api.Profile])}
		state := cache.New()
		in := New(data, state, Options{Logger: slog.New(slog.DiscardHandler), SourcePerKind: true, Pods: source, PodsAreEndpoints: true})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go func() { _ = in.Run(ctx, func(Batch) error { return nil }) }()
		pod := func(name string) *cache.Endpoint {
			synctest.Wait()
			o, _ := state.Snapshot().Get(api.Key{Kind: kubernetes.KindPod, Namespace: "shop", Name: name}).(*cache.Endpoint)
			return o
		}
		endpoint := func(name string) *cache.Endpoint {
			synctest.Wait()
			o, _ := state.Snapshot().Get(api.Key{Kind: "WorkloadEndpoint", Namespace: "shop", Name: name}).(*cache.Endpoint)
			return o
		}
		tell := func(revision uint64, o *api.WorkloadEndpoint) {
			source.pods <- Told[api.WorkloadEndpoint]{Changes: map[string]*api.WorkloadEndpoint{"shop/web": o}, Seen: revision, Reached: revision, InSync: revision == 10}
		}
		synctest.Wait()
		require.False(t, state.Snapshot().InSync())
		tell(10, podAt("n1", ""))
		source.namespaces <- Told[api.Profile]{Reached: 9, InSync: true}
		require.NotNil(t, pod("web"))
		require.True(t, state.Snapshot().InSync())
		require.Same(t, pod("web"), endpoint("n1-k8s-web-eth0"), "kept once")
		require.Nil(t, endpoint("n9-k8s-web-eth0"))

		reported := podAt("n1", "10.0.0.1/32")
		reported.Spec.MAC = "02:00:00:00:00:01" // which a pod does not tell
		require.NoError(t, in.Report(ctx, "n1", []*api.WorkloadEndpoint{reported}))
		require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, endpoint("n1-k8s-web-eth0").Nets)
		require.Empty(t, pod("web").Nets)
		tell(11, podAt("n1", "10.0.0.1/32"))
		require.Same(t, pod("web"), endpoint("n1-k8s-web-eth0"), "the pod shows it")

		tell(12, podAt("n2", ""))
		require.Nil(t, endpoint("n1-k8s-web-eth0"), "another pod of that name, elsewhere")
		require.NotNil(t, endpoint("n2-k8s-web-eth0"))
		tell(13, nil)
		require.Nil(t, endpoint("n2-k8s-web-eth0"))
		require.Nil(t, pod("web"))
	})
}
