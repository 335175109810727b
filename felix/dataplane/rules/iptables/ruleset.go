package iptables

import (
	"maps"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Ruleset is what the driver writes for one family, as plain data: for those who want to know what rules mean without
// asking a kernel.
type Ruleset struct {
	Tables map[string]string        // what iptables-restore is told, by table
	Sets   map[string][]view.Member // entries by the kernel's name of the set, sorted
}

// Compile is what a driver that is told of this firewall, and of nothing before, writes: for IPv4 and for IPv6. It is pure.
// Programs are taken to be new enough for all that we use.
func Compile(firewall desired.FirewallDelta) (ip4, ip6 Ruleset) {
	d := &Driver{}
	for _, v6 := range []bool{false, true} {
		d.families = append(d.families, newFamily(v6, program{randomFully: true}, desired.DefaultSetLimit, nil))
	}
	d.model = model.New(d.sets())
	d.Update(firewall)
	d.compile()
	return d.families[0].ruleset(), d.families[1].ruleset()
}

func (f *family) ruleset() Ruleset {
	out := Ruleset{Tables: map[string]string{}, Sets: map[string][]view.Member{}}
	for _, t := range f.tables {
		if units := t.plan(true, false); len(units) > 0 {
			out.Tables[t.name], _ = input(t.name, units)
		}
	}
	for name := range f.sets.headers.AllDesired() {
		out.Sets[name] = slices.SortedFunc(maps.Keys(maps.Collect(f.sets.entries[name].AllDesired())), view.Member.Compare)
	}
	return out
}
