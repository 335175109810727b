package gobgp

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// connectRetry and idleAfterReset are in seconds; gobgp's own values are 120 and 30. After a first attempt within 1 to 2 s,
// which gobgp has fixed, it tries to connect every connectRetry to twice connectRetry, and waits for an answer one second
// less than connectRetry: with 3, a SYN that was lost is sent again in time. idleAfterReset cannot be less (see cutRest).
const (
	connectRetry   = 3
	idleAfterReset = 1
)

// everyPath is the most that gobgp can be told to send. It counts badly: what is beyond it may never be taken back after the
// session has been lost once.
const everyPath = 255

func family(v6 bool) *api.Family {
	if v6 {
		return &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	}
	return &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}

func seconds(d time.Duration) uint64 { return uint64(math.Ceil(d.Seconds())) }

// toPeer is a session with one family, that of its address. Graceful restart is always on.
func toPeer(n speaker.Neighbor) *api.Peer {
	p := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: n.Address.String(), PeerAsn: n.ASNumber, LocalAsn: n.LocalAS,
			AuthPassword: n.Password, AllowOwnAsn: n.AllowedOwnAS,
			// A reflector's role is not among what gobgp compares, nor the TTL; a description is.
			Description: description(n),
		},
		Transport: &api.Transport{PassiveMode: n.Passive, RemotePort: uint32(n.Port)},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: connectRetry, IdleHoldTimeAfterReset: idleAfterReset,
			HoldTime: seconds(n.HoldTime), KeepaliveInterval: seconds(n.KeepaliveTime),
		}},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(seconds(n.RestartTime)), DeferralTime: uint32(seconds(n.Deferral)),
			NotificationEnabled: true, LonglivedEnabled: n.LongLivedStaleTime > 0, LocalRestarting: n.Restarting,
		},
		AfiSafis: []*api.AfiSafi{{
			Config:            &api.AfiSafiConfig{Family: family(n.Address.Is6()), Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
			AddPaths:          &api.AddPaths{Config: &api.AddPathsConfig{Receive: true, SendMax: sendMax(n)}},
			LongLivedGracefulRestart: &api.LongLivedGracefulRestart{Config: &api.LongLivedGracefulRestartConfig{
				Enabled: n.LongLivedStaleTime > 0, RestartTime: uint32(seconds(n.LongLivedStaleTime)),
			}},
		}},
	}
	if n.SourceAddress.IsValid() {
		p.Transport.LocalAddress = n.SourceAddress.String()
	}
	switch {
	case n.TTLSecurity > 0:
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 256 - uint32(n.TTLSecurity)}
	case !n.Internal:
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: 255}
	}
	if n.Client {
		p.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: n.ClusterID.String()}
	}
	return p
}

func sendMax(n speaker.Neighbor) uint32 {
	if n.AllPaths {
		return everyPath
	}
	return 0
}

func description(n speaker.Neighbor) string {
	var out []string
	if n.Client {
		out = append(out, fmt.Sprintf("client of reflector %s", n.ClusterID))
	}
	if n.TTLSecurity > 0 {
		out = append(out, fmt.Sprintf("at most %d hops away", n.TTLSecurity))
	}
	return strings.Join(out, ", ")
}

func fromPeer(p *api.Peer) speaker.PeerCounters {
	out := speaker.PeerCounters{Restarting: p.GetGracefulRestart().GetPeerRestarting()}
	out.Address = address(p.GetState().GetNeighborAddress())
	if p.GetState().GetSessionState() == api.PeerState_ESTABLISHED {
		out.LocalAddress = address(p.GetTransport().GetLocalAddress())
	}
	for _, f := range p.GetAfiSafis() {
		if f.GetAddPaths().GetConfig().GetSendMax() > 0 && out.LocalAddress.IsValid() {
			out.AllPaths = takesPaths(p.GetState().GetRemoteCap(), f.GetConfig().GetFamily())
		}
		out.Received += f.GetState().GetReceived()
		out.Accepted += f.GetState().GetAccepted()
		out.Advertised += f.GetState().GetAdvertised()
	}
	return out
}

// takesPaths tells whether a peer's capabilities say that it takes several paths to a prefix of the family.
func takesPaths(capabilities []*anypb.Any, family *api.Family) bool {
	for _, c := range capabilities {
		var paths api.AddPathCapability
		if !c.MessageIs(&paths) || c.UnmarshalTo(&paths) != nil {
			continue
		}
		for _, t := range paths.Tuples {
			if proto.Equal(t.Family, family) && (t.Mode == api.AddPathCapabilityTuple_RECEIVE || t.Mode == api.AddPathCapabilityTuple_BOTH) {
				return true
			}
		}
	}
	return false
}

// address reads an address that gobgp printed; it prints "<nil>" for none, and a zone.
func address(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// toPath is an own route: its next hop is unspecified, which gobgp makes the local address of each session.
func toPath(a speaker.Announcement) (*api.Path, error) {
	v6 := a.Prefix.Addr().Is6()
	nlri, err := anypb.New(&api.IPAddressPrefix{Prefix: a.Prefix.Addr().String(), PrefixLen: uint32(a.Prefix.Bits())})
	if err != nil {
		return nil, err
	}
	attrs := []proto.Message{&api.OriginAttribute{Origin: 0}, &api.LocalPrefAttribute{LocalPref: a.Preference}}
	if v6 {
		attrs = append(attrs, &api.MpReachNLRIAttribute{Family: family(true), NextHops: []string{"::"}, Nlris: []*anypb.Any{nlri}})
	} else {
		attrs = append(attrs, &api.NextHopAttribute{NextHop: "0.0.0.0"})
	}
	standard, large := &api.CommunitiesAttribute{}, &api.LargeCommunitiesAttribute{}
	for _, c := range a.Communities {
		if c.Large {
			large.Communities = append(large.Communities, &api.LargeCommunity{GlobalAdmin: c.Parts[0], LocalData1: c.Parts[1], LocalData2: c.Parts[2]})
		} else {
			standard.Communities = append(standard.Communities, c.Parts[0]<<16|c.Parts[1])
		}
	}
	if len(standard.Communities) > 0 {
		attrs = append(attrs, standard)
	}
	if len(large.Communities) > 0 {
		attrs = append(attrs, large)
	}
	p := &api.Path{Family: family(v6), Nlri: nlri}
	for _, m := range attrs {
		attr, err := anypb.New(m)
		if err != nil {
			return nil, err
		}
		p.Pattrs = append(p.Pattrs, attr)
	}
	return p, nil
}

// fromPath reads a path of gobgp's, without our tags.
func fromPath(p *api.Path) (speaker.Path, error) {
	prefix, err := prefixOf(p)
	if err != nil {
		return speaker.Path{}, err
	}
	out := speaker.Path{Prefix: prefix, Peer: address(p.NeighborIp), Stale: p.Stale, Best: p.Best, Preference: 100, Origin: "incomplete"}
	for _, attr := range p.Pattrs {
		if err := readAttribute(&out, attr); err != nil {
			return speaker.Path{}, fmt.Errorf("path to %s: %w", prefix, err)
		}
	}
	return out, nil
}

func prefixOf(p *api.Path) (netip.Prefix, error) {
	var nlri api.IPAddressPrefix
	if err := p.GetNlri().UnmarshalTo(&nlri); err != nil {
		return netip.Prefix{}, fmt.Errorf("path that is no IP prefix: %w", err)
	}
	a, err := netip.ParseAddr(nlri.Prefix)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(int(nlri.PrefixLen))
}

// readAttribute adds one attribute to the path. Attributes that we have no use for are skipped.
func readAttribute(out *speaker.Path, attr *anypb.Any) error {
	_, kind, _ := strings.Cut(attr.TypeUrl, "apipb.")
	switch kind {
	case "OriginAttribute":
		return read(attr, func(m *api.OriginAttribute) {
			out.Origin = [...]string{"igp", "egp", "incomplete"}[min(m.Origin, 2)]
		})
	case "NextHopAttribute":
		return read(attr, func(m *api.NextHopAttribute) { out.NextHop = address(m.NextHop) })
	case "MpReachNLRIAttribute":
		return read(attr, func(m *api.MpReachNLRIAttribute) {
			if len(m.NextHops) > 0 {
				out.NextHop = address(m.NextHops[0])
			}
		})
	case "AsPathAttribute":
		return read(attr, func(m *api.AsPathAttribute) {
			for _, s := range m.Segments {
				out.ASPath = append(out.ASPath, s.Numbers...)
			}
		})
	case "LocalPrefAttribute":
		return read(attr, func(m *api.LocalPrefAttribute) { out.Preference = m.LocalPref })
	case "MultiExitDiscAttribute":
		return read(attr, func(m *api.MultiExitDiscAttribute) { out.MED = m.Med })
	case "OriginatorIdAttribute":
		return read(attr, func(m *api.OriginatorIdAttribute) { out.Originator = address(m.Id) })
	case "CommunitiesAttribute":
		return read(attr, func(m *api.CommunitiesAttribute) {
			for _, c := range m.Communities {
				out.Communities = append(out.Communities, policy.Community{Parts: [3]uint32{c >> 16, c & 0xffff}})
			}
		})
	case "LargeCommunitiesAttribute":
		return read(attr, func(m *api.LargeCommunitiesAttribute) {
			for _, c := range m.Communities {
				l := policy.Community{Large: true, Parts: [3]uint32{c.GlobalAdmin, c.LocalData1, c.LocalData2}}
				if !policy.IsTag(l) {
					out.Communities = append(out.Communities, l)
				}
			}
		})
	}
	return nil
}

func read[M any, P interface {
	*M
	proto.Message
}](attr *anypb.Any, use func(P)) error {
	m := P(new(M))
	if err := attr.UnmarshalTo(m); err != nil {
		return err
	}
	use(m)
	return nil
}
