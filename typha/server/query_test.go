package server_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/views"
)

type answer = func(ctx context.Context, q client.Question, reply func([]byte) error) error

func answering(a answer) func(*client.Config, *follower) {
	return func(_ *client.Config, f *follower) { f.query = a }
}

func bgp(c *client.Config, _ *follower) { c.View = client.BGPView }

// asked collects the parts of an answer.
func asked(c *client.Client, node string, q client.Question, timeout time.Duration) ([]string, error) {
	var parts []string
	err := c.Ask(context.Background(), node, q, timeout, func(p []byte) error {
		parts = append(parts, string(p))
		return nil
	})
	return parts, err
}

func TestQuestionsAreRelayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	echo := func(who string) answer {
		return func(_ context.Context, q client.Question, reply func([]byte) error) error {
			return errors.Join(reply(fmt.Appendf(nil, "%s %d", who, q.Method)), reply(q.Request))
		}
	}
	w.follow("n1", []string{r.address}, answering(echo("felix"))).first(1)
	w.follow("n1", []string{r.address}, bgp, answering(echo("confd"))).first(1)
	ada := w.operator(r.address)
	for method, who := range map[client.Method]string{
		client.BirdPeers: "confd 1", client.BirdShow: "confd 2",
		client.FelixDump: "felix 3", client.FelixExplain: "felix 4", client.FelixEndpoints: "felix 5", client.BirdDrain: "confd 6",
	} {
		parts, err := asked(ada, "n1", client.Question{Method: method, Request: []byte("why")}, 0)
		require.NoError(t, err)
		assert.Equal(t, []string{who, "why"}, parts)
	}
}

func TestQuestionsThatFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	w.follow("n1", []string{r.address}, answering(func(ctx context.Context, q client.Question, _ func([]byte) error) error {
		switch string(q.Request) {
		case "never":
			<-ctx.Done()
			return ctx.Err()
		case "status":
			return status.Error(codes.NotFound, "no such thing")
		case "plain":
			return errors.New("it is broken")
		}
		return client.ErrUnserved
	})).first(1)
	ada := w.operator(r.address)
	for _, c := range []struct {
		name, node, request string
		method              client.Method
		as                  func(*client.Client) error
		is                  error
		says                string
	}{
		{name: "node unknown", node: "n9", method: client.FelixDump, is: client.ErrNotFound, says: `node "n9" is not connected`},
		{name: "daemon not connected", node: "n1", method: client.BirdPeers, is: client.ErrNotFound, says: "no BGP stream"},
		{name: "method not on the list", node: "n1", method: 99, is: client.ErrInvalid, says: "99"},
		{name: "no method", node: "n1", is: client.ErrInvalid, says: "relayed"},
		{name: "not served", node: "n1", method: client.FelixDump, is: client.ErrUnserved},
		{name: "its error", node: "n1", method: client.FelixDump, request: "status", is: client.ErrNotFound, says: "no such thing"},
		{name: "any error", node: "n1", method: client.FelixDump, request: "plain", says: "it is broken"},
		{name: "no answer", node: "n1", method: client.FelixDump, request: "never", is: client.ErrTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			wait := patience
			if errors.Is(c.is, client.ErrTimeout) {
				wait = 200 * time.Millisecond
			}
			_, err := asked(ada, c.node, client.Question{Method: c.method, Request: []byte(c.request)}, wait)
			require.Error(t, err)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			assert.Contains(t, err.Error(), c.says)
		})
	}
	_, err := asked(w.node("n1", r.address), "n1", client.Question{Method: client.FelixDump}, 0)
	require.ErrorIs(t, err, client.ErrDenied, "nodes do not ask nodes")
}

func TestQuestionToANodeThatLeaves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	reached := make(chan struct{})
	f := w.follow("n1", []string{r.address}, answering(func(ctx context.Context, _ client.Question, _ func([]byte) error) error {
		close(reached)
		<-ctx.Done()
		return ctx.Err()
	}))
	f.first(1)
	failed := make(chan error)
	go func() {
		_, err := asked(w.operator(r.address), "n1", client.Question{Method: client.FelixDump}, patience)
		failed <- err
	}()
	<-reached
	f.stop()
	assert.Error(t, <-failed, "long before the time is up")
}

func TestAnswerFasterThanItsReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1)
	said := make(chan struct{})
	w.follow("n1", []string{r.address}, answering(func(_ context.Context, _ client.Question, reply func([]byte) error) error {
		defer close(said)
		for range 300 {
			if err := reply(make([]byte, 100_000)); err != nil {
				return err
			}
		}
		return nil
	})).first(1)
	err := w.operator(r.address).Ask(t.Context(), "n1", client.Question{Method: client.FelixDump}, patience, func([]byte) error {
		<-said // nobody waits for a slow reader
		return nil
	})
	require.ErrorIs(t, err, client.ErrExhausted)
	assert.Contains(t, err.Error(), "ask for less")
}

func TestQuestionFindsTheReplicaOfItsNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := w.replica(), w.replica()
	one.put("n1", 1)
	two.put("n1", 1)
	w.follow("n1", []string{two.address}, answering(func(_ context.Context, _ client.Question, reply func([]byte) error) error {
		return reply([]byte("here"))
	})).first(1)
	for range 5 { // whichever it tries first
		parts, err := asked(w.operator(one.address, two.address), "n1", client.Question{Method: client.FelixDump}, 0)
		require.NoError(t, err)
		assert.Equal(t, []string{"here"}, parts)
	}
}

func TestFollowersAreListed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	r.put("n1", 1, policy("a", "1"), policy("b", "1"))
	f := w.follow("n1", []string{r.address}, func(_ *client.Config, f *follower) { f.hold = true })
	b := f.first(1)
	list := func() client.Follower {
		all, err := w.operator(r.address).Followers(t.Context())
		require.NoError(t, err)
		require.Len(t, all, 1)
		return all[0]
	}
	eventually(t, "received", func() bool { return list().Received == 1 })
	got := list()
	assert.Equal(t, "n1", got.Node)
	assert.Equal(t, "NODE", got.View)
	assert.EqualValues(t, 2, got.Items)
	assert.Zero(t, got.Applied)
	assert.NotEmpty(t, got.Software)
	b.Applied(client.Failure{Key: policyKey("a"), Reason: "the kernel has no such match"})
	eventually(t, "applied", func() bool { return list().Applied == 1 })
	assert.Equal(t, []string{"np/a: the kernel has no such match"}, list().Failures)
}

func TestItemsAreExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.replica()
	set, version := setOf(3)
	rule := view.Policy{ID: "np/shop/web", Tier: "default", Ingress: []view.Rule{{Action: view.Allow, Source: view.Match{Sets: []string{set.ID}}}}}
	list := view.PolicyList{ID: "l:1", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{rule.ID}}}}
	endpoint := view.WorkloadEndpoint{ID: view.EndpointID{Orchestrator: "k8s", Workload: "shop/web-0", Endpoint: "eth0"}, PolicyList: list.ID}
	r.commit(1, map[views.Scope]*views.Delta{{Node: "n1", View: views.NodeView}: {Put: []*views.Entry{
		views.NewSet(set, version, nil, nil, nil), views.NewEntry(rule), views.NewEntry(list), views.NewEntry(endpoint),
	}}})
	ada := w.operator(r.address)
	reasons, err := ada.ExplainItem(t.Context(), "n1", "ip_set/s:1")
	require.NoError(t, err)
	require.Len(t, reasons, 4, "%v", reasons)
	assert.Contains(t, reasons[0].Because, "policy/np/shop/web")
	assert.Contains(t, reasons[1].Because, "policy_list/l:1")
	assert.Contains(t, reasons[2].Because, "workload_endpoint/k8s/shop/web-0/eth0")
	assert.Contains(t, reasons[3].Because, "node n1")
	_, err = ada.ExplainItem(t.Context(), "n2", "ip_set/s:1")
	require.ErrorIs(t, err, client.ErrNotFound)
	_, err = ada.ExplainItem(t.Context(), "n1", "nonsense")
	require.ErrorIs(t, err, client.ErrInvalid)
}
