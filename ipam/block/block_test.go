package block

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/thorough"
)

var t0 = time.Date(2026, 8, 22, 10, 0, 0, 0, time.UTC)

func spec(t *testing.T, b Block) string {
	t.Helper()
	out, err := json.Marshal(b.Spec)
	require.NoError(t, err)
	return string(out)
}

// assertSpec compares exactly: as JSON text of the type, since 64-bit numbers do not survive a detour over floats.
func assertSpec(t *testing.T, want string, b Block) {
	t.Helper()
	var w api.IPAMBlockSpec
	require.NoError(t, json.Unmarshal([]byte(want), &w))
	assert.Equal(t, spec(t, Block{IPAMBlock: &api.IPAMBlock{Spec: w}}), spec(t, b))
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// TestLifeOfABlock follows one block through its states and pins the stored shape of each.
func TestLifeOfABlock(t *testing.T) {
	b := New(netip.MustParsePrefix("10.9.0.4/30"), "host:node-a", t0.Add(5))
	assert.Equal(t, "10.9.0.4/30", b.Name)
	assertSpec(t, `{"cidr":"10.9.0.4/30","affinity":"host:node-a","affinityClaimTime":"2026-08-22T10:00:00Z",
		"allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":[],"sequenceNumber":1787392800000000005}`, b)
	kind, node := b.Owner()
	assert.Equal(t, api.AffinityHost, kind)
	assert.Equal(t, "node-a", node)
	assert.True(t, b.Empty())
	assert.Equal(t, 4, b.Free(Reserved{}))

	web := Owner{Handle: "h1", Attributes: map[string]string{"pod": "web-0"}}
	assert.Equal(t, addrs("10.9.0.4", "10.9.0.5"), b.Take(2, web, Reserved{}))
	b.Written()
	require.NoError(t, b.TakeAddr(addrs("10.9.0.7")[0], Owner{}))
	b.Written()
	assertSpec(t, `{"cidr":"10.9.0.4/30","affinity":"host:node-a","affinityClaimTime":"2026-08-22T10:00:00Z",
		"allocations":[0,0,null,1],"unallocated":[2],"attributes":[{"handle_id":"h1","secondary":{"pod":"web-0"}},{}],
		"sequenceNumber":1787392800000000007,"sequenceNumberForAllocation":{"0":1787392800000000005,"1":1787392800000000005,"3":1787392800000000006}}`, b)

	err := b.TakeAddr(addrs("10.9.0.5")[0], web)
	assert.EqualError(t, err, "address 10.9.0.5 is already assigned in block 10.9.0.4/30, under handle h1; choose another one")
	var taken *TakenError
	require.ErrorAs(t, err, &taken)
	assert.Equal(t, "web-0", taken.By.Owner["pod"])
	assert.EqualError(t, b.TakeAddr(addrs("10.9.0.8")[0], web), "address 10.9.0.8 is not in block 10.9.0.4/30")

	// With a cool-down the slot points to a mark with the time, and counts as occupied until it is over.
	done, err := b.Release([]Release{{Addr: addrs("10.9.0.4")[0], Handle: "h1"}}, t0, 10*time.Second)
	require.NoError(t, err)
	assert.Equal(t, Released{ByHandle: map[string]int{"h1": 1}, Any: true}, done)
	b.Written()
	assertSpec(t, `{"cidr":"10.9.0.4/30","affinity":"host:node-a","affinityClaimTime":"2026-08-22T10:00:00Z",
		"allocations":[2,0,null,1],"unallocated":[2],"attributes":[{"handle_id":"h1","secondary":{"pod":"web-0"}},{},{"releasedAt":"2026-08-22T10:00:00Z"}],
		"sequenceNumber":1787392800000000008,"sequenceNumberForAllocation":{"0":1787392800000000007,"1":1787392800000000005,"3":1787392800000000006}}`, b)
	cooling, ok := b.Lookup(addrs("10.9.0.4")[0])
	assert.True(t, ok && cooling.Cooling() && cooling.Handle == "" && cooling.Owner == nil)
	assert.ErrorContains(t, b.TakeAddr(addrs("10.9.0.4")[0], web), "cooling down since its release at 10:00:00 UTC")
	again, err := b.Release([]Release{{Addr: addrs("10.9.0.4")[0]}}, t0, 10*time.Second)
	require.NoError(t, err)
	assert.Equal(t, Released{ByHandle: map[string]int{}, Unknown: addrs("10.9.0.4")}, again)

	assert.False(t, b.Collect(t0.Add(9*time.Second), 10*time.Second))
	assert.True(t, b.Collect(t0.Add(10*time.Second), 10*time.Second))
	assert.Equal(t, []int{2, 0}, b.Spec.Unallocated, "freed ones go to the end")
	assert.NotContains(t, b.Spec.SequenceNumberForAllocation, "0")
	assert.Len(t, b.Spec.Attributes, 2)

	assert.Equal(t, 1, b.ReleaseHandle("h1", t0, 0))
	done, err = b.Release([]Release{{Addr: addrs("10.9.0.7")[0]}, {Addr: addrs("10.9.0.7")[0]}}, t0.Add(300*time.Millisecond), 0)
	require.NoError(t, err)
	assert.True(t, done.Any && len(done.ByHandle) == 0)
	assert.True(t, b.Empty())
	assert.Equal(t, []int{2, 0, 1, 3}, b.Spec.Unallocated)
	b.Disown()
	assertSpec(t, `{"cidr":"10.9.0.4/30","allocations":[null,null,null,null],"unallocated":[2,0,1,3],"attributes":[],"sequenceNumber":1787392800000000008}`, b)
	assert.True(t, b.ClaimedBefore(time.Time{}), "no claim time is old")
}

func TestReleaseConflictsChangeNothing(t *testing.T) {
	b := New(netip.MustParsePrefix("fd00::/126"), "host:n", t0)
	a := b.Take(2, Owner{Handle: "h"}, Reserved{})
	before := spec(t, b)
	stale, right := b.Spec.SequenceNumber-1, b.Spec.SequenceNumber
	for _, tc := range []struct {
		r    Release
		want string
	}{
		{Release{Addr: a[1], Handle: "other"}, `address fd00::1 belongs to handle "h", not "other"`},
		{Release{Addr: a[1], Sequence: &stale}, "address fd00::1 was assigned again since it was looked at: its sequence number is"},
	} {
		_, err := b.Release([]Release{{Addr: a[0]}, tc.r}, t0, 0)
		var conflict *ConflictError
		require.ErrorAs(t, err, &conflict)
		assert.ErrorContains(t, err, tc.want)
		assert.Equal(t, before, spec(t, b))
	}
	done, err := b.Release([]Release{{Addr: a[0], Handle: "h\r junk", Sequence: &right}}, t0, 0)
	require.NoError(t, err)
	assert.Equal(t, 1, done.ByHandle["h"])
}

func TestCooldownIsNeverShorterThanAsked(t *testing.T) {
	b := New(netip.MustParsePrefix("10.0.0.0/30"), "host:n", t0)
	a := b.Take(1, Owner{}, Reserved{})
	at := t0.Add(900 * time.Millisecond)
	_, err := b.Release([]Release{{Addr: a[0]}}, at, 10*time.Second)
	require.NoError(t, err)
	var stored api.IPAMBlockSpec
	require.NoError(t, json.Unmarshal([]byte(spec(t, b)), &stored))
	b.Spec = stored
	assert.False(t, b.Collect(at.Add(9999*time.Millisecond), 10*time.Second))
	assert.True(t, b.Collect(at.Add(10100*time.Millisecond), 10*time.Second))
}

func TestReservedAddressesAreOnlyTakenByName(t *testing.T) {
	b := New(netip.MustParsePrefix("10.0.0.0/30"), "host:n", t0)
	r := NewReserved(netip.MustParsePrefix("10.0.0.0/31"))
	assert.Equal(t, 2, b.Free(r))
	assert.Equal(t, addrs("10.0.0.2", "10.0.0.3"), b.Take(4, Owner{}, r))
	assert.Equal(t, []int{0, 1}, b.Spec.Unallocated)
	assert.Equal(t, 0, b.Free(r))
	assert.NoError(t, b.TakeAddr(addrs("10.0.0.1")[0], Owner{}))
}

func TestReassign(t *testing.T) {
	b := New(netip.MustParsePrefix("10.0.0.0/30"), "host:n", t0)
	warm := Owner{Handle: "warm", Attributes: map[string]string{"type": "warmPool"}}
	b.Take(2, warm, Reserved{})
	b.Written()
	require.NoError(t, b.Reassign(addrs("10.0.0.0")[0], "warm", Owner{Handle: "pod"}))
	assertSpec(t, `{"cidr":"10.0.0.0/30","affinity":"host:n","affinityClaimTime":"2026-08-22T10:00:00Z","allocations":[1,0,null,null],
		"unallocated":[2,3],"attributes":[{"handle_id":"warm","secondary":{"type":"warmPool"}},{"handle_id":"pod"}],
		"sequenceNumber":1787392800000000001,"sequenceNumberForAllocation":{"0":1787392800000000001,"1":1787392800000000000}}`, b)
	require.NoError(t, b.Reassign(addrs("10.0.0.1")[0], "warm\r", Owner{Handle: "pod"}))
	assert.Len(t, b.Spec.Attributes, 1, "the one that nothing uses is dropped")
	var conflict *ConflictError
	for _, a := range addrs("10.0.0.1", "10.0.0.2", "10.0.1.0") {
		require.ErrorAs(t, b.Reassign(a, "warm", Owner{Handle: "pod"}), &conflict, a)
	}
}

func TestForeignShapes(t *testing.T) {
	parse := func(s string) *api.IPAMBlock {
		b := &api.IPAMBlock{}
		require.NoError(t, json.Unmarshal([]byte(`{"metadata":{"name":"x"},"spec":`+s+`}`), b))
		return b
	}
	// What Windows keeps does not occupy a block; a handle with trailing garbage is found; missing maps are made.
	b, err := Of(parse(`{"cidr":"10.0.0.0/30","allocations":[0,0,1,0],"unallocated":[],"attributes":[{"handle_id":"Windows-Reserved-IPAM-Handle"},{"handle_id":"h\r\neth0"}]}`))
	require.NoError(t, err)
	assert.False(t, b.Empty())
	assert.Equal(t, addrs("10.0.0.2"), b.ByHandle("h"))
	assert.Equal(t, "", b.Affinity())
	assert.Equal(t, 1, b.ReleaseHandle("h\rwhatever", t0, 0))
	assert.True(t, b.Empty())
	assert.Equal(t, addrs("10.0.0.2"), b.Take(1, Owner{}, Reserved{}))

	for in, want := range map[string]string{
		`{"cidr":"10.0.0.0"}`:                                                               `spec.cidr "10.0.0.0" of x is not a block's network`,
		`{"cidr":"10.0.0.1/30"}`:                                                            `is not a block's network`,
		`{"cidr":"fd00::/64"}`:                                                              `is not a block's network`,
		`{"cidr":"10.0.0.0/31","allocations":[null]}`:                                       `spec.allocations has 1 entries, not 2`,
		`{"cidr":"10.0.0.0/31","allocations":[null,0]}`:                                     `ordinal 1 points to attribute 0 of 0`,
		`{"cidr":"10.0.0.0/31","allocations":[null,-1]}`:                                    `ordinal 1 points to attribute -1 of 0`,
		`{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[0,2]}`:              `spec.unallocated names ordinal 2 of 2`,
		`{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[-1]}`:               `spec.unallocated names ordinal -1`,
		`{"cidr":"10.0.0.0/31","allocations":[null,null],"unallocated":[1,1]}`:              `ordinal 1 is in spec.unallocated twice`,
		`{"cidr":"10.0.0.0/31","allocations":[null,0],"attributes":[{}],"unallocated":[1]}`: `ordinal 1 is both allocated and in spec.unallocated`,
	} {
		_, err := Of(parse(in))
		assert.ErrorContains(t, err, want, in)
	}
}

// model is a block told plainly: who has each address, and the queue of free ones.
type model struct {
	holder   map[netip.Addr]string // handle, or "cooling"
	released map[netip.Addr]time.Time
	queue    []netip.Addr
}

// TestAgainstModel runs random operations on a block and on the model, and compares all that can be seen.
func TestAgainstModel(t *testing.T) {
	for seed := range thorough.Rounds(20, 100) {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		cidr := netip.MustParsePrefix([]string{"10.0.0.8/29", "fd00::10/125"}[r.IntN(2)])
		cooldown := []time.Duration{0, 5 * time.Second}[r.IntN(2)]
		var reserved Reserved
		if r.IntN(2) == 0 {
			reserved = NewReserved(netip.PrefixFrom(cidr.Addr().Next(), cidr.Addr().BitLen()))
		}
		b, m, now := New(cidr, "host:n", t0), model{holder: map[netip.Addr]string{}, released: map[netip.Addr]time.Time{}}, t0
		for a := cidr.Addr(); cidr.Contains(a); a = a.Next() {
			m.queue = append(m.queue, a)
		}
		all := slices.Clone(m.queue)
		for step := range 60 {
			what := fmt.Sprintf("seed %d step %d", seed, step)
			owner := Owner{Handle: fmt.Sprint("h", r.IntN(3)), Attributes: map[string]string{"pod": fmt.Sprint(r.IntN(2))}}
			switch r.IntN(5) {
			case 0:
				n := 1 + r.IntN(3)
				var want []netip.Addr
				m.queue = slices.DeleteFunc(m.queue, func(a netip.Addr) bool {
					if len(want) == n || reserved.Contains(a) {
						return false
					}
					want, m.holder[a] = append(want, a), owner.Handle
					return true
				})
				require.Equal(t, want, b.Take(n, owner, reserved), what)
			case 1:
				a := all[r.IntN(len(all))]
				err := b.TakeAddr(a, owner)
				require.Equal(t, m.holder[a] != "", err != nil, what)
				if err == nil {
					m.holder[a] = owner.Handle
					m.queue = slices.DeleteFunc(m.queue, func(q netip.Addr) bool { return q == a })
				}
			case 2:
				a := all[r.IntN(len(all))]
				held := m.holder[a] != "" && m.holder[a] != "cooling"
				done, err := b.Release([]Release{{Addr: a}}, now, cooldown)
				require.NoError(t, err)
				require.Equal(t, held, done.Any, what)
				if held {
					m.cool([]netip.Addr{a}, now)
					m.collect(all, now, cooldown)
				}
			case 3:
				var with []netip.Addr
				for _, a := range all {
					if m.holder[a] == owner.Handle {
						with = append(with, a)
					}
				}
				require.Equal(t, with, b.ByHandle(owner.Handle), what)
				require.Equal(t, len(with), b.ReleaseHandle(owner.Handle, now, cooldown), what)
				if len(with) > 0 {
					m.cool(with, now)
					m.collect(all, now, cooldown)
				}
			case 4:
				now = now.Add(time.Duration(r.IntN(4)) * time.Second)
				b.Collect(now, cooldown)
				m.collect(all, now, cooldown)
			}
			b.Written()
			stored := &api.IPAMBlock{}
			require.NoError(t, json.Unmarshal([]byte(spec(t, b)), &stored.Spec))
			read, err := Of(stored)
			require.NoError(t, err, what)
			b = read
			check(t, what, b, m, all)
		}
	}
}

func (m *model) cool(list []netip.Addr, now time.Time) {
	for _, a := range list {
		m.holder[a], m.released[a] = "cooling", now
	}
}

func (m *model) collect(all []netip.Addr, now time.Time, cooldown time.Duration) {
	for _, a := range all {
		if m.holder[a] == "cooling" && now.Sub(m.released[a]) >= cooldown {
			delete(m.holder, a)
			m.queue = append(m.queue, a)
		}
	}
}

func check(t *testing.T, what string, b Block, m model, all []netip.Addr) {
	t.Helper()
	var queue []netip.Addr
	for _, o := range b.Spec.Unallocated {
		queue = append(queue, b.addr(o))
	}
	require.Equal(t, len(m.queue), len(queue), what)
	require.True(t, slices.Equal(m.queue, queue), what)
	require.Equal(t, len(m.holder) == 0, b.Empty(), what)
	used := map[int]bool{}
	for _, a := range all {
		got, ok := b.Lookup(a)
		require.Equal(t, m.holder[a] != "", ok, what)
		o, _ := b.ordinal(a)
		_, hasSequence := b.Spec.SequenceNumberForAllocation[key(o)]
		require.Equal(t, ok, hasSequence, what)
		if !ok {
			continue
		}
		used[*b.Spec.Allocations[o]] = true
		if m.holder[a] == "cooling" {
			require.True(t, got.Cooling(), what)
		} else {
			require.Equal(t, m.holder[a], got.Handle, what)
		}
	}
	// No entry is unused, no two are alike.
	require.Len(t, used, len(b.Spec.Attributes), what)
	for i, x := range b.Spec.Attributes {
		for _, y := range b.Spec.Attributes[:i] {
			require.False(t, x.ReleasedAt == nil && y.ReleasedAt == nil && *x.HandleID == *y.HandleID && maps.Equal(x.Owner, y.Owner), what)
		}
	}
}

func BenchmarkTakeAndRelease(bench *testing.B) {
	b := New(netip.MustParsePrefix("10.0.0.0/26"), "host:n", t0)
	bench.ReportAllocs()
	for bench.Loop() {
		b.Take(1, Owner{Handle: "h", Attributes: map[string]string{"pod": "p"}}, Reserved{})
		b.ReleaseHandle("h", t0, 0)
		b.Written()
	}
}

// FuzzOf reads blocks as anyone may have written them: what Of accepts can be worked with and stays sound.
func FuzzOf(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"cidr":"10.0.0.0/31","allocations":[null,0],"attributes":[{"handle_id":"h\r"}],"unallocated":[0]}`,
		`{"cidr":"10.9.0.4/30","affinity":"host:node-a","allocations":[0,null,1,null],"unallocated":[3,1],"attributes":[{"handle_id":"h","secondary":{"node":"a"}},{"releasedAt":"2026-08-22T10:05:00Z"}],"sequenceNumber":1787392800000000005,"sequenceNumberForAllocation":{"0":1,"2":4}}`,
		`{"cidr":"fd00::/126","allocations":[null,null,null,null],"unallocated":[1]}`, `{"cidr":"10.0.0.0/31","allocations":[null,7]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		obj := &api.IPAMBlock{}
		if json.Unmarshal(data, &obj.Spec) != nil {
			return
		}
		b, err := Of(obj)
		if err != nil {
			return
		}
		b.Collect(t0, time.Minute)
		taken := b.Take(2, Owner{Handle: "fuzz"}, Reserved{})
		again := b.Take(b.Size(), Owner{}, Reserved{})
		seen := map[netip.Addr]bool{}
		for _, a := range append(taken, again...) {
			require.False(t, seen[a])
			seen[a] = true
			require.True(t, b.CIDR().Contains(a))
		}
		require.Equal(t, len(taken), b.ReleaseHandle("fuzz", t0, 0)-handles(data))
		_, err = Of(b.IPAMBlock)
		require.NoError(t, err)
	})
}

// handles counts the addresses that had the handle "fuzz" before.
func handles(data []byte) int {
	was := &api.IPAMBlock{}
	if json.Unmarshal(data, &was.Spec) != nil {
		return 0
	}
	b, err := Of(was)
	if err != nil {
		return 0
	}
	b.Collect(t0, time.Minute)
	return len(b.ByHandle("fuzz"))
}
