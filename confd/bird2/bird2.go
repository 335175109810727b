// Package bird2 writes a node's configuration in the language of BIRD 2 (2.0.8 and later), for nodes on which BIRD runs in
// the place of our own speaker. One file serves both families.
//
// What differs from our speaker: BIRD itself writes the routes of pools without a tunnel into the kernel (protocol 12), and
// learns what this node owns from what felix has written there; felix announces nothing. A filter is a function for each
// kind of session, so that BIRD reloads only the routes of sessions whose functions changed.
//
// It refuses everything else: no I/O, no decision about who peers with whom. The text depends on the configuration alone.
package bird2

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/confd/render"
)

// maxPreference is 2^31-1; local preference and kernel metric are each other's complement to it.
const maxPreference = 1<<31 - 1

// Drain is how far the node has left the service (RFC 8326).
type Drain uint8

// The steps: routes are announced as ever, announced as about to go, and not announced any more.
const (
	InService Drain = iota
	Draining
	Drained
)

// String is the step's name, as operators are told.
func (d Drain) String() string { return [...]string{"in service", "draining", "drained"}[d] }

// text is a file under construction.
type text struct {
	strings.Builder
	c     *render.Config
	drain Drain
}

// line writes one line; a pair of braces that it opens is closed by the caller.
func (t *text) line(indent int, format string, args ...any) {
	fmt.Fprintf(t, strings.Repeat("  ", indent)+format+"\n", args...)
}

// Text is the whole file. It holds passwords.
func Text(c render.Config, d Drain) []byte {
	t := &text{c: &c, drain: d}
	t.line(0, "# Written by confd; changes are overwritten. bird.yaml beside it says the same for people, without passwords.")
	t.logging()
	t.line(0, "router id %s;", c.RouterID)
	t.line(0, "graceful restart wait %d;", seconds(deferral))
	t.line(0, "timeformat protocol iso long ms; timeformat route iso long ms; timeformat base iso long ms;")
	t.line(0, "")
	t.line(0, "protocol device { scan time 2; }")
	t.line(0, "protocol direct { interface %s; ipv4; ipv6; }", t.directInterfaces())
	active, shadowed := Resolve(c.Peers)
	if slices.ContainsFunc(active, func(p render.Peer) bool { return p.BFD != nil }) {
		t.line(0, "protocol bfd {}")
	}
	for _, v6 := range []bool{false, true} {
		t.kernel(v6)
		t.static(v6)
	}
	for _, v6 := range []bool{false, true} {
		t.exports(v6)
	}
	t.filters(active)
	t.sessions(active, shadowed)
	return []byte(t.String())
}

// logging says how much BIRD tells; it is in the foreground, so its standard error is the log.
func (t *text) logging() {
	classes, debug := "{ remote, warning, error, auth, fatal, bug }", "off"
	switch t.c.LogLevel {
	case "debug":
		classes, debug = "all", "all"
	case "info":
		classes, debug = "{ info, remote, warning, error, auth, fatal, bug }", "{ states }"
	}
	t.line(0, "log stderr %s;", classes)
	t.line(0, "debug protocols %s;", debug)
}

// directInterfaces are those whose subnets are next hops of their own: all but the pods' and what operators leave out.
func (t *text) directInterfaces() string {
	var out []string
	for _, name := range append([]string{"cali*", "kube-ipvs*"}, t.c.IgnoredInterfaces...) {
		out = append(out, "-"+quoted(name))
	}
	return strings.Join(append(out, `"*"`), ", ")
}

// quoted is s as a string of BIRD's, which has no escapes.
func quoted(s string) string { return `"` + harmless(s) + `"` }

// harmless is s without what would end a string or a comment.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '"' || r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// family is the suffix of what there is once for each family.
func family(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}

// normal is the local preference of ordinary routes of a family.
func (t *text) normal(v6 bool) uint32 {
	if v6 {
		return maxPreference - t.c.NormalPriority6
	}
	return maxPreference - t.c.NormalPriority4
}

// set is a set of prefixes of one family, each followed by a suffix: "+" for all inside. It is empty if there are none, of
// which BIRD has no literal.
func set(list []netip.Prefix, v6 bool, suffix string) string {
	var out []string
	for _, p := range list {
		if p.Addr().Is6() == v6 {
			out = append(out, p.String()+suffix)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "[ " + strings.Join(out, ", ") + " ]"
}

// pools are those that a condition picks.
func (t *text) pools(which func(render.Pool) bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range t.c.Pools {
		if which(p) {
			out = append(out, p.Prefix)
		}
	}
	return out
}
