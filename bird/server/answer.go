package server

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

func toPrefix(p netip.Prefix) *birdv1.Prefix {
	return &birdv1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

// toTime leaves out what never happened.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// toPath names the peer as names does.
func toPath(p speaker.Path, names map[netip.Addr]string) *birdv1.Path {
	out := &birdv1.Path{
		NextHop: p.NextHop.AsSlice(), Peer: names[p.Peer], PeerAddress: p.Peer.AsSlice(), LocalPreference: p.Preference,
		Metric: policy.MetricOf(p.Preference), AsPath: p.ASPath, Stale: p.Stale, Med: p.MED, Origin: p.Origin,
	}
	for _, c := range p.Communities {
		out.Communities = append(out.Communities, c.String())
	}
	return out
}

func toState(s speaker.State) birdv1.SessionState {
	return map[speaker.State]birdv1.SessionState{
		speaker.Idle: birdv1.SessionState_SESSION_STATE_IDLE, speaker.Connect: birdv1.SessionState_SESSION_STATE_CONNECT,
		speaker.Active: birdv1.SessionState_SESSION_STATE_ACTIVE, speaker.OpenSent: birdv1.SessionState_SESSION_STATE_OPEN_SENT,
		speaker.OpenConfirm: birdv1.SessionState_SESSION_STATE_OPEN_CONFIRM,
		speaker.Established: birdv1.SessionState_SESSION_STATE_ESTABLISHED, speaker.Down: birdv1.SessionState_SESSION_STATE_DOWN,
	}[s]
}

func toPeer(p speaker.PeerState) *birdv1.PeerState {
	out := &birdv1.PeerState{
		Name: p.Name, Source: p.Source, Address: p.Peer.Address.AsSlice(), AsNumber: p.ASNumber, State: toState(p.State),
		Type: map[policy.PeerType]birdv1.PeerType{
			policy.PeerMesh: birdv1.PeerType_PEER_TYPE_MESH, policy.PeerGlobal: birdv1.PeerType_PEER_TYPE_GLOBAL,
			policy.PeerNode: birdv1.PeerType_PEER_TYPE_NODE, policy.PeerLocalWorkload: birdv1.PeerType_PEER_TYPE_LOCAL_WORKLOAD,
		}[p.Type],
		Since: toTime(p.Since), LastError: p.LastError, Passive: p.Passive, Received: p.Received, Accepted: p.Accepted,
		Advertised: p.Advertised, Restarting: p.Restarting, Bfd: p.Path, ShadowedBy: p.ShadowedBy, WaitingFor: p.WaitingFor, LocalAddress: p.LocalAddress.AsSlice(),
		Flaps: p.Flaps, LocalAsNumber: p.LocalAS, Diagnosis: p.Diagnosis, Port: uint32(p.Port),
	}
	for _, t := range p.History {
		out.History = append(out.History, &birdv1.Transition{At: toTime(t.At), State: toState(t.State), Reason: t.Reason})
	}
	return out
}
