// Package client brings rendered configurations to their two readers: bird, over its socket, and people, as a file.
package client

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/muslin-net/muslin/api/bgp"
	"github.com/muslin-net/muslin/confd/render"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// toWire is the configuration in bird's terms.
func toWire(c render.Config, generation uint64) *birdv1.Config {
	out := &birdv1.Config{
		Generation: generation, RouterId: c.RouterID.AsSlice(), AsNumber: c.ASNumber, ListenPort: uint32(c.ListenPort),
		ClusterId: c.ClusterID.AsSlice(), LogLevel: c.LogLevel, NormalPriority4: c.NormalPriority4, NormalPriority6: c.NormalPriority6,
		Export:   &birdv1.ExportPolicy{OwnBlocks: toPrefixes(c.OwnBlocks), ServiceRanges: toPrefixes(c.ServiceRanges), Unrouted: toPrefixes(c.Unrouted)},
		Warnings: c.Warnings,
	}
	for _, a := range c.ListenAddresses {
		out.ListenAddresses = append(out.ListenAddresses, a.AsSlice())
	}
	for _, p := range c.Peers {
		out.Peers = append(out.Peers, toPeer(p))
	}
	for _, f := range c.Filters {
		out.Filters = append(out.Filters, &birdv1.Filter{
			Name: f.Name, Import4: toRules(f.Import4), Export4: toRules(f.Export4), Import6: toRules(f.Import6), Export6: toRules(f.Export6),
		})
	}
	for _, p := range c.Originate {
		out.Originate = append(out.Originate, &birdv1.Origination{Prefix: toPrefix(p)})
	}
	for _, p := range c.Pools {
		out.Export.Pools = append(out.Export.Pools, &birdv1.ExportPool{Prefix: toPrefix(p.Prefix), DisableExport: p.DisableExport})
	}
	for _, a := range c.Advertisements {
		m := &birdv1.Origination{Prefix: toPrefix(a.Prefix)}
		for _, c := range a.Communities {
			m.Communities = append(m.Communities, c.String())
		}
		out.Export.Advertisements = append(out.Export.Advertisements, m)
	}
	for _, s := range c.StaticRoutes {
		out.StaticRoutes = append(out.StaticRoutes, &birdv1.StaticRoute{Prefix: toPrefix(s.Prefix), Gateway: s.Gateway.AsSlice()})
	}
	return out
}

func toPeer(p render.Peer) *birdv1.Peer {
	return &birdv1.Peer{
		Name: p.Name, Source: p.Source, Address: p.Address.AsSlice(), Port: uint32(p.Port), AsNumber: p.ASNumber,
		Type: map[render.PeerType]birdv1.PeerType{
			render.Mesh: birdv1.PeerType_PEER_TYPE_MESH, render.Global: birdv1.PeerType_PEER_TYPE_GLOBAL,
			render.NodeSpecific: birdv1.PeerType_PEER_TYPE_NODE, render.LocalWorkload: birdv1.PeerType_PEER_TYPE_LOCAL_WORKLOAD,
		}[p.Type],
		LocalAsNumber: p.LocalASNumber, SourceAddress: p.SourceAddress.AsSlice(), Passive: p.Passive, Password: p.Password,
		TtlSecurity: uint32(p.TTLSecurity), RestartTime: toDuration(p.RestartTime), KeepaliveTime: toDuration(p.KeepaliveTime),
		HoldTime: toDuration(p.HoldTime), LongLivedStaleTime: toDuration(p.LongLivedTime), Bfd: toBFD(p.BFD), WaitingFor: p.WaitingFor,
		ReflectorClient: p.ReflectorClient, AllowedOwnAs: p.AllowedOwnAS, Filters: p.Filters,
		NextHopMode: map[render.NextHopMode]birdv1.NextHopMode{
			render.NextHopAuto: birdv1.NextHopMode_NEXT_HOP_MODE_AUTO, render.NextHopSelf: birdv1.NextHopMode_NEXT_HOP_MODE_SELF,
			render.NextHopKeep: birdv1.NextHopMode_NEXT_HOP_MODE_KEEP,
		}[p.NextHop],
	}
}

func toBFD(b *render.BFD) *birdv1.Bfd {
	if b == nil {
		return nil
	}
	return &birdv1.Bfd{MinTx: durationpb.New(b.MinSend), MinRx: durationpb.New(b.MinReceive), Multiplier: uint32(b.Multiplier), Multihop: b.Multihop}
}

func toRules(list []bgp.Rule) []*birdv1.FilterRule {
	var out []*birdv1.FilterRule
	for _, r := range list {
		m := &birdv1.FilterRule{
			Action: birdv1.FilterAction_FILTER_ACTION_REJECT, MinLength: uint32(r.MinLength), MaxLength: uint32(r.MaxLength),
			Operator: map[bgp.Operator]birdv1.MatchOperator{
				bgp.Equal: birdv1.MatchOperator_MATCH_OPERATOR_EQUAL, bgp.NotEqual: birdv1.MatchOperator_MATCH_OPERATOR_NOT_EQUAL,
				bgp.In: birdv1.MatchOperator_MATCH_OPERATOR_IN, bgp.NotIn: birdv1.MatchOperator_MATCH_OPERATOR_NOT_IN,
			}[r.Operator],
			FromRemotePeers: r.FromRemotePeers, Interface: r.Interface, SessionType: uint32(r.SessionType),
			AsPathPrefix: r.ASPrefix, Priority: r.Priority,
		}
		if r.Accept {
			m.Action = birdv1.FilterAction_FILTER_ACTION_ACCEPT
		}
		if r.Operator != bgp.NoPrefix {
			m.Prefix = toPrefix(r.Prefix)
		}
		if r.Community != nil {
			m.Community = r.Community.String()
		}
		for _, op := range r.Operations {
			m.Operations = append(m.Operations, toOperation(op))
		}
		out = append(out, m)
	}
	return out
}

func toOperation(op bgp.Operation) *birdv1.FilterOperation {
	switch {
	case op.AddCommunity != nil:
		return &birdv1.FilterOperation{Operation: &birdv1.FilterOperation_AddCommunity{AddCommunity: op.AddCommunity.String()}}
	case len(op.Prepend) > 0:
		return &birdv1.FilterOperation{Operation: &birdv1.FilterOperation_PrependAsPath{PrependAsPath: &birdv1.AsPath{AsNumbers: op.Prepend}}}
	default:
		return &birdv1.FilterOperation{Operation: &birdv1.FilterOperation_SetPriority{SetPriority: op.SetPriority}}
	}
}

func toPrefix(p netip.Prefix) *birdv1.Prefix {
	return &birdv1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

func toPrefixes(list []netip.Prefix) []*birdv1.Prefix {
	var out []*birdv1.Prefix
	for _, p := range list {
		out = append(out, toPrefix(p))
	}
	return out
}

// toDuration leaves out what is not given.
func toDuration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
