package render

import (
	"fmt"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api/bgp"
)

// Text is the configuration as YAML for people. Passwords are left out: it only says that there is one.
func (c Config) Text() []byte {
	t := &text{}
	for _, w := range c.Warnings {
		t.line(0, "# warning: %s", w)
	}
	t.set(0, "routerID", c.RouterID.String())
	t.set(0, "asNumber", c.ASNumber)
	t.set(0, "listenPort", c.ListenPort)
	t.list(0, "listenAddresses", words(c.ListenAddresses))
	if c.ClusterID.IsValid() {
		t.set(0, "clusterID", c.ClusterID.String())
	}
	t.set(0, "logLevel", c.LogLevel)
	t.set(0, "normalPriority4", c.NormalPriority4)
	t.set(0, "normalPriority6", c.NormalPriority6)
	if len(c.Peers) > 0 {
		t.line(0, "peers:")
	}
	for _, p := range c.Peers {
		t.peer(p)
	}
	if len(c.Filters) > 0 {
		t.line(0, "filters:")
	}
	for _, f := range c.Filters {
		t.line(0, "- name: %s", f.Name)
		t.rules("import4", f.Import4)
		t.rules("export4", f.Export4)
		t.rules("import6", f.Import6)
		t.rules("export6", f.Export6)
	}
	t.list(0, "originate", words(c.Originate))
	t.list(0, "ownBlocks", words(c.OwnBlocks))
	var pools, advertisements []string
	for _, p := range c.Pools {
		s := p.Prefix.String()
		if p.DisableExport {
			s += " (not exported)"
		}
		if p.Tunnelled {
			s += " (tunnelled)"
		}
		pools = append(pools, s)
	}
	for _, a := range c.Advertisements {
		advertisements = append(advertisements, fmt.Sprintf("%s with %s", a.Prefix, strings.Join(words(a.Communities), " ")))
	}
	t.list(0, "pools", pools)
	t.list(0, "advertisements", advertisements)
	t.list(0, "serviceRanges", words(c.ServiceRanges))
	t.list(0, "unrouted", words(c.Unrouted))
	var static []string
	for _, r := range c.StaticRoutes {
		static = append(static, fmt.Sprintf("%s via %s", r.Prefix, r.Gateway))
	}
	t.list(0, "staticRoutes", static)
	t.list(0, "ignoredInterfaces", c.IgnoredInterfaces)
	return []byte(t.String())
}

type text struct{ strings.Builder }

func (t *text) line(indent int, format string, args ...any) {
	fmt.Fprintf(t, strings.Repeat(" ", indent)+format+"\n", args...)
}

// set writes a field unless it has its zero value.
func (t *text) set(indent int, name string, value any) {
	switch v := value.(type) {
	case string:
		if v != "" {
			t.line(indent, "%s: %s", name, quoted(v))
		}
	case time.Duration:
		if v != 0 {
			t.line(indent, "%s: %s", name, v)
		}
	case bool:
		if v {
			t.line(indent, "%s: true", name)
		}
	default:
		if s := fmt.Sprint(v); s != "0" {
			t.line(indent, "%s: %s", name, s)
		}
	}
}

func (t *text) list(indent int, name string, items []string) {
	if len(items) == 0 {
		return
	}
	t.line(indent, "%s:", name)
	for _, it := range items {
		t.line(indent, "- %s", quoted(it))
	}
}

// quoted is s as YAML: in quotes if it could be read as something else.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./() ", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) >= 0 || strings.TrimSpace(s) != s || strings.HasPrefix(s, "-") {
		return fmt.Sprintf("%q", s)
	}
	return s
}

func words[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, it := range list {
		out[i] = it.String()
	}
	return out
}

func (t *text) peer(p Peer) {
	t.line(0, "- name: %s", p.Name)
	t.set(2, "source", p.Source)
	t.set(2, "waitingFor", p.WaitingFor)
	t.set(2, "address", p.Address.String())
	t.set(2, "port", p.Port)
	t.set(2, "asNumber", p.ASNumber)
	t.set(2, "localASNumber", p.LocalASNumber)
	if p.SourceAddress.IsValid() {
		t.set(2, "sourceAddress", p.SourceAddress.String())
	}
	t.set(2, "passive", p.Passive)
	if p.Password != "" {
		t.set(2, "password", "(redacted)")
	}
	t.set(2, "ttlSecurity", p.TTLSecurity)
	t.set(2, "restartTime", p.RestartTime)
	t.set(2, "holdTime", p.HoldTime)
	t.set(2, "keepaliveTime", p.KeepaliveTime)
	t.set(2, "longLivedTime", p.LongLivedTime)
	if b := p.BFD; b != nil {
		kind := "single hop"
		if b.Multihop {
			kind = "several hops"
		}
		t.set(2, "bfd", fmt.Sprintf("%s, send %s, receive %s, multiplier %d", kind, b.MinSend, b.MinReceive, b.Multiplier))
	}
	t.set(2, "reflectorClient", p.ReflectorClient)
	t.set(2, "nextHop", map[NextHopMode]string{NextHopSelf: "self", NextHopKeep: "keep"}[p.NextHop])
	t.set(2, "allowedOwnAS", p.AllowedOwnAS)
	t.list(2, "filters", p.Filters)
}

func (t *text) rules(list string, rules []bgp.Rule) {
	var out []string
	for _, r := range rules {
		out = append(out, r.String())
	}
	t.list(2, list, out)
}
