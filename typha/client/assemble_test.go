package client

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/typha/views"
	"github.com/muslin-net/muslin/typha/wire"
)

func bytesOf(t testing.TB, it view.Item, version view.Version) [][]byte {
	parts, err := wire.Encode(it, version)
	require.NoError(t, err)
	return parts
}

func (a *assembler) feed(t testing.TB, items ...view.Item) {
	for _, it := range items {
		version := view.VersionOf(it)
		if d, ok := it.(view.IPSetDelta); ok {
			version = d.To
		}
		for _, b := range bytesOf(t, it, version) {
			a.put(b)
		}
	}
}

func policy(name, tier string) view.Policy { return view.Policy{ID: name, Tier: tier} }

func key(name string) view.Key { return view.Key{Kind: view.KindPolicy, ID: name} }

func set(n ...int) view.IPSet {
	s := view.IPSet{ID: "s:1", Type: view.SetNet}
	for _, i := range slices.Sorted(slices.Values(n)) {
		s.Members = append(s.Members, member(i))
	}
	return s
}

func member(i int) view.Member {
	return view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32)}
}

var at = view.Checkpoint{"etcd": 1}

func TestBatchesAreOrderedAndWhole(t *testing.T) {
	a := newAssembler()
	a.startOver()
	a.feed(t, view.Node{Name: "z"}, policy("b", ""), policy("a", ""), view.Secret{Name: "s"})
	_, whole := a.checkpoint(at, false)
	assert.False(t, whole, "the rest of the view is to come")
	a.feed(t, policy("c", ""))
	s, whole := a.checkpoint(at, true)
	require.True(t, whole)
	b := s.batch(false)
	assert.Equal(t, []view.Item{view.Secret{Name: "s"}, view.Node{Name: "z"}, policy("a", ""), policy("b", ""), policy("c", "")}, b.Updates)

	a.remove(view.Key{Kind: view.KindSecret, ID: "s"})
	a.remove(key("b"))
	a.remove(key("a"))
	a.remove(key("never there"))
	a.feed(t, policy("c", "")) // sent again
	s, _ = a.checkpoint(at, true)
	b = s.batch(false)
	assert.Empty(t, b.Updates)
	assert.Equal(t, []view.Key{key("b"), key("a"), {Kind: view.KindSecret, ID: "s"}}, b.Removes)
}

func TestStartingOverRemovesWhatDoesNotCome(t *testing.T) {
	a := newAssembler()
	a.startOver()
	a.feed(t, policy("a", "1"), policy("b", "1"), policy("c", "1"))
	a.checkpoint(at, true)
	a.startOver()
	a.feed(t, policy("a", "1"), policy("b", "2"))
	s, _ := a.checkpoint(at, true)
	b := s.batch(false)
	assert.Equal(t, []view.Item{policy("b", "2")}, b.Updates)
	assert.Equal(t, []view.Key{key("c")}, b.Removes)
}

func TestBrokenStreamLeavesNothingHalf(t *testing.T) {
	a := newAssembler()
	a.startOver()
	a.feed(t, policy("a", "1"))
	a.checkpoint(at, true)
	a.feed(t, policy("a", "2"), policy("b", "2"))
	a.remove(key("a"))
	a.reset()
	assert.Equal(t, map[view.Key]view.Version{key("a"): view.VersionOf(policy("a", "1"))}, holds(a))
}

func TestItemsThatCannotBeRead(t *testing.T) {
	a := newAssembler()
	a.startOver()
	a.feed(t, policy("a", "1"))
	a.checkpoint(at, true)
	a.put([]byte{0xff})
	b, err := wire.Encode(policy("a", "2"), view.Version{})
	require.NoError(t, err)
	a.put(b[0][:len(b[0])-1])
	a.put([]byte{0x0a, 1, 'x', 0x12, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x9a, 0x06, 0}) // kind 99
	a.feed(t, policy("b", "2"))
	s, whole := a.checkpoint(at, true)
	require.True(t, whole)
	assert.Len(t, s.failures, 2)
	assert.EqualValues(t, 1, s.skipped)
	assert.Equal(t, []view.Item{policy("b", "2")}, s.batch(false).Updates, "the others come through")
	assert.Equal(t, view.VersionOf(policy("a", "1")), holds(a)[key("a")], "typha sends it again")
}

func delta(from, to view.IPSet) view.IPSetDelta {
	d := view.IPSetDelta{ID: from.ID, From: view.VersionOf(from), To: view.VersionOf(to)}
	for _, m := range to.Members {
		if !slices.Contains(from.Members, m) {
			d.Added = append(d.Added, m)
		}
	}
	for _, m := range from.Members {
		if !slices.Contains(to.Members, m) {
			d.Removed = append(d.Removed, m)
		}
	}
	return d
}

func TestDeltas(t *testing.T) {
	one, two, three := set(1, 5, 9), set(0, 5, 7, 9, 11), set(7)
	wrong := delta(one, two)
	wrong.Added = wrong.Added[1:]
	for _, c := range []struct {
		name   string
		send   []view.Item
		want   view.Item
		deltas int // passed on; 0 for the whole set
		owed   bool
	}{
		{name: "one", send: []view.Item{delta(one, two)}, want: two, deltas: 1},
		{name: "two of one batch", send: []view.Item{delta(one, two), delta(two, three)}, want: three, deltas: 2},
		{name: "after the whole set", send: []view.Item{two, delta(two, three)}, want: three},
		{name: "before the whole set", send: []view.Item{delta(one, two), three}, want: three},
		{name: "from another version", send: []view.Item{delta(two, three)}, owed: true},
		{name: "to another version", send: []view.Item{wrong}, owed: true},
		{name: "made good", send: []view.Item{wrong, delta(two, three), three}, want: three},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAssembler()
			a.startOver()
			a.feed(t, one)
			a.checkpoint(at, true)
			a.feed(t, c.send...)
			s, whole := a.checkpoint(at, true)
			assert.Equal(t, !c.owed, whole)
			if c.owed {
				assert.Equal(t, []view.Key{one.Key()}, a.takeResend())
				assert.Empty(t, a.takeResend(), "asked for once")
				return
			}
			assert.Equal(t, []view.Item{c.want}, s.batch(false).Updates)
			passed := s.batch(true).Updates
			if c.deltas == 0 {
				assert.Equal(t, []view.Item{c.want}, passed)
				return
			}
			assert.Equal(t, c.send, passed)
		})
	}
}

func TestDeltaOfASetThatIsNotThere(t *testing.T) {
	a := newAssembler()
	a.startOver()
	a.feed(t, delta(set(1), set(2)))
	_, whole := a.checkpoint(at, true)
	assert.False(t, whole)
	a.remove(set().Key())
	_, whole = a.checkpoint(at, true)
	assert.True(t, whole, "it is gone, so nothing is owed")
}

// TestAnyCourseLeadsToTheView feeds random histories, with breaks, resumes, repetitions and new starts, and compares what
// the handler has put together from the batches with what typha's view was.
func TestAnyCourseLeadsToTheView(t *testing.T) {
	for seed := range thorough.Rounds(20, 100) {
		random := rand.New(rand.NewPCG(uint64(seed), 1))
		truth := map[view.Key]view.Item{} // typha's view
		a := newAssembler()
		a.startOver()
		handler := map[view.Key]view.Item{} // who keeps whole sets
		patched := map[view.Key]view.Item{} // who applies deltas
		sent := map[view.Key]view.Item{}    // what typha believes the client has
		for range 30 {
			for range random.IntN(4) {
				change(random, truth)
			}
			switch random.IntN(10) {
			case 0: // the stream breaks in the middle of a batch, and is resumed
				a.feed(t, policy("half", "half"))
				a.remove(key("p0"))
				a.reset()
				sent = held(t, a)
			case 1: // typha starts over
				a.startOver()
				sent = map[view.Key]view.Item{}
			}
			send(t, random, a, truth, sent)
			s, whole := a.checkpoint(at, true)
			require.True(t, whole, "seed %d", seed)
			apply(t, handler, s.batch(false))
			apply(t, patched, s.batch(true))
			require.Equal(t, truth, handler, "seed %d", seed)
			require.Equal(t, truth, patched, "seed %d", seed)
		}
	}
}

func change(random *rand.Rand, truth map[view.Key]view.Item) {
	var it view.Item = policy(fmt.Sprintf("p%d", random.IntN(5)), fmt.Sprint(random.IntN(3)))
	if random.IntN(2) == 0 {
		var members []int
		for i := range 12 {
			if random.IntN(2) == 0 {
				members = append(members, i)
			}
		}
		it = set(members...)
	}
	if random.IntN(4) == 0 {
		delete(truth, it.Key())
		return
	}
	truth[it.Key()] = it
}

// holds is all that an assembler says it has, asked part by part and by digests.
func holds(a *assembler) map[view.Key]view.Version {
	out, digests := map[view.Key]view.Version{}, view.Digests{}
	for part := range view.Parts {
		for k, v := range a.have([]uint8{uint8(part)}) {
			digests.Add(k, v)
			out[k] = v
		}
	}
	if digests != *a.digests() {
		panic("the digests are of something else")
	}
	return out
}

// itemOf is the item of which an entry is.
func itemOf(t testing.TB, e *entry) view.Item {
	if e.set != nil {
		return *e.set
	}
	it, err := wire.Decode(e.raw)
	require.NoError(t, err)
	return it.Item
}

// held is what typha reckons after a resume: the client has what it says it has.
func held(t *testing.T, a *assembler) map[view.Key]view.Item {
	out := map[view.Key]view.Item{}
	for k, v := range holds(a) {
		out[k] = itemOf(t, a.items[k])
		require.Equal(t, view.VersionOf(out[k]), v)
	}
	return out
}

// send sends the difference, sets as deltas now and then.
func send(t *testing.T, random *rand.Rand, a *assembler, truth, sent map[view.Key]view.Item) {
	for _, k := range slices.SortedFunc(maps.Keys(truth), views.CompareKeys) { // the seed alone decides
		it := truth[k]
		before, had := sent[k]
		if had && view.VersionOf(before) == view.VersionOf(it) && random.IntN(5) > 0 {
			continue
		}
		old, isSet := before.(view.IPSet)
		if now, ok := it.(view.IPSet); ok && isSet && random.IntN(3) > 0 && view.VersionOf(old) != view.VersionOf(now) {
			a.feed(t, delta(old, now))
		} else {
			a.feed(t, it)
		}
		sent[k] = it
	}
	for k := range maps.Clone(sent) {
		if _, there := truth[k]; !there {
			a.remove(k)
			delete(sent, k)
		}
	}
}

func apply(t *testing.T, have map[view.Key]view.Item, b view.Batch) {
	for _, it := range b.Updates {
		d, isDelta := it.(view.IPSetDelta)
		if !isDelta {
			have[it.Key()] = it
			continue
		}
		s := have[d.Key()].(view.IPSet)
		require.Equal(t, d.From, view.VersionOf(s))
		s.Members = slices.DeleteFunc(slices.Concat(s.Members, d.Added), func(m view.Member) bool { return slices.Contains(d.Removed, m) })
		slices.SortFunc(s.Members, views.CompareMembers)
		if len(s.Members) == 0 {
			s.Members = nil
		}
		have[d.Key()] = s
	}
	for _, k := range b.Removes {
		require.Contains(t, have, k)
		delete(have, k)
	}
}

// What was handed over and applied is its receiver's: of an item that is no set nothing but its bytes is held, once for both.
func TestAppliedItemsAreHeldOnce(t *testing.T) {
	a, l := newAssembler(), newLedger()
	a.startOver()
	a.feed(t, policy("a", "1"), set(1))
	s, whole := a.checkpoint(at, true)
	require.True(t, whole)
	l.apply(l.hand(s))
	require.Empty(t, l.waiting)
	for _, s := range l.waiting[:cap(l.waiting)] {
		require.Nil(t, s.puts, "a step that was applied is forgotten")
	}
	require.Len(t, l.items, 2)
	for k, e := range l.items {
		require.Same(t, a.items[k], e)
	}
}
