package render

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// numbers sets what a BGPPeer says of AS numbers and hops. Sessions with nodes that a selector picks have no AS numbers of
// their own.
func (r *renderer) numbers(p *api.BGPPeer, to remote, out *Peer) {
	where := "BGPPeer(" + p.Name + ").spec."
	local, tolerated := p.Spec.LocalASNumber, p.Spec.NumAllowedLocalASNumbers
	switch {
	case to.node != nil && (local != nil || tolerated != nil):
		r.warn("%slocalASNumber, numAllowedLocalASNumbers: are for peers given by peerIP; the sessions with nodes go without", where)
	case to.node != nil:
	default:
		if local != nil && *local == 0 {
			r.warn("%slocalASNumber: there is no AS 0 (RFC 7607); the peer is shown the node's", where)
		} else if local != nil {
			out.LocalASNumber = uint32(*local)
		}
		if tolerated != nil && *tolerated > 0 {
			out.AllowedOwnAS = min(uint32(*tolerated), 255)
		}
	}
	if p.Spec.TTLSecurity != nil {
		out.TTLSecurity = *p.Spec.TTLSecurity
	}
}

// timers sets how long what may take, and what watches the peer meanwhile.
func (r *renderer) timers(p *api.BGPPeer, out *Peer) {
	where := "BGPPeer(" + p.Name + ").spec."
	out.RestartTime = r.restartTime(where+"maxRestartTime", p.Spec.MaxRestartTime)
	out.HoldTime = r.holdTime(where+"holdTime", p.Spec.HoldTime)
	if d := p.Spec.KeepaliveTime; d != nil {
		hold := cmp.Or(out.HoldTime, defaultHoldTime)
		if out.KeepaliveTime = max(d.Round(time.Second), time.Second); out.KeepaliveTime >= hold {
			out.KeepaliveTime = hold / 3
			r.warn("%skeepaliveTime: %s is no less than the hold time %s; it is taken as %s", where, d.Duration, hold, out.KeepaliveTime)
		}
	}
	if mode := p.Spec.RestartMode; mode != nil && *mode == api.RestartLongLived {
		out.LongLivedTime = api.DefaultLongLivedStaleTime
		if d := p.Spec.LongLivedStaleTime; d != nil {
			out.LongLivedTime = r.within(where+"longLivedStaleTime", d.Round(time.Second), time.Second, (1<<24-1)*time.Second)
		}
	}
	var wanted bool
	if out.BFD, wanted = r.bfd(where, p.Spec.FailureDetectionMode, p.Spec.BFD, out.Address); wanted && out.BFD == nil {
		r.warn("%sfailureDetectionMode: %s is in no subnet of this node, and BFD does not watch it; write BFD to watch over several hops", where, out.Address)
	}
}

// defaultHoldTime is what a speaker offers if it is not told.
const defaultHoldTime = 240 * time.Second

// restartTime is what RFC 4724 has 12 bits for.
func (r *renderer) restartTime(where string, d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return r.within(where, d.Round(time.Second), time.Second, 4095*time.Second)
}

func (r *renderer) holdTime(where string, d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return r.within(where, d.Round(time.Second), 3*time.Second, 65535*time.Second)
}

// within keeps a time in range: a session with another timer is better than none.
func (r *renderer) within(where string, d, lo, hi time.Duration) time.Duration {
	if kept := min(max(d, lo), hi); kept != d {
		r.warn("%s: %s is out of range; it is taken as %s", where, d, kept)
		return kept
	}
	return d
}

// bfd is what watches a peer, if the mode wants anything to. Parameters are the peering's own, or else the cluster's.
func (r *renderer) bfd(where string, mode *api.FailureDetectionMode, own *api.BFD, peer netip.Addr) (b *BFD, wanted bool) {
	if mode == nil || *mode == api.DetectByTimers {
		return nil, false
	}
	near := r.own.onLink(peer)
	if !near && *mode == api.DetectByBFDOnOneLink {
		return nil, true
	}
	b = &BFD{MinSend: api.DefaultBFDInterval, MinReceive: api.DefaultBFDInterval, Multiplier: api.DefaultBFDMultiplier, Multihop: !near}
	for _, from := range []struct {
		where string
		spec  *api.BFD
	}{{"BGPConfiguration(default).spec.bfd", r.config.BFD}, {where + "bfd", own}} {
		if from.spec == nil {
			continue
		}
		if d := from.spec.MinimumSendInterval; d != nil {
			b.MinSend = r.within(from.where+".minimumSendInterval", d.Duration, 10*time.Millisecond, time.Minute)
		}
		if d := from.spec.MinimumReceiveInterval; d != nil {
			b.MinReceive = r.within(from.where+".minimumReceiveInterval", d.Duration, 10*time.Millisecond, time.Minute)
		}
		if m := from.spec.Multiplier; m != nil {
			b.Multiplier = uint8(min(max(*m, 1), 255))
		}
	}
	return b, true
}

// gateway adds the route to a peer that is reached by one.
func (r *renderer) gateway(p *api.BGPPeer, peer netip.Addr) {
	if p.Spec.ReachableBy == "" || p.Spec.PeerIP == "" {
		return
	}
	where := "BGPPeer(" + p.Name + ").spec.reachableBy"
	via, err := netip.ParseAddr(p.Spec.ReachableBy)
	if err != nil || via.Is4() != peer.Is4() || via.Zone() != "" || via == peer {
		r.warn("%s: %q is not the address of another host of the peer's family; there is no route", where, p.Spec.ReachableBy)
		return
	}
	route := StaticRoute{Prefix: netip.PrefixFrom(peer, peer.BitLen()), Gateway: via}
	if i := slices.IndexFunc(r.out.StaticRoutes, func(o StaticRoute) bool { return o.Prefix == route.Prefix }); i >= 0 {
		if other := r.out.StaticRoutes[i].Gateway; other != via {
			r.warn("%s: %s is reached by %s already, as another BGPPeer wants", where, peer, other)
		}
		return
	}
	r.out.StaticRoutes = append(r.out.StaticRoutes, route)
}

// longestPassword is what TCP MD5 takes (TCP_MD5SIG_MAXKEYLEN of linux/tcp.h).
const longestPassword = 80

// password finds a secret's value. What a session must wait for, rather than come up without a password, is the second
// result.
func (r *renderer) password(where string, p *api.BGPPassword) (value, waitingFor string) {
	if p == nil || p.SecretKeyRef == nil {
		return "", ""
	}
	ref := p.SecretKeyRef
	what := fmt.Sprintf("Secret %s, key %s", ref.Name, ref.Key)
	suffix := "/" + ref.Name + "/" + ref.Key
	i := slices.IndexFunc(r.secrets, func(s view.Secret) bool { return strings.HasSuffix("/"+s.Name, suffix) })
	switch {
	case i < 0 && ref.Optional != nil && *ref.Optional:
		r.warn("%s: there is no %s, which is optional; there is no password", where, what)
		return "", ""
	case i < 0:
		r.warn("%s: there is no %s; the session waits for it", where, what)
		return "", what
	case len(r.secrets[i].Value) == 0 || len(r.secrets[i].Value) > longestPassword:
		what = fmt.Sprintf("a password of 1 to %d bytes in %s", longestPassword, what)
		r.warn("%s: the session waits for %s", where, what)
		return "", what
	}
	return string(r.secrets[i].Value), ""
}
