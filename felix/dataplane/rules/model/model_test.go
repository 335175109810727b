package model

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// keeper keeps the members of sets as a driver must.
type keeper map[string]map[view.Member]struct{}

func (k keeper) Make(id string, _ view.SetType) { k[id] = map[view.Member]struct{}{} }
func (k keeper) Drop(id string)                 { delete(k, id) }

func (k keeper) Replace(id string, members []view.Member) {
	clear(k[id])
	for _, m := range members {
		k[id][m] = struct{}{}
	}
}

func (k keeper) Change(id string, d desired.SetDelta) {
	for _, m := range d.Removed {
		delete(k[id], m)
	}
	for _, m := range d.Added {
		k[id][m] = struct{}{}
	}
}

// compiled is what a driver makes of a model, as far as it depends on it.
type compiled struct {
	chains, workloads map[string]string
	once              string
}

func compile(m *Model) compiled {
	out, six := compileFor(m.Of(false)), compileFor(m.Of(true))
	for name, text := range six.chains {
		out.chains[name] += text
	}
	for name, text := range six.workloads {
		out.workloads[name] += text
	}
	out.once += six.once
	return out
}

// compileFor is compile for a family.
func compileFor(m *Model) compiled {
	out := compiled{chains: map[string]string{}, workloads: map[string]string{}}
	there := func(chain string) (in [3]bool) {
		for i, l := range Layers() {
			in[i] = m.Has(chain, l)
		}
		return in
	}
	for name, c := range m.Chains {
		text := fmt.Sprint(c.In, m.Settings.RejectDenied, m.Settings.LogLimit)
		for _, r := range c.Rules {
			text += fmt.Sprint(r.Do, r.Target, r.Match, there(r.Target))
			for _, id := range r.Match.Sets() {
				kind, known := m.Sets[id]
				text += fmt.Sprint(kind, known)
			}
		}
		out.chains[name] = text
	}
	for name, w := range m.Workloads {
		w.ClosedBecause = ""
		out.workloads[name] = fmt.Sprint(w, there(w.Ingress), there(w.Egress))
	}
	out.once = fmt.Sprint(m.Settings)
	for _, l := range Layers() {
		out.once += fmt.Sprint(m.Uses(l))
	}
	for _, name := range []string{"eth0", "*"} {
		h, known := m.Hosts[name]
		h.ClosedBecause = ""
		out.once += fmt.Sprint(known, h)
		for _, s := range Stations() {
			out.once += fmt.Sprint(m.Has(s.Counts(h), s.Layer), s.Judges(h), m.Has(h.Of(s.Pass).Of(s.Dir), s.Layer), known && m.Has(s.Failsafe(), s.Layer))
		}
	}
	return out
}

// What is not told to be dirty compiles to what it was, whatever changes; and what Desired tells makes the same model.
func TestWhatIsCleanHasNotChanged(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	chain := func() string { return pick("a", "b", "c", desired.FailsafeIn) }
	named := func() string { return pick(chain(), "") }
	sets := keeper{}
	m := New(sets)
	m.Compiled()
	before := compile(m)
	for step := range 5000 {
		var c desired.FirewallDelta
		for range 1 + r.IntN(3) {
			switch r.IntN(10) {
			case 0, 1, 2:
				name := chain()
				x := desired.Chain{Name: name, In: desired.Layers(r.IntN(8))}
				for range r.IntN(3) {
					x.Rules = append(x.Rules, desired.Rule{Do: desired.Jump, Target: chain(), Match: &desired.Match{Source: view.Match{Sets: []string{pick("s:1", "s:2", desired.SetPools)}}}})
				}
				c.Chains.Put(name, x)
			case 3:
				c.Chains.Remove(chain())
			case 4:
				members := []view.Member{{Port: uint16(r.IntN(5))}}
				c.Sets.Put(pick("s:1", "s:2", desired.SetPools), desired.Set{Type: pick2(r, view.SetNet, view.SetIPPort), Members: members})
			case 5:
				c.Sets.Remove(pick("s:1", "s:2", desired.SetPools))
			case 6:
				w := desired.Workload{Ingress: named(), Egress: named(), ClosedBecause: pick("x", "y")}
				c.Workloads.Put(pick("cali1", "cali2"), w)
			case 7:
				c.Workloads.Remove(pick("cali1", "cali2"))
			case 8:
				h := desired.Host{Normal: desired.Ways{Ingress: named()}, PreDNAT: desired.Ways{Ingress: named()}, Counted: [desired.Normal]desired.Ways{desired.PreDNAT: {Ingress: named()}}, ClosedBecause: pick("x", "y")}
				if r.IntN(2) == 0 {
					c.Hosts.Put(pick("eth0", "*"), h)
				} else {
					c.Hosts.Remove(pick("eth0", "*"))
				}
			case 9:
				c.Settings = &desired.Settings{RejectDenied: r.IntN(2) == 0, LogLimit: desired.Limit{Rate: r.IntN(2)}, CutFlows: r.IntN(2) == 0, NoIPv6: r.IntN(2) == 0}
				c.Members = map[string]desired.SetDelta{pick("s:1", "s:2"): {Added: []view.Member{{Port: 9}}, Removed: []view.Member{{Port: 3}}}}
			}
		}
		m.Update(c, sets)
		after := compile(m)
		changed := func(kind string, before, after map[string]string, dirty map[string]struct{}) {
			for _, names := range []map[string]string{before, after} {
				for name := range names {
					if _, told := dirty[name]; !told {
						require.Equal(t, before[name], after[name], "step %d: %s %s, after %+v", step, kind, name, c)
					}
				}
			}
		}
		changed("chain", before.chains, after.chains, m.Dirty.Chains)
		changed("workload", before.workloads, after.workloads, m.Dirty.Workloads)
		if !m.Dirty.Once {
			require.Equal(t, before.once, after.once, "step %d: what exists once, after %+v", step, c)
		}
		m.Compiled()
		require.True(t, m.Clean())
		before = after
		require.Len(t, sets, len(m.Sets))
		if step%50 == 0 {
			others := keeper{}
			other := New(others)
			other.Update(m.Desired(func(id string) (out []view.Member) {
				for x := range sets[id] {
					out = append(out, x)
				}
				return out
			}), others)
			require.Equal(t, after, compile(other), "another driver that takes over")
			require.Equal(t, sets, others)
		}
	}
}

func pick2[T any](r *rand.Rand, a, b T) T {
	if r.IntN(2) == 0 {
		return a
	}
	return b
}

func TestWhyAWorkloadIsClosed(t *testing.T) {
	sets := keeper{}
	m := New(sets)
	assert.Contains(t, m.Closed("cali1"), "no known endpoint")
	var c desired.FirewallDelta
	c.Workloads.Put("cali1", desired.Workload{ClosedBecause: "profile x is not known"})
	m.Update(c, sets)
	assert.Equal(t, "profile x is not known", m.Closed("cali1"))
	c.Workloads.Put("cali1", desired.Workload{Ingress: "in", Egress: "out"})
	c.Chains.Put("out", desired.Chain{Name: "out"})
	c.Chains.Put("in", desired.Chain{Name: "in", In: desired.Raw})
	m.Update(c, sets)
	assert.Equal(t, "its policy in is not programmed", m.Closed("cali1"), "not where it is asked")
	c.Chains.Put("in", desired.Chain{Name: "in", In: desired.Raw | desired.Filter})
	m.Update(c, sets)
	assert.Empty(t, m.Closed("cali1"))
}

func TestSourcePortsLeaveOutTheVXLANPort(t *testing.T) {
	for p, want := range map[uint16]view.PortRange{
		4789: {First: 4790, Last: 65535}, 60000: {First: 1024, Last: 59999}, 80: {First: 1024, Last: 65535}, 65535: {First: 1024, Last: 65534},
	} {
		assert.Equal(t, want, SourcePorts(p, view.PortRange{}), p)
	}
	assert.Equal(t, view.PortRange{First: 4000, Last: 4788}, SourcePorts(4789, view.PortRange{First: 4000, Last: 5000}), "within the range that is asked for")
	assert.Equal(t, view.PortRange{First: 4790, Last: 9000}, SourcePorts(4789, view.PortRange{First: 4700, Last: 9000}))
	assert.Equal(t, view.PortRange{First: 32768, Last: 65535}, SourcePorts(4789, view.PortRange{First: 32768, Last: 65535}))
}

func TestMergePorts(t *testing.T) {
	ports := func(bounds ...uint16) (out []view.PortRange) {
		for pair := range slices.Chunk(bounds, 2) {
			out = append(out, view.PortRange{First: pair[0], Last: pair[1]})
		}
		return out
	}
	assert.Equal(t, ports(1, 20, 22, 65535), MergePorts(ports(22, 30, 1, 10, 5, 15, 16, 20, 31, 65535, 40, 50)))
}
