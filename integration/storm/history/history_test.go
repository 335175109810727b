package history

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

// The things of a small view, at a mark each.

func set(mark uint64) view.IPSet {
	return view.IPSet{ID: "s:1", Type: view.SetNet, Members: []view.Member{{Prefix: netip.PrefixFrom(Address(7, mark), 128)}}}
}

func secondSet(mark uint64) view.IPSet {
	s := set(mark)
	s.ID = "s:2"
	return s
}

func policy(mark uint64) view.Policy {
	r := view.Rule{Action: view.Allow, Annotations: map[string]string{Annotation: fmt.Sprint(mark)}}
	r.Source.Sets, r.Destination.NotSets = []string{"s:1"}, []string{"s:2"}
	return view.Policy{ID: "gnp/p", Tier: "default", Ingress: []view.Rule{r}}
}

func list() view.PolicyList {
	return view.PolicyList{ID: "l", Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"gnp/p"}}}}
}

func endpoint(node string, mark uint64) view.WorkloadEndpoint {
	return view.WorkloadEndpoint{
		ID:          view.EndpointID{Orchestrator: "k8s", Workload: "ns/" + Pod("pod", node), Endpoint: "eth0"},
		ContainerID: fmt.Sprint(mark), PolicyList: "l",
	}
}

func node(mark uint64) view.Node {
	return view.Node{Name: "n2", IPv6: netip.PrefixFrom(Address(9, mark), 64)}
}

func items(list ...view.Item) (out []Item) {
	for _, it := range list {
		out = append(out, Describe(it))
	}
	return out
}

func at(revision uint64, replica string) view.Checkpoint {
	return view.Checkpoint{"etcd": revision, "typha/" + replica: 1}
}

func versions(list ...view.Item) map[view.Key]view.Version {
	out := map[view.Key]view.Version{}
	for _, it := range list {
		out[it.Key()] = view.VersionOf(it)
	}
	return out
}

func digests(list ...view.Item) (d view.Digests) {
	for k, v := range versions(list...) {
		d.Add(k, v)
	}
	return d
}

// names has the client say, of all parts, that it has some items, when it resumes.
func names(list ...view.Item) func([]Event) []Event {
	return func(h []Event) []Event {
		e := Named{Have: versions(list...)}
		for part := range view.Parts {
			e.Parts = append(e.Parts, uint8(part))
		}
		return slices.Insert(h, 12, Event(e))
	}
}

// whole is a view with all marks at one number.
func whole(mark uint64) []view.Item {
	return []view.Item{set(mark), secondSet(mark), policy(mark), list(), endpoint("n1", mark), node(mark)}
}

func delta(mark uint64, id string) view.IPSetDelta {
	from, to := set(mark-1), set(mark)
	return view.IPSetDelta{ID: id, From: view.VersionOf(from), To: view.VersionOf(to), Removed: from.Members, Added: to.Members}
}

// good is what happens to a client: the whole view in two chunks, a change, a change of sets by differences, the loss of the
// replica, another one, a batch that cannot be handed over because a difference does not fit, and its mending.
func good() []Event {
	big := whole(1)
	changed := items(policy(2), endpoint("n1", 2), node(2))
	return []Event{
		0:  Opened{},
		1:  Welcomed{},
		2:  Sent{Batch: 1, Items: items(big[:3]...)},
		3:  Sent{Batch: 1, Items: items(big[3:]...), Point: at(10, "a"), InSync: true},
		4:  Handed{Updates: items(big...), Point: at(10, "a"), InSync: true},
		5:  Sent{Batch: 2, Items: changed, Point: at(20, "a"), InSync: true},
		6:  Handed{Updates: changed, Point: at(20, "a"), InSync: true},
		7:  Sent{Batch: 3, Items: items(delta(2, "s:1"), delta(2, "s:2")), Point: at(21, "a"), InSync: true},
		8:  Handed{Updates: items(set(2), secondSet(2)), Point: at(21, "a"), InSync: true},
		9:  Sent{Batch: 4, Items: items(policy(3))}, // half a batch
		10: Closed{"killed"},
		11: Opened{Point: at(21, "a"), Digests: digests(whole(2)...)},
		12: Welcomed{Resumed: true},
		13: Sent{Batch: 1, Items: items(policy(3)), Point: at(30, "b"), InSync: true},
		14: Handed{Updates: items(policy(3)), Point: at(30, "b"), InSync: true},
		15: Sent{Batch: 2, Items: items(delta(9, "s:1"), delta(3, "s:2")), Point: at(31, "b"), InSync: true},
		16: Sent{Batch: 3, Items: items(set(3)), Point: at(31, "b"), InSync: true},
		17: Handed{Updates: items(set(3), secondSet(3)), Point: at(31, "b"), InSync: true},
		18: Sent{Batch: 4, Removes: []view.Key{node(1).Key()}, Point: at(32, "b"), InSync: true},
		19: Handed{Removes: []view.Key{node(1).Key()}, Point: at(32, "b"), InSync: true},
	}
}

func end() map[view.Key]view.Version {
	return versions(set(3), secondSet(3), policy(3), list(), endpoint("n1", 2))
}

func written() *Writes {
	w := &Writes{}
	for _, one := range []Write{
		{5, "gnp/p", 1},
		{18, "gnp/p", 2},
		{25, "gnp/p", 3},
		{6, Numbered(7), 1},
		{21, Numbered(7), 2},
		{31, Numbered(7), 3},
		{7, Numbered(9), 1},
		{19, Numbered(9), 2},
		{32, Numbered(9), 3},
		{8, "k8s/ns/pod.n1/eth0", 1},
		{20, "k8s/ns/pod.n1/eth0", 2},
	} {
		w.Add(one)
	}
	return w
}

func judge(events []Event, want map[view.Key]view.Version) []Fault {
	c := NewClient("n1", written())
	for _, e := range events {
		c.Take(e)
	}
	c.Finish(want)
	return c.Faults()
}

func TestAGoodHistoryHasNoFault(t *testing.T) {
	assert.Empty(t, judge(good(), end()))
}

func TestEveryPlantedFaultIsFound(t *testing.T) {
	put := func(i int, e Event) func([]Event) []Event {
		return func(h []Event) []Event { h[i] = e; return h }
	}
	skip := func(list ...int) func([]Event) []Event {
		return func(h []Event) (out []Event) {
			for i, e := range h {
				gone := false
				for _, s := range list {
					gone = gone || s == i
				}
				if !gone {
					out = append(out, e)
				}
			}
			return out
		}
	}
	// also sends and hands over something in place of a pair of events.
	also := func(i int, point view.Checkpoint, removes []view.Key, list ...view.Item) func([]Event) []Event {
		return func(h []Event) []Event {
			h[i] = Sent{Batch: 9, Items: items(list...), Removes: removes, Point: point, InSync: true}
			h[i+1] = Handed{Updates: items(list...), Removes: removes, Point: point, InSync: true}
			return h
		}
	}
	cases := []struct {
		name  string
		rule  Rule
		plant func([]Event) []Event
	}{
		{"a checkpoint goes back on one stream", Forward, also(7, at(19, "a"), nil, set(2), secondSet(2))},
		{"a checkpoint goes back on another replica", Forward, also(13, at(20, "b"), nil, policy(3))},
		{"a checkpoint forgets the datastore", Forward, also(13, view.Checkpoint{"typha/b": 1}, nil, policy(3))},
		{"a policy goes back under a checkpoint that does not", Forward, also(13, at(30, "b"), nil, policy(1))},
		{"a set goes back", Forward, also(15, at(31, "b"), nil, set(1), secondSet(1))},
		{"a node goes back", Forward, also(13, at(30, "b"), nil, node(1), policy(3))},
		{"what was deleted comes back as it was before", Forward, func(h []Event) []Event {
			return append(h, Sent{Batch: 5, Items: items(node(1)), Point: at(33, "b"), InSync: true}, Handed{Updates: items(node(1)), Point: at(33, "b"), InSync: true})
		}},
		{"a replica shows a new client of its own less than he comes from", Present, func(h []Event) []Event {
			// The client has not seen write 3 of the policy, but its checkpoint has it: nothing went back for it.
			h[7] = Sent{Batch: 3, Items: items(delta(2, "s:1"), delta(2, "s:2")), Point: at(26, "a"), InSync: true}
			h[8] = Handed{Updates: items(set(2), secondSet(2)), Point: at(26, "a"), InSync: true}
			h[11] = Opened{Point: at(26, "a"), Digests: digests(whole(2)...)}
			h[13] = Sent{Batch: 1, Items: items(endpoint("n1", 2)), Point: at(30, "b"), InSync: true}
			h[14] = Handed{Point: at(30, "b"), InSync: true}
			return h
		}},
		{"a half of the whole view is handed over", Whole, func(h []Event) []Event {
			h[3] = Handed{Updates: items(whole(1)[:3]...), Point: at(10, "a")}
			h[4] = Handed{Updates: items(whole(1)[3:]...), Point: at(10, "a"), InSync: true}
			return h
		}},
		{"half a batch is handed over before the stream ends", Whole, func(h []Event) []Event {
			h[10] = Handed{Updates: items(policy(3)), Point: at(21, "a"), InSync: true}
			return h
		}},
		{"what does not fit is handed over", Whole, put(16, Handed{Updates: items(secondSet(3)), Point: at(31, "b"), InSync: true})},
		{"one object is shown as of two writes by two sets", Whole, also(7, at(21, "a"), nil, set(2))},
		{"one object is shown as of two writes by one set", Whole, func(h []Event) []Event {
			two := set(2)
			two.Members = append(two.Members, set(1).Members...)
			return also(7, at(21, "a"), nil, two, secondSet(2))(h)
		}},
		{"a policy comes without its sets", Whole, also(7, at(21, "a"), []view.Key{set(1).Key()})},
		{"an endpoint comes without its list", Whole, also(13, at(30, "b"), []view.Key{list().Key()}, policy(3))},
		{"an item is left out of what is handed over", Faithful, put(6, Handed{Updates: items(policy(2), node(2)), Point: at(20, "a"), InSync: true})},
		{"an item is handed over that was not sent", Faithful, put(14, Handed{Updates: items(policy(3), node(3)), Point: at(30, "b"), InSync: true})},
		{"another content than was sent is handed over", Faithful, put(6, Handed{Updates: items(policy(2), endpoint("n1", 3), node(2)), Point: at(20, "a"), InSync: true})},
		{"a removal is not handed over", Faithful, put(19, Handed{Point: at(32, "b"), InSync: true})},
		{"a removal is handed over that was not sent", Faithful, put(14, Handed{Updates: items(policy(3)), Removes: []view.Key{node(1).Key()}, Point: at(30, "b"), InSync: true})},
		{"the checkpoint handed over is another", Faithful, put(14, Handed{Updates: items(policy(3)), Point: at(29, "b"), InSync: true})},
		{"a version is not that of the content", Faithful, func(h []Event) []Event {
			wrong := items(policy(3))
			wrong[0].Version[0]++
			h[13] = Sent{Batch: 1, Items: wrong, Point: at(30, "b"), InSync: true}
			return h
		}},
		{"a client says it has what it has not", Faithful, put(11, Opened{Point: at(21, "a"), Digests: digests(append(whole(2), view.Policy{ID: "gnp/other"})...)})},
		{"a client says it has another version", Faithful, put(11, Opened{Point: at(21, "a"), Digests: digests(whole(3)...)})},
		{"a client resumes from an earlier checkpoint", Faithful, put(11, Opened{Point: at(20, "a"), Digests: digests(whole(2)...)})},
		{"a client resumes without a checkpoint", Faithful, put(11, Opened{Digests: digests(whole(2)...)})},
		{"a client does not name all", Faithful, names(whole(2)[:5]...)},
		{"a client names another version", Faithful, names(append(whole(2)[:5], node(3))...)},
		{"a client names what it has not", Faithful, names(append(whole(2), view.Policy{ID: "gnp/other"})...)},
		{"after a new start something old stays", Faithful, func(h []Event) []Event {
			h[12] = Welcomed{}
			h[13] = Sent{Batch: 1, Items: items(set(2), secondSet(2), policy(3), list(), endpoint("n1", 2)), Point: at(30, "b"), InSync: true}
			return h
		}},
		{"another node's endpoint is sent", Own, also(5, at(20, "a"), nil, policy(2), endpoint("n1", 2), node(2), endpoint("n2", 1))},
		{"another node's policy is sent", Own, also(5, at(20, "a"), nil, policy(2), endpoint("n1", 2), node(2), view.Policy{ID: "gnp/q"})},
		{"another node's set is sent", Own, also(5, at(20, "a"), nil, policy(2), endpoint("n1", 2), node(2), view.IPSet{ID: "s:3"})},
		{"what nothing needs any more stays", Own, also(18, at(32, "b"), []view.Key{node(1).Key(), endpoint("n1", 1).Key()})},
		{"the last update is lost", Complete, skip(18, 19)},
		{"an update in the middle is lost", Complete, skip(13, 14)},
		{"all is lost from some moment on", Complete, func(h []Event) []Event { return h[:9] }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			faults := judge(c.plant(good()), end())
			var rules []Rule
			for _, f := range faults {
				rules = append(rules, f.Rule)
			}
			require.Contains(t, rules, c.rule, "%v", faults)
		})
	}
}

func TestWhatIsNamedIsHeld(t *testing.T) {
	assert.Empty(t, judge(names(whole(2)...)(good()), end()))
}

// A replica of another version of the protocol has versions of its own, by which the client knows what it has.
func TestVersionsOfAnotherProtocolAreItsOwn(t *testing.T) {
	skewed := items(policy(3))
	skewed[0].Version[0]++
	h := good()[:15]
	h[13] = Sent{Skewed: true, Batch: 1, Items: skewed, Point: at(30, "b"), InSync: true}
	has := digests(set(2), secondSet(2), list(), endpoint("n1", 2), node(2))
	has.Add(skewed[0].Key, skewed[0].Version)
	want := versions(set(2), secondSet(2), policy(3), list(), endpoint("n1", 2), node(2))
	assert.Empty(t, judge(append(slices.Clone(h), Closed{}, Opened{Point: at(30, "b"), Digests: has}), want))

	wrong := Opened{Point: at(30, "b"), Digests: digests(set(2), secondSet(2), policy(3), list(), endpoint("n1", 2), node(2))}
	assert.NotEmpty(t, judge(append(slices.Clone(h), Closed{}, wrong), want), "it says it has the other version")
	h[14] = Handed{Updates: items(policy(4)), Point: at(30, "b"), InSync: true}
	assert.NotEmpty(t, judge(h, want), "another content")
}

func TestAnEmptyViewIsNotTakenForComplete(t *testing.T) {
	c := NewClient("n1", nil)
	assert.False(t, c.Holds(end()))
	c.Finish(end())
	assert.Len(t, c.Faults(), 5)
}

// A replica that has served the client before lets it in at once, whatever the checkpoint says; nothing may go back all the
// same.
func TestARespiteForTheSameReplica(t *testing.T) {
	h := good()
	h[7] = Sent{Batch: 3, Items: items(delta(2, "s:1"), delta(2, "s:2")), Point: at(26, "a"), InSync: true}
	h[8] = Handed{Updates: items(set(2), secondSet(2)), Point: at(26, "a"), InSync: true}
	h[11] = Opened{Point: at(26, "a"), Digests: digests(whole(2)...)}
	h[13] = Sent{Batch: 1, Point: at(27, "a"), InSync: true}
	h[14] = Handed{Point: at(27, "a"), InSync: true}
	assert.Empty(t, judge(h[:15], versions(whole(2)...)))
}

func TestMarksTravel(t *testing.T) {
	assert.Equal(t, map[string]uint64{"object 7": 3}, Describe(set(3)).Marks)
	assert.Equal(t, map[string]uint64{"object 9": 4}, Describe(node(4)).Marks)
	assert.Equal(t, map[string]uint64{"gnp/p": 5}, Describe(policy(5)).Marks)
	assert.Equal(t, map[string]uint64{"k8s/ns/pod.n1/eth0": 6}, Describe(endpoint("n1", 6)).Marks)
	assert.Equal(t, "n1", Describe(endpoint("n1", 6)).Owner)
}
