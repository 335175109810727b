package bird2

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/confd/render"
)

// Times that BIRD is told where the configuration leaves them out.
const (
	holdTime    = 240 * time.Second
	restartTime = 120 * time.Second
	deferral    = 30 * time.Second // how long a BIRD that was started anew waits for its peers before it touches the kernel
)

// rank orders peers that want one address: explicit beats mesh, global beats node.
func rank(t render.PeerType) int {
	if t == render.Mesh {
		return int(^uint(0) >> 1)
	}
	return int(t)
}

// Resolve picks one peer for each address, as our own speaker does: of two protocols on one address BIRD would bring up one
// or the other. The second result names, for each peer without a session, the one that has its address.
func Resolve(peers []render.Peer) (active []render.Peer, shadowed map[string]string) {
	order := slices.Clone(peers)
	slices.SortStableFunc(order, func(a, b render.Peer) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(rank(a.Type), rank(b.Type)),
			strings.Compare(a.Source, b.Source), strings.Compare(a.Name, b.Name))
	})
	shadowed = map[string]string{}
	for _, p := range order {
		if n := len(active); n > 0 && active[n-1].Address == p.Address {
			shadowed[p.Name] = active[n-1].Name
			continue
		}
		active = append(active, p)
	}
	return active, shadowed
}

// sessions writes the peers, and why some have no session.
func (t *text) sessions(active []render.Peer, shadowed map[string]string) {
	t.line(0, "")
	t.line(0, "template bgp session {")
	t.line(1, "connect delay time 2; connect retry time 5; error wait time 5, 30;")
	t.line(1, "graceful restart on;")
	t.line(0, "}")
	for _, p := range t.c.Peers {
		if by, ok := shadowed[p.Name]; ok {
			t.line(0, "# %s has no session: the address is %s's.", p.Name, by)
		}
	}
	for _, p := range active {
		t.session(p)
	}
}

// writable tells whether a password has a literal: BIRD's strings end at the first quote.
func writable(password string) bool {
	return !strings.ContainsFunc(password, func(r rune) bool { return r == '"' || r < ' ' || r == 0x7f })
}

func (t *text) session(p render.Peer) {
	t.line(0, "protocol bgp '%s' from session {", p.Name)
	t.line(1, "description %s;", quoted(p.Source))
	switch {
	case p.WaitingFor != "":
		t.line(1, "disabled; # waiting for %s", harmless(p.WaitingFor))
	case !writable(p.Password):
		t.line(1, "disabled; # BIRD cannot read a password with quotes or control characters")
	case p.Password != "":
		t.line(1, `password "%s";`, p.Password)
	}
	local, bound := p.SourceAddress, false
	for _, a := range t.c.ListenAddresses {
		if a.Is4() == p.Address.Is4() { // BIRD listens where a session's own address is
			local, bound = a, true
		}
	}
	own := cmp.Or(p.LocalASNumber, t.c.ASNumber)
	if local.IsValid() {
		t.line(1, "local %s port %d as %d;", local, t.c.ListenPort, own)
	} else {
		t.line(1, "local port %d as %d;", t.c.ListenPort, own)
	}
	if bound {
		t.line(1, "strict bind;")
	}
	t.line(1, "neighbor %s port %d as %d;", p.Address, p.Port, p.ASNumber)
	t.hops(p)
	if p.Passive {
		t.line(1, "passive;")
	}
	t.timers(p)
	if p.AllowedOwnAS > 0 {
		t.line(1, "allow local as %d;", p.AllowedOwnAS)
	}
	if p.ReflectorClient {
		t.line(1, "rr client; rr cluster id %s;", t.c.ClusterID)
	}
	t.channel(p)
	t.line(0, "}")
}

// hops says how far the peer is. BIRD runs BFD over one hop for direct sessions only.
func (t *text) hops(p render.Peer) {
	switch near := p.BFD != nil && !p.BFD.Multihop; {
	case near && p.TTLSecurity <= 1:
		t.line(1, "direct;")
	case p.TTLSecurity > 0:
		t.line(1, "multihop %d;", p.TTLSecurity)
	default:
		t.line(1, "multihop;")
	}
	if p.TTLSecurity > 0 {
		t.line(1, "ttl security;")
	}
	if b := p.BFD; b != nil {
		t.line(1, "bfd { min tx interval %d us; min rx interval %d us; multiplier %d; };", b.MinSend.Microseconds(), b.MinReceive.Microseconds(), b.Multiplier)
	}
}

func (t *text) timers(p render.Peer) {
	t.line(1, "hold time %d;", seconds(cmp.Or(p.HoldTime, holdTime)))
	if p.KeepaliveTime != 0 {
		t.line(1, "keepalive time %d;", seconds(p.KeepaliveTime))
	}
	t.line(1, "graceful restart time %d;", seconds(cmp.Or(p.RestartTime, restartTime)))
	if p.LongLivedTime != 0 {
		t.line(1, "long lived graceful restart; long lived stale time %d;", seconds(p.LongLivedTime))
	}
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// channel writes the routes that a session carries: those of its address's family.
func (t *text) channel(p render.Peer) {
	v6, internal := p.Address.Is6(), p.Internal(t.c)
	f := family(v6)
	var in, out []string
	for _, flt := range t.attached(p) {
		if len(flt.Rules(v6, false)) > 0 {
			in = append(in, "'"+functionName(flt.Name, v6, false, internal)+"'();")
		}
		if len(flt.Rules(v6, true)) > 0 {
			out = append(out, "'"+functionName(flt.Name, v6, true, internal)+"'();")
		}
	}
	t.line(1, "ipv%s {", f)
	t.line(2, "gateway recursive; add paths; import keep filtered;") // operators ask what was rejected
	switch p.NextHop {
	case render.NextHopSelf:
		t.line(2, "next hop self;")
	case render.NextHopKeep:
		t.line(2, "next hop keep;")
	}
	t.line(2, "import filter {")
	t.line(3, "if (65535, 0) ~ bgp_community then bgp_local_pref = 1; # GRACEFUL_SHUTDOWN (RFC 8326)")
	if addresses := t.own(v6); addresses != "" { // an echo of what this node announces
		t.line(3, "if bgp_next_hop ~ %s then reject;", addresses)
	}
	for _, call := range in {
		t.line(3, "%s", call)
	}
	if p.Type == render.LocalWorkload {
		t.line(3, "reject; # what a pod announces is taken only where a BGPFilter accepts it")
	} else {
		t.line(3, "if bgp_local_pref > %d then preference = %d;", t.normal(v6), elevated)
		t.line(3, "accept;")
	}
	t.line(2, "};")
	t.line(2, "export filter {")
	switch t.drain {
	case Draining:
		t.line(3, "bgp_community.add((65535, 0)); # GRACEFUL_SHUTDOWN (RFC 8326): the node is draining")
	case Drained:
		t.line(3, "reject; # the node is drained")
	}
	if p.SourceAddress.IsValid() && slices.ContainsFunc(t.c.Peers, func(o render.Peer) bool { return o.Type == render.LocalWorkload }) {
		t.line(3, `if source = RTS_BGP && proto ~ "Local_Workload_*" then bgp_next_hop = %s;`, p.SourceAddress)
	}
	for _, call := range append(append([]string{"preference" + f + "();"}, out...), "export"+f+"_"+kind(internal)+"();") {
		t.line(3, "%s", call)
	}
	t.line(3, "reject;")
	t.line(2, "};")
	t.line(1, "};")
}

// own is a set of the addresses by which peers know this node.
func (t *text) own(v6 bool) string {
	var out []string
	seen := map[netip.Addr]bool{}
	for _, a := range append(slices.Clone(t.c.ListenAddresses), sources(t.c.Peers)...) {
		if a.Is6() == v6 && !seen[a] {
			seen[a] = true
			out = append(out, a.String())
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "[ " + strings.Join(out, ", ") + " ]"
}

func sources(peers []render.Peer) []netip.Addr {
	var out []netip.Addr
	for _, p := range peers {
		if p.SourceAddress.IsValid() {
			out = append(out, p.SourceAddress)
		}
	}
	return out
}
