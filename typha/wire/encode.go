package wire

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// partMembers is how many members one item carries at most. A member takes at most 32 bytes, so a part stays below
// 512 KiB and always fits into a chunk.
const partMembers = 16 << 10

// Encode returns the serialised typha.v1 Items that carry an item: one, or several for a very large set or change of a
// set. An item whose resource has no JSON, or of a kind that is not view's, is an error.
func Encode(it view.Item, version view.Version) (parts [][]byte, err error) {
	messages, err := messages(it, version)
	for _, m := range messages {
		b, bad := proto.Marshal(m)
		if bad != nil {
			return nil, fmt.Errorf("item %q: %w", m.GetId(), bad)
		}
		parts = append(parts, b)
	}
	return parts, err
}

// Frame is Encode with the items packed into one slice, each after its length, so that it can be kept as one. Items
// takes it apart.
func Frame(it view.Item, version view.Version) ([]byte, error) {
	messages, err := messages(it, version)
	if err != nil {
		return nil, err
	}
	var frame []byte
	for _, m := range messages {
		size := proto.Size(m)
		frame = binary.AppendUvarint(slices.Grow(frame, size+binary.MaxVarintLen32), uint64(size))
		if frame, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(frame, m); err != nil {
			return nil, fmt.Errorf("item %q: %w", m.GetId(), err)
		}
	}
	return frame, nil
}

// messages are those that carry an item.
func messages(it view.Item, version view.Version) ([]*typhav1.Item, error) {
	switch it := it.(type) {
	case view.IPSet:
		if len(it.Members) > partMembers {
			return parts(it, version)
		}
	case view.IPSetDelta:
		if len(it.Added)+len(it.Removed) > partMembers {
			return steps(it)
		}
	}
	m, err := Message(it, version)
	if err != nil {
		return nil, err
	}
	return []*typhav1.Item{m}, nil
}

// Items yields the serialised items of a frame that Frame made. They share its memory.
func Items(frame []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(frame) > 0 {
			size, n := binary.Uvarint(frame)
			if n <= 0 || size > uint64(len(frame)-n) {
				panic("wire: a frame that Frame did not make")
			}
			end := n + int(size)
			if !yield(frame[n:end:end]) {
				return
			}
			frame = frame[end:]
		}
	}
}

func parts(set view.IPSet, version view.Version) (list []*typhav1.Item, err error) {
	for at := 0; at < len(set.Members); at += partMembers {
		end := min(at+partMembers, len(set.Members))
		part := view.IPSet{ID: set.ID, Type: set.Type, Members: set.Members[at:end]}
		m, err := Message(part, version)
		if err != nil {
			return nil, err
		}
		m.GetIpSet().More = end < len(set.Members)
		list = append(list, m)
	}
	return list, nil
}

// steps carry a change as several, each from the version that the one before leads to.
func steps(d view.IPSetDelta) (list []*typhav1.Item, err error) {
	for at := d.From; len(d.Added)+len(d.Removed) > 0; {
		added := d.Added[:min(partMembers, len(d.Added))]
		removed := d.Removed[:min(partMembers-len(added), len(d.Removed))]
		d.Added, d.Removed = d.Added[len(added):], d.Removed[len(removed):]
		step := view.IPSetDelta{ID: d.ID, From: at, Added: added, Removed: removed}
		for _, m := range added {
			at = at.AddMember(m)
		}
		for _, m := range removed {
			at = at.RemoveMember(m)
		}
		step.To = at
		m, err := Message(step, at)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// Message returns the message of an item, sets of any size in one.
func Message(it view.Item, version view.Version) (*typhav1.Item, error) {
	m := &typhav1.Item{Id: it.Key().ID, Version: version[:]}
	switch it := it.(type) {
	case view.Resource:
		document, err := api.Encode(it.Object)
		if err != nil {
			return nil, fmt.Errorf("resource %s: %w", m.Id, err)
		}
		m.Body = &typhav1.Item_Resource{Resource: &typhav1.Resource{Kind: api.KeyOf(it.Object).Kind, Json: document}}
	case view.Secret:
		m.Body = &typhav1.Item_Secret{Secret: &typhav1.Secret{Name: it.Name, Value: it.Value}}
	case view.Node:
		m.Body = &typhav1.Item_Node{Node: encodeNode(it)}
	case view.IPSet:
		m.Body = &typhav1.Item_IpSet{IpSet: &typhav1.IpSet{Type: typhav1.SetType(it.Type), Members: encodeMembers(it.Members)}}
	case view.IPSetDelta:
		m.Body = &typhav1.Item_IpSetDelta{IpSetDelta: &typhav1.IpSetDelta{
			From: it.From[:], To: it.To[:], Added: encodeMembers(it.Added), Removed: encodeMembers(it.Removed),
		}}
	case view.Policy:
		m.Body = &typhav1.Item_Policy{Policy: encodePolicy(it)}
	case view.PolicyList:
		m.Body = &typhav1.Item_PolicyList{PolicyList: encodePolicyList(it)}
	case view.WorkloadEndpoint:
		m.Body = &typhav1.Item_WorkloadEndpoint{WorkloadEndpoint: encodeWorkload(it)}
	case view.HostEndpoint:
		m.Body = &typhav1.Item_HostEndpoint{HostEndpoint: &typhav1.HostEndpoint{
			Interface: it.Interface, ExpectedIps: EncodeAddrs(it.ExpectedIPs),
			Normal: it.Normal, Untracked: it.Untracked, PreDnat: it.PreDNAT, Forward: it.Forward, Incomplete: it.Incomplete,
		}}
	case view.Route:
		m.Body = &typhav1.Item_Route{Route: encodeRoute(it)}
	case view.Origination:
		m.Body = &typhav1.Item_Origination{Origination: &typhav1.Origination{Prefix: EncodePrefix(it.Prefix), Host: it.Host}}
	default:
		return nil, fmt.Errorf("item %s has type %T, which has no message", m.Id, it)
	}
	return m, nil
}

func encodeNode(n view.Node) *typhav1.Node {
	return &typhav1.Node{
		Name: n.Name, Ipv4: EncodePrefix(n.IPv4), Ipv6: EncodePrefix(n.IPv6),
		IpipAddress: n.IPIPAddr.AsSlice(), VxlanAddress4: n.VXLANAddr4.AsSlice(), VxlanAddress6: n.VXLANAddr6.AsSlice(),
		VxlanMac4: EncodeMAC(n.VXLANMAC4), VxlanMac6: EncodeMAC(n.VXLANMAC6), PodCidrs: EncodePrefixes(n.PodCIDRs),
	}
}

func encodeMembers(members []view.Member) []*typhav1.Member {
	// A set has thousands of members: three allocations for all of them instead of three for each.
	list := make([]*typhav1.Member, len(members))
	messages := make([]typhav1.Member, len(members))
	prefixes := make([]typhav1.Prefix, len(members))
	for i, m := range members {
		p, out := &prefixes[i], &messages[i]
		p.Address, p.Length = m.Prefix.Addr().AsSlice(), uint32(max(m.Prefix.Bits(), 0))
		out.Prefix, out.Protocol, out.Port = p, uint32(m.Protocol), uint32(m.Port)
		list[i] = out
	}
	return list
}

func encodePolicy(p view.Policy) *typhav1.Policy {
	return &typhav1.Policy{
		Tier: p.Tier, Ingress: encodeRules(p.Ingress), Egress: encodeRules(p.Egress),
		DoNotTrack: p.DoNotTrack, PreDnat: p.PreDNAT, ApplyOnForward: p.ApplyOnForward, Staged: p.Staged,
	}
}

func encodeRules(rules []view.Rule) []*typhav1.Rule {
	var out []*typhav1.Rule
	for _, r := range rules {
		out = append(out, &typhav1.Rule{
			Action: typhav1.Action(r.Action), IpVersion: uint32(r.IPVersion),
			Protocol: uint32(r.Protocol), NotProtocol: uint32(r.NotProtocol),
			Icmp: encodeICMP(r.ICMP), NotIcmp: encodeICMP(r.NotICMP),
			Source: encodeMatch(r.Source), Destination: encodeMatch(r.Destination), Annotations: r.Annotations, Http: encodeHTTP(r.HTTP),
		})
	}
	return out
}

func encodeHTTP(h *view.HTTP) *typhav1.HttpMatch {
	if h == nil {
		return nil
	}
	m := &typhav1.HttpMatch{Methods: h.Methods}
	for _, p := range h.Paths {
		if p.Exact != "" {
			m.Paths = append(m.Paths, &typhav1.HttpPath{Path: &typhav1.HttpPath_Exact{Exact: p.Exact}})
			continue
		}
		m.Paths = append(m.Paths, &typhav1.HttpPath{Path: &typhav1.HttpPath_Prefix{Prefix: p.Prefix}})
	}
	return m
}

func encodeICMP(i *view.ICMP) *typhav1.Icmp {
	if i == nil {
		return nil
	}
	m := &typhav1.Icmp{Type: uint32(i.Type)}
	if i.Code != nil {
		m.Code = new(uint32(*i.Code))
	}
	return m
}

func encodeMatch(m view.Match) *typhav1.Match {
	return &typhav1.Match{
		Nets: EncodePrefixes(m.Nets), NotNets: EncodePrefixes(m.NotNets), Sets: m.Sets, NotSets: m.NotSets,
		IpPortSets: m.IPPortSets, Ports: encodePorts(m.Ports), NamedPorts: m.NamedPorts,
		NotPorts: encodePorts(m.NotPorts), NotNamedPorts: m.NotNamedPorts,
	}
}

func encodePorts(ports []view.PortRange) []*typhav1.PortRange {
	var out []*typhav1.PortRange
	for _, p := range ports {
		out = append(out, &typhav1.PortRange{First: uint32(p.First), Last: uint32(p.Last)})
	}
	return out
}

func encodePolicyList(l view.PolicyList) *typhav1.PolicyList {
	m := &typhav1.PolicyList{Profiles: l.Profiles}
	for _, t := range l.Tiers {
		m.Tiers = append(m.Tiers, &typhav1.TierPolicies{
			Name: t.Name, DefaultAction: typhav1.Action(t.DefaultAction), Ingress: t.Ingress, Egress: t.Egress,
		})
	}
	return m
}

func encodeWorkload(e view.WorkloadEndpoint) *typhav1.WorkloadEndpoint {
	m := &typhav1.WorkloadEndpoint{
		Orchestrator: e.ID.Orchestrator, Workload: e.ID.Workload, Endpoint: e.ID.Endpoint,
		Uid: e.UID, ContainerId: e.ContainerID, Interface: e.Interface, Mac: EncodeMAC(e.MAC),
		Addresses: EncodeAddrs(e.Addresses), PolicyList: e.PolicyList, Incomplete: e.Incomplete,
		AllowSpoofedPrefixes: EncodePrefixes(e.AllowSpoofedPrefixes),
	}
	if p := e.Peering; p != nil {
		m.Peering = &typhav1.Peering{BgpPeers: p.BGPPeers, Port: uint32(p.Port), Gateways: EncodeAddrs(p.Gateways)}
	}
	for _, n := range e.NATs {
		m.Nats = append(m.Nats, &typhav1.Nat{External: n.External.AsSlice(), Internal: n.Internal.AsSlice()})
	}
	m.Qos = EncodeQoS(e.QoS)
	if r := e.Request; r != nil {
		m.Request = &typhav1.AddressRequest{
			Pools4: r.Pools4, Pools6: r.Pools6, Fixed: EncodeAddrs(r.Fixed), Mac: EncodeMAC(r.MAC),
			Unmanaged: EncodeAddrs(r.Unmanaged), Floating: EncodeAddrs(r.Floating), Wrong: r.Wrong,
		}
		for _, family := range r.Families {
			m.Request.Families = append(m.Request.Families, uint32(family))
		}
	}
	return m
}

// EncodeQoS writes limits; nil stays nil.
func EncodeQoS(q *view.QoS) *typhav1.Qos {
	if q == nil {
		return nil
	}
	return &typhav1.Qos{
		IngressBandwidth: q.IngressBandwidth, IngressBurst: q.IngressBurst, IngressPeakrate: q.IngressPeakrate, IngressMinburst: q.IngressMinburst,
		EgressBandwidth: q.EgressBandwidth, EgressBurst: q.EgressBurst, EgressPeakrate: q.EgressPeakrate, EgressMinburst: q.EgressMinburst,
		IngressPacketRate: q.IngressPacketRate, IngressPacketBurst: q.IngressPacketBurst,
		EgressPacketRate: q.EgressPacketRate, EgressPacketBurst: q.EgressPacketBurst,
		IngressMaxConnections: q.IngressMaxConnections, EgressMaxConnections: q.EgressMaxConnections,
	}
}

func encodeRoute(r view.Route) *typhav1.Route {
	m := &typhav1.Route{
		Destination: EncodePrefix(r.Dst), Type: typhav1.RouteType(r.Type), Node: r.Node, Pool: r.Pool,
		Send: encodeTunnel(r.Send), CrossSubnet: r.CrossSubnet,
	}
	for _, t := range r.Receive {
		m.Receive = append(m.Receive, encodeTunnel(t))
	}
	return m
}

// encodeTunnel shifts by one: on the wire 0 means not given.
func encodeTunnel(t view.Tunnel) typhav1.Tunnel { return typhav1.Tunnel(t) + 1 }

// EncodeMAC returns the 6 bytes of an Ethernet address, nil for one that is empty or not of that form.
func EncodeMAC(mac string) []byte {
	b, err := net.ParseMAC(mac)
	if err != nil || len(b) != macLength {
		return nil
	}
	return b
}
