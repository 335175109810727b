package iptables

import (
	"slices"
	"strings"
)

// fewest is how many interfaces a chain of a dispatch tree tells apart by itself; with more it asks for the next character
// first. A packet meets a number of rules that grows with the logarithm of the number of interfaces.
const fewest = 8

// tree makes the chains that find the target of an interface among targets. The root is what is called for packets of any
// interface; a packet whose interface is not known meets last, in whichever chain it gets to.
type tree struct {
	root    string          // name of the chain at the top
	match   string          // "-i" or "-o"
	targets map[string]rule // without criteria
	last    []rule
	chains  map[string][]rule // where the chains go, the root's without what comes before
}

// build fills the chains for the names, which are sorted.
func (t tree) build(name string, names []string) {
	var rules []rule
	if len(names) <= fewest {
		for _, n := range names {
			r := t.targets[n]
			rules = append(rules, rule{t.match + " " + n + " ", r.target, r.comment})
		}
		t.chains[name] = append(rules, t.last...)
		return
	}
	prefix := common(names[0], names[len(names)-1])
	if names[0] == prefix { // one that the others go on from
		r := t.targets[prefix]
		rules = append(rules, rule{t.match + " " + prefix + " ", r.target, r.comment})
		names = names[1:]
	}
	for len(names) > 0 {
		next := names[0][:len(prefix)+1]
		n, _ := slices.BinarySearchFunc(names, next, func(name, next string) int {
			if strings.HasPrefix(name, next) {
				return -1
			}
			return strings.Compare(name, next)
		})
		branch := fitted(t.root+"-", next)
		rules = append(rules, rule{t.match + " " + next + "+ ", "-g " + branch, "interfaces " + next})
		t.build(branch, names[:n])
		names = names[n:]
	}
	t.chains[name] = append(rules, t.last...)
}

// common is the longest common beginning.
func common(a, b string) string {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}
