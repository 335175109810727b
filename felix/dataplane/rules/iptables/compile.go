package iptables

import (
	"fmt"
	"time"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// compiler turns the backend-neutral model into rules of one family. It is pure: what it needs to know about the rest is
// asked of setType and hasChain.
type compiler struct {
	v6       bool
	setType  func(id string) (view.SetType, bool)
	hasChain func(name string, in desired.Layers) bool
	layer    desired.Layers           // where the chain is that is being compiled
	reject   bool                     // denied packets are answered, in the filter layer
	logs     desired.Limit            // of Log rules
	owned    map[string][]view.Member // collects the sets that belong to the rules, by id
}

func (c *compiler) chain(d desired.Chain) []rule {
	out := make([]rule, 0, len(d.Rules))
	for _, r := range d.Rules {
		why := c.cannot(r)
		if why != "" && !r.Decides() {
			continue
		}
		if why != "" {
			// Nothing behind this rule can be judged without it.
			out = append(out, rule{"", drop, r.Comment + ": " + why})
			continue
		}
		often := ""
		if r.Do == desired.Log {
			often = limit(c.logs)
		}
		for _, way := range c.match(r.Criteria()) {
			out = append(out, rule{condition(r.If) + way + often, c.target(r), r.Comment})
		}
	}
	return out
}

// cannot says why a rule cannot be written: a set or chain that it needs is not there, or iptables has no words for it.
func (c *compiler) cannot(r desired.Rule) string {
	if r.Do == desired.Jump && !c.hasChain(r.Target, c.layer) {
		return "chain " + r.Target + " is not known"
	}
	m := r.Criteria()
	for _, side := range []view.Match{m.Source, m.Destination} {
		for _, of := range []struct {
			kind view.SetType
			ids  [][]string
		}{
			{view.SetNet, [][]string{side.Sets, side.NotSets}},
			{view.SetIPPort, [][]string{side.IPPortSets, side.NamedPorts, side.NotNamedPorts}},
		} {
			for _, ids := range of.ids {
				for _, id := range ids {
					if t, ok := c.setType(id); !ok || t != of.kind {
						return "set " + id + " is not known"
					}
				}
			}
		}
	}
	if p := m.Protocol; p != 0 && withPorts[p] == "" && hasPorts(m) {
		return fmt.Sprintf("protocol %d has no ports", p)
	}
	for _, i := range []*view.ICMP{m.ICMP, m.NotICMP} {
		if i != nil && i.Type == 255 {
			return "ICMP type 255 stands for any"
		}
	}
	return ""
}

func condition(when desired.Condition) string {
	switch when {
	case desired.IfUndecided:
		return fmt.Sprintf("-m mark --mark 0x0/%#x ", desired.MarkAccept|desired.MarkPass)
	case desired.IfAllowed:
		return ifAllowed
	}
	return ""
}

const (
	drop   = "-j DROP"
	accept = "-j ACCEPT"
)

// clearMarks is the target that forgets a verdict; ifAllowed and notAllowed match on it.
var (
	clearMarks = fmt.Sprintf("-j MARK --set-xmark 0x0/%#x", desired.MarkAccept|desired.MarkPass)
	ifAllowed  = fmt.Sprintf("-m mark --mark %#x/%#x ", desired.MarkAccept, desired.MarkAccept)
	notAllowed = fmt.Sprintf("-m mark ! --mark %#x/%#x ", desired.MarkAccept, desired.MarkAccept)
)

func setMark(bits uint32) string { return fmt.Sprintf("-j MARK --set-xmark %#x/%#x", bits, bits) }

func (c *compiler) target(r desired.Rule) string {
	switch r.Do {
	case desired.Allow:
		// The end of a chain that was gone to returns where the chain of this rule would.
		return "-g " + chainAllow
	case desired.Pass:
		return "-g " + chainPass
	case desired.Log:
		const longest = 29
		prefix := printable(r.LogPrefix) + ": "
		if len(prefix) > longest {
			prefix = prefix[:longest-2] + ": "
		}
		return `-j LOG --log-level 6 --log-prefix "` + prefix + `"`
	case desired.Jump:
		return "-j " + kernelChain(r.Target)
	case desired.Return, desired.Count:
		return "-j RETURN"
	case desired.Reset:
		return clearMarks
	}
	return c.deny()
}

// limit is the match that holds no more often than a limit says.
func limit(l desired.Limit) string {
	if l == (desired.Limit{}) {
		return ""
	}
	units := map[time.Duration]string{time.Second: "second", time.Minute: "minute", time.Hour: "hour", 24 * time.Hour: "day"}
	return fmt.Sprintf("-m limit --limit %d/%s --limit-burst %d ", l.Rate, units[l.Per], l.Burst)
}

func (c *compiler) deny() string {
	switch {
	case !c.reject || c.layer != desired.Filter:
		return drop
	case c.v6:
		return "-j REJECT --reject-with icmp6-adm-prohibited"
	}
	return "-j REJECT --reject-with icmp-admin-prohibited"
}
