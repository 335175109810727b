package bird2

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/confd/render"
)

// exports writes the export decision of a family, after filters: once for sessions inside the AS, once for others.
func (t *text) exports(v6 bool) {
	f := family(v6)
	t.line(0, "")
	t.line(0, "# Local preference carries the kernel's metric.")
	t.line(0, "function preference%s() {", f)
	t.line(1, "if source != RTS_BGP then {")
	t.line(2, "if defined(krt_metric) && krt_metric > 0 && krt_metric < %d then bgp_local_pref = %d - krt_metric;", maxPreference, maxPreference)
	t.line(2, "else bgp_local_pref = %d;", t.normal(v6))
	t.line(1, "}")
	t.line(0, "}")
	for _, internal := range []bool{true, false} {
		t.line(0, "function export%s_%s() {", f, kind(internal))
		t.export(v6, internal)
		t.line(0, "}")
	}
}

func kind(internal bool) string {
	if internal {
		return "ibgp"
	}
	return "ebgp"
}

// export writes the steps of the decision; the first that speaks of a route ends it.
func (t *text) export(v6, internal bool) {
	step := func(set, verdict string) {
		if set != "" {
			t.line(1, "if net ~ %s then %s;", set, verdict)
		}
	}
	step(set(t.pools(func(p render.Pool) bool { return p.DisableExport }), v6, "+"), "reject")
	if internal { // routes behind a tunnel are other nodes'
		t.line(1, `if ifname ~ "*.cali" || ifname ~ "*.calico" || ifname = "tunl0" then reject;`)
	}
	t.line(1, `if ifname ~ "bpf*.cali" then reject;`)
	for _, a := range t.c.Advertisements {
		if a.Prefix.Addr().Is6() != v6 {
			continue
		}
		var add []string
		for _, c := range a.Communities {
			add = append(add, addCommunity(c))
		}
		t.line(1, "if net ~ [ %s+ ] then { %s }", a.Prefix, strings.Join(add, " "))
	}
	step(set(t.c.OwnBlocks, v6, ""), "accept")
	if inside := set(t.c.OwnBlocks, v6, "+"); inside != "" {
		t.line(1, "if net ~ %s then { if bgp_local_pref > %d then accept; reject; }", inside, t.normal(v6))
	}
	step(set(t.c.Originate, v6, ""), "accept")
	if t.c.ClusterID.IsValid() {
		step(set(t.c.ServiceRanges, v6, "+"), "accept")
	}
	step(set(t.pools(func(render.Pool) bool { return true }), v6, "+"), "accept")
	t.line(1, "reject;")
}

// filters writes each list of rules once for each kind of session that runs it.
func (t *text) filters(active []render.Peer) {
	done := map[string]bool{}
	for _, p := range active {
		v6, internal := p.Address.Is6(), p.Internal(t.c)
		for _, f := range t.attached(p) {
			for _, export := range []bool{false, true} {
				name := functionName(f.Name, v6, export, internal)
				rules := f.Rules(v6, export)
				if len(rules) == 0 || done[name] {
					continue
				}
				done[name] = true
				t.line(0, "")
				t.line(0, "# BGPFilter(%s).%s", harmless(f.Name), bgp.ListName(v6, export))
				t.line(0, "function '%s'() {", name)
				for _, r := range rules {
					t.rule(&r, internal)
				}
				t.line(0, "}")
			}
		}
	}
}

// attached are a peer's filters, in its order.
func (t *text) attached(p render.Peer) []bgp.Filter {
	var out []bgp.Filter
	for _, name := range p.Filters {
		i := slices.IndexFunc(t.c.Filters, func(f bgp.Filter) bool { return f.Name == name })
		if i >= 0 {
			out = append(out, t.c.Filters[i])
		}
	}
	return out
}

// longestName is how much of a filter's name a symbol has room for: BIRD's have 64 characters, of which 19 go to the list
// and the kind of session.
const longestName = 45

// foreign tells that a character is none of a symbol's, nor of a resource's name.
func foreign(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_.-", r)
}

// functionName names a list of rules. Names that are too long or have other characters are cut, and end with a hash.
func functionName(filter string, v6, export, internal bool) string {
	if len(filter) > longestName || strings.ContainsFunc(filter, foreign) {
		sum := sha256.Sum256([]byte(filter))
		hash := fmt.Sprintf("_%X", sum[:8])
		filter = strings.Map(func(r rune) rune {
			if foreign(r) {
				return '_'
			}
			return r
		}, filter)
		filter = filter[:min(len(filter), longestName-len(hash))] + hash
	}
	return "f_" + filter + "_" + bgp.ListName(v6, export) + "_" + kind(internal)
}

// rule writes one rule; if it matches it ends the filter.
func (t *text) rule(r *bgp.Rule, internal bool) {
	when, ok := conditions(r, internal)
	if !ok {
		return
	}
	verdict := "reject;"
	if r.Accept {
		var do []string
		for _, op := range r.Operations {
			do = append(do, operation(op))
		}
		verdict = strings.Join(append(do, "accept;"), " ")
	}
	if when == "" {
		t.line(1, "%s", verdict)
		return
	}
	t.line(1, "if %s then { %s }", when, verdict)
}

// conditions are what must hold; ok is false if it never does.
func conditions(r *bgp.Rule, internal bool) (when string, ok bool) {
	if r.SessionType == bgp.External && internal || r.SessionType == bgp.Internal && !internal {
		return "", false
	}
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch lo, hi := r.Lengths(); {
	case r.Operator == bgp.NoPrefix:
	case r.Operator == bgp.Equal:
		add("net = %s", r.Prefix)
	case r.Operator == bgp.NotEqual:
		add("net != %s", r.Prefix)
	case lo > hi: // no prefix has such a length
		if r.Operator == bgp.In {
			return "", false
		}
	case r.Operator == bgp.In:
		add("net ~ [ %s{%d,%d} ]", r.Prefix, lo, hi)
	default:
		add("!(net ~ [ %s{%d,%d} ])", r.Prefix, lo, hi)
	}
	if r.FromRemotePeers {
		add("source = RTS_BGP")
	}
	if r.Interface != "" {
		add("ifname ~ %s", quoted(r.Interface))
	}
	switch c := r.Community; {
	case c == nil:
	case c.Large:
		add("(%d, %d, %d) ~ bgp_large_community", c.Parts[0], c.Parts[1], c.Parts[2])
	default:
		add("(%d, %d) ~ bgp_community", c.Parts[0], c.Parts[1])
	}
	if len(r.ASPrefix) > 0 {
		add("bgp_path ~ [= %s * =]", strings.Trim(fmt.Sprint(r.ASPrefix), "[]"))
	}
	if r.Priority != 0 {
		add("bgp_local_pref = %d", maxPreference-r.Priority)
	}
	return strings.Join(all, " && "), true
}

func operation(op bgp.Operation) string {
	switch {
	case op.AddCommunity != nil:
		return addCommunity(*op.AddCommunity)
	case len(op.Prepend) > 0:
		var out []string
		for _, as := range slices.Backward(op.Prepend) {
			out = append(out, fmt.Sprintf("bgp_path.prepend(%d);", as))
		}
		return strings.Join(out, " ")
	default:
		return fmt.Sprintf("bgp_local_pref = %d;", maxPreference-op.SetPriority)
	}
}

func addCommunity(c bgp.Community) string {
	if c.Large {
		return fmt.Sprintf("bgp_large_community.add((%d, %d, %d));", c.Parts[0], c.Parts[1], c.Parts[2])
	}
	return fmt.Sprintf("bgp_community.add((%d, %d));", c.Parts[0], c.Parts[1])
}
