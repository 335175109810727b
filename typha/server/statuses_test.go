package server_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
)

// modify changes a stored object, whoever else does too.
func modify[T api.Object](w *world, kind, name string, change func(T)) {
	w.t.Helper()
	modifyIn(w, w.store, kind, name, change)
}

// modifyIn does so by a client of the datastore that need not check.
func modifyIn[T api.Object](w *world, store datastore.Client, kind, name string, change func(T)) {
	w.t.Helper()
	for {
		o := get[T](w, kind, name)
		change(o)
		_, err := store.Update(w.t.Context(), o)
		if !errors.Is(err, datastore.ErrConflict) {
			require.NoError(w.t, err)
			return
		}
	}
}

func (w *world) setMode(pool string, ipip api.IPIPMode, vxlan api.VXLANMode) {
	w.t.Helper()
	modify(w, "IPPool", pool, func(p *api.IPPool) { p.Spec.IPIPMode, p.Spec.VXLANMode = ipip, vxlan })
}

// shown is a condition in a line.
func shown(c metav1.Condition) string {
	return strings.TrimSpace(strings.Join([]string{c.Type, string(c.Status), c.Reason, c.Message}, " "))
}

// poolSays is what a pool's conditions say, in lines.
func (w *world) poolSays(name string) string {
	p := get[*api.IPPool](w, "IPPool", name)
	if p.Status == nil {
		return ""
	}
	return says(p.Status.Conditions)
}

func (w *world) nodeSays(name string) string {
	return says(get[*api.Node](w, "Node", name).Status.Conditions)
}

func says(conditions []metav1.Condition) string {
	var lines []string
	for _, c := range conditions {
		if c.Type == api.ConditionConnected {
			continue // see TestPresence
		}
		lines = append(lines, shown(c))
	}
	return strings.Join(lines, "\n")
}

// TestPoliciesThatMakeNoSenseAreShown has policies come from where nobody validates, and corrected.
func TestPoliciesThatMakeNoSenseAreShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.typha()
	tierSays := func(name string) string { return says(get[*api.Tier](w, "Tier", name).Status.Conditions) }
	w.create(&api.Tier{ObjectMeta: metav1.ObjectMeta{Name: "security"}})
	put := func(name, tier, selector string) {
		p := &api.GlobalNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
		p.Spec.Tier, p.Spec.Selector, p.Spec.Types = tier, selector, []api.PolicyType{api.Ingress}
		_, err := w.bare.Create(t.Context(), p)
		require.NoError(t, err)
	}
	put("fine", "security", "all()")
	put("security.slip", "security", "a =")
	eventually(t, "a condition of the default tier, since nobody knows what it wanted", func() bool {
		return strings.Contains(tierSays("default"), "PoliciesValid False InvalidPolicies GlobalNetworkPolicy(security.slip): spec.selector:")
	})
	put("security.nets", "security", "has(a)")
	modifyIn(w, w.bare, "GlobalNetworkPolicy", "security.nets", func(p *api.GlobalNetworkPolicy) { p.Spec.Ingress = []api.Rule{{Action: "Perhaps"}} })
	eventually(t, "the tier's condition", func() bool { return strings.Contains(tierSays("security"), "security.nets): spec.ingress[0].action") })
	put("nowhere.p", "nowhere", "all()")
	eventually(t, "the default tier's", func() bool {
		return strings.Contains(tierSays("default"), `nowhere.p): spec.tier: "nowhere" does not exist; create the tier`)
	})
	w.create(&api.Tier{ObjectMeta: metav1.ObjectMeta{Name: "nowhere"}})
	modify(w, "GlobalNetworkPolicy", "security.nets", func(p *api.GlobalNetworkPolicy) { p.Spec.Ingress[0].Action = api.Allow })
	modify(w, "GlobalNetworkPolicy", "security.slip", func(p *api.GlobalNetworkPolicy) { p.Spec.Selector = "a == 'b'" })
	eventually(t, "nothing to say", func() bool { return tierSays("default")+tierSays("security")+tierSays("nowhere") == "" })
}

func TestWhatAKernelLacksIsShownAndAvoided(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	w.create(pool("tunnelled", "10.77.0.0/16", ipip))
	eventually(t, "a judged pool", func() bool { return w.poolSays("tunnelled") == "Allocatable True OK" })
	assert.Empty(t, w.nodeSays("n1"))
	can := map[string]string{"ipip": "tc BPF", "vxlan": "kernel module"}
	require.NoError(t, n1.ReportStatus(t.Context(), []client.Condition{{Type: "DataplaneReady", Status: true}}, map[string]string{"vxlan": "kernel module"}))
	require.NoError(t, n2.ReportStatus(t.Context(), nil, can))

	const lack = "node n1: kernel has no ipip; pool tunnelled wants ipipMode Always; load module ipip, or set vxlanMode"
	eventually(t, "a condition of the pool", func() bool {
		return w.poolSays("tunnelled") == "Allocatable True OK\nDataplaneSupported False KernelLacksIPIP "+lack
	})
	eventually(t, "a condition of the node", func() bool {
		return w.nodeSays("n1") == "DataplaneReady True Reported\nDataplaneSupported False KernelLacksIPIP "+lack
	})
	assert.Equal(t, "Allocatable True OK", w.poolSays("default"))
	assert.Empty(t, w.nodeSays("n2"))

	// Nothing of that pool is given to the node, unless there is nothing else.
	owner := &client.Owner{Handle: "net.c1"}
	got, err := n1.Reserve(t.Context(), client.Reserve{Count4: 1, Owner: owner})
	require.NoError(t, err)
	assert.Equal(t, "default", got[0].Pool)
	for name, ask := range map[string]client.Reserve{
		"by pool":    {Count4: 1, Pools4: []string{"tunnelled"}, Owner: owner},
		"by address": {Address: netip.MustParseAddr("10.77.0.9"), Owner: owner},
	} {
		_, err := n1.Reserve(t.Context(), ask)
		require.ErrorIs(t, err, client.ErrInvalid, name)
		assert.Contains(t, err.Error(), lack, name)
		got, err := n2.Reserve(t.Context(), ask)
		require.NoError(t, err, name)
		assert.Equal(t, "tunnelled", got[0].Pool)
	}
	modify(w, "IPPool", "default", func(p *api.IPPool) { p.Spec.Disabled = true })
	eventually(t, "a disabled pool", func() bool { return w.poolSays("default") == "Allocatable False PoolDisabled spec.disabled is true" })
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Owner: owner})
	require.ErrorIs(t, err, client.ErrExhausted)
	assert.Contains(t, err.Error(), lack)

	// Cured by another mode, and back; then by the kernel. What the node says of itself stays.
	w.setMode("tunnelled", api.IPIPNever, api.VXLANCrossSubnet)
	eventually(t, "a cured pool", func() bool { return w.poolSays("tunnelled") == "Allocatable True OK" })
	eventually(t, "a cured node", func() bool { return w.nodeSays("n1") == "DataplaneReady True Reported" })
	w.setMode("tunnelled", api.IPIPCrossSubnet, api.VXLANNever)
	eventually(t, "a condition again", func() bool { return strings.Contains(w.nodeSays("n1"), "wants ipipMode CrossSubnet") })
	require.NoError(t, n1.ReportStatus(t.Context(), nil, can))
	eventually(t, "a cured pool", func() bool { return w.poolSays("tunnelled") == "Allocatable True OK" })
	eventually(t, "a cured node", func() bool { return w.nodeSays("n1") == "" })
	_, err = n1.Reserve(t.Context(), client.Reserve{Count4: 1, Owner: owner})
	require.NoError(t, err)
}

// Two replicas agree, and write nothing when nothing changes.
func TestStatusesSettle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, n2 := w.cluster()
	w.typha()
	w.create(pool("a", "10.77.0.0/16", ipip))
	for _, n := range []*client.Client{n1, n2} {
		require.NoError(t, n.ReportStatus(t.Context(), nil, nil))
	}
	eventually(t, "a condition", func() bool {
		return strings.Contains(w.poolSays("a"), "nodes n1 and n2: kernel has no ipip") && w.nodeSays("n1") != "" && w.nodeSays("n2") != ""
	})
	eventually(t, "a transport on record", func() bool { return w.transport("a") != nil })
	versions := func() (out []string) {
		for _, key := range []api.Key{{Kind: "IPPool", Name: "a"}, {Kind: "IPPool", Name: "default"}, {Kind: "Node", Name: "n1"}, {Kind: "Node", Name: "n2"}} {
			o, err := w.store.Get(t.Context(), key)
			require.NoError(t, err)
			out = append(out, o.GetResourceVersion())
		}
		return out
	}
	var last []string
	since := time.Now()
	eventually(t, "an end of writes", func() bool {
		if now := versions(); !assert.ObjectsAreEqual(last, now) {
			last, since = now, time.Now()
		}
		return time.Since(since) > 4*time.Second && r.state.Snapshot().InSync() // pools are written once a second at most, by a machine that has the time
	})
	// Something else of the pool's kind happens; what is right stays untouched.
	w.create(pool("b", "10.78.0.0/16"))
	eventually(t, "a judged pool", func() bool { return w.poolSays("b") != "" })
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		require.Equal(t, last, versions())
	}
}

func TestOverlapIsNotAllocatable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.typha()
	w.create(pool("old", "10.77.0.0/16"))
	eventually(t, "a judged pool", func() bool { return w.poolSays("old") != "" })
	// Past the check of the datastore layer, as another writer may.
	created := metav1.NewTime(time.Now().Add(time.Hour))
	p := pool("young", "10.77.8.0/24")
	p.CreationTimestamp = created
	p.Default()
	_, err := w.bare.Create(t.Context(), p)
	require.NoError(t, err)
	eventually(t, "an overlap", func() bool {
		return w.poolSays("young") == "Allocatable False CIDROverlap cidr 10.77.8.0/24 overlaps the older pool old, 10.77.0.0/16; delete one of the two"
	})
	assert.Equal(t, "Allocatable True OK", w.poolSays("old"))
	_, err = w.store.Delete(t.Context(), api.Key{Kind: "IPPool", Name: "old"}, datastore.Precondition{})
	require.NoError(t, err)
	eventually(t, "no overlap", func() bool { return w.poolSays("young") == "Allocatable True OK" })
}
