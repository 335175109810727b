package wire

import (
	"fmt"
	"math"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// Item is a decoded item.
type Item struct {
	view.Item
	Version view.Version
	More    bool // the next item of the same id continues this set
}

// Decode reads a serialised typha.v1 Item. The error wraps ErrUnknownKind if a later version of the protocol made it.
// Unknown fields are ignored.
func Decode(b []byte) (Item, error) {
	if it, ok := decodePlainSet(b); ok {
		return it, nil
	}
	var m typhav1.Item
	if err := proto.Unmarshal(b, &m); err != nil {
		return Item{}, fmt.Errorf("an item does not parse: %w", err)
	}
	return FromMessage(&m)
}

// FromMessage returns the item of a message.
func FromMessage(m *typhav1.Item) (Item, error) {
	version, err := DecodeVersion(m.GetVersion())
	if err != nil {
		return Item{}, fmt.Errorf("item %q: %w", m.GetId(), err)
	}
	it, err := body(m)
	if err != nil {
		return Item{}, fmt.Errorf("item %q: %w", m.GetId(), err)
	}
	if id := it.Key().ID; id != m.GetId() {
		return Item{}, fmt.Errorf("item %q: its content is that of %q", m.GetId(), id)
	}
	return Item{Item: it, Version: version, More: m.GetIpSet().GetMore()}, nil
}

func body(m *typhav1.Item) (view.Item, error) {
	switch b := m.GetBody().(type) {
	case *typhav1.Item_Resource:
		return decodeResource(b.Resource)
	case *typhav1.Item_Secret:
		return view.Secret{Name: b.Secret.GetName(), Value: b.Secret.GetValue()}, nil
	case *typhav1.Item_Node:
		return decodeNode(b.Node)
	case *typhav1.Item_IpSet:
		return decodeSet(m.GetId(), b.IpSet)
	case *typhav1.Item_IpSetDelta:
		return decodeSetDelta(m.GetId(), b.IpSetDelta)
	case *typhav1.Item_Policy:
		return decodePolicy(m.GetId(), b.Policy)
	case *typhav1.Item_PolicyList:
		return decodePolicyList(m.GetId(), b.PolicyList), nil
	case *typhav1.Item_WorkloadEndpoint:
		return decodeWorkload(b.WorkloadEndpoint)
	case *typhav1.Item_HostEndpoint:
		return decodeHost(m.GetId(), b.HostEndpoint)
	case *typhav1.Item_Route:
		return decodeRoute(b.Route)
	case *typhav1.Item_Origination:
		p, err := requiredPrefix(b.Origination.GetPrefix())
		return view.Origination{Prefix: p, Host: b.Origination.GetHost()}, err
	default:
		return nil, ErrUnknownKind
	}
}

func decodeResource(m *typhav1.Resource) (view.Item, error) {
	o, err := DecodeResource(m)
	if err != nil {
		return nil, err
	}
	return view.Resource{Object: o}, nil
}

// DecodeResource returns the object of a message. The error wraps ErrUnknownKind if the kind is from a later version.
func DecodeResource(m *typhav1.Resource) (api.Object, error) {
	kind, known := api.LookupKind(m.GetKind())
	if !known || kind.Name != m.GetKind() {
		return nil, fmt.Errorf("resource kind %q: %w", m.GetKind(), ErrUnknownKind)
	}
	return api.DecodeStored(kind, m.GetJson())
}

func decodeNode(m *typhav1.Node) (_ view.Item, err error) {
	var d decoder
	n := view.Node{
		Name: m.GetName(), IPv4: d.prefix(m.GetIpv4()), IPv6: d.prefix(m.GetIpv6()),
		IPIPAddr: d.addr(m.GetIpipAddress()), VXLANAddr4: d.addr(m.GetVxlanAddress4()), VXLANAddr6: d.addr(m.GetVxlanAddress6()),
		VXLANMAC4: d.mac(m.GetVxlanMac4()), VXLANMAC6: d.mac(m.GetVxlanMac6()), PodCIDRs: d.prefixes(m.GetPodCidrs()),
	}
	return n, d.err
}

func decodeSet(id string, m *typhav1.IpSet) (view.Item, error) {
	t := m.GetType()
	if t != typhav1.SetType_SET_TYPE_NET && t != typhav1.SetType_SET_TYPE_IP_PORT {
		return nil, fmt.Errorf("set type %d: %w", t, ErrUnknownKind)
	}
	members, err := decodeMembers(m.GetMembers())
	return view.IPSet{ID: id, Type: view.SetType(t), Members: members}, err
}

func decodeSetDelta(id string, m *typhav1.IpSetDelta) (_ view.Item, err error) {
	s := view.IPSetDelta{ID: id}
	if s.From, err = DecodeVersion(m.GetFrom()); err != nil {
		return nil, err
	}
	if s.To, err = DecodeVersion(m.GetTo()); err != nil {
		return nil, err
	}
	if s.Added, err = decodeMembers(m.GetAdded()); err != nil {
		return nil, err
	}
	s.Removed, err = decodeMembers(m.GetRemoved())
	return s, err
}

func decodeMembers(list []*typhav1.Member) ([]view.Member, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]view.Member, len(list))
	for i, m := range list {
		p, err := requiredPrefix(m.GetPrefix())
		if err != nil {
			return nil, err
		}
		if p != p.Masked() || m.GetProtocol() > math.MaxUint8 || m.GetPort() > math.MaxUint16 {
			return nil, fmt.Errorf("member %v protocol %d port %d is out of range", p, m.GetProtocol(), m.GetPort())
		}
		out[i] = view.Member{Prefix: p, Protocol: view.Protocol(m.GetProtocol()), Port: uint16(m.GetPort())}
	}
	return out, nil
}

func decodePolicy(id string, m *typhav1.Policy) (view.Item, error) {
	var d decoder
	p := view.Policy{
		ID: id, Tier: m.GetTier(), Ingress: d.rules(m.GetIngress()), Egress: d.rules(m.GetEgress()),
		DoNotTrack: m.GetDoNotTrack(), PreDNAT: m.GetPreDnat(), ApplyOnForward: m.GetApplyOnForward(), Staged: m.GetStaged(),
	}
	return p, d.err
}

func decodePolicyList(id string, m *typhav1.PolicyList) view.Item {
	l := view.PolicyList{ID: id, Profiles: m.GetProfiles()}
	for _, t := range m.GetTiers() {
		l.Tiers = append(l.Tiers, view.TierPolicies{
			Name: t.GetName(), DefaultAction: decodeAction(t.GetDefaultAction()), Ingress: t.GetIngress(), Egress: t.GetEgress(),
		})
	}
	return l
}

// decodeAction treats what it does not know as Deny: a rule that is not understood must not open anything.
func decodeAction(a typhav1.Action) view.Action {
	if a < typhav1.Action_ACTION_ALLOW || a > typhav1.Action_ACTION_LOG {
		return view.Deny
	}
	return view.Action(a)
}

func decodeWorkload(m *typhav1.WorkloadEndpoint) (view.Item, error) {
	var d decoder
	e := view.WorkloadEndpoint{
		ID:  view.EndpointID{Orchestrator: m.GetOrchestrator(), Workload: m.GetWorkload(), Endpoint: m.GetEndpoint()},
		UID: m.GetUid(), ContainerID: m.GetContainerId(), Interface: m.GetInterface(), MAC: d.mac(m.GetMac()),
		Addresses: d.addrs(m.GetAddresses()), PolicyList: m.GetPolicyList(), Incomplete: m.GetIncomplete(),
		AllowSpoofedPrefixes: d.prefixes(m.GetAllowSpoofedPrefixes()),
	}
	if p := m.GetPeering(); p != nil {
		e.Peering = &view.Peering{BGPPeers: p.GetBgpPeers(), Port: uint16(d.number("port", p.GetPort(), math.MaxUint16)), Gateways: d.addrs(p.GetGateways())}
	}
	for _, n := range m.GetNats() {
		e.NATs = append(e.NATs, view.NAT{External: d.addr(n.GetExternal()), Internal: d.addr(n.GetInternal())})
	}
	e.QoS = DecodeQoS(m.GetQos())
	if r := m.GetRequest(); r != nil {
		e.Request = &view.AddressRequest{
			Pools4: r.GetPools4(), Pools6: r.GetPools6(), Fixed: d.addrs(r.GetFixed()), MAC: d.mac(r.GetMac()),
			Unmanaged: d.addrs(r.GetUnmanaged()), Floating: d.addrs(r.GetFloating()), Wrong: r.GetWrong(),
		}
		for _, family := range r.GetFamilies() {
			if family == 4 || family == 6 {
				e.Request.Families = append(e.Request.Families, int(family))
			}
		}
	}
	return e, d.err
}

// DecodeQoS reads limits; nil stays nil.
func DecodeQoS(q *typhav1.Qos) *view.QoS {
	if q == nil {
		return nil
	}
	return &view.QoS{
		IngressBandwidth: q.GetIngressBandwidth(), IngressBurst: q.GetIngressBurst(), IngressPeakrate: q.GetIngressPeakrate(), IngressMinburst: q.GetIngressMinburst(),
		EgressBandwidth: q.GetEgressBandwidth(), EgressBurst: q.GetEgressBurst(), EgressPeakrate: q.GetEgressPeakrate(), EgressMinburst: q.GetEgressMinburst(),
		IngressPacketRate: q.GetIngressPacketRate(), IngressPacketBurst: q.GetIngressPacketBurst(),
		EgressPacketRate: q.GetEgressPacketRate(), EgressPacketBurst: q.GetEgressPacketBurst(),
		IngressMaxConnections: q.GetIngressMaxConnections(), EgressMaxConnections: q.GetEgressMaxConnections(),
	}
}

func decodeHost(name string, m *typhav1.HostEndpoint) (view.Item, error) {
	var d decoder
	e := view.HostEndpoint{
		Name: name, Interface: m.GetInterface(), ExpectedIPs: d.addrs(m.GetExpectedIps()),
		Normal: m.GetNormal(), Untracked: m.GetUntracked(), PreDNAT: m.GetPreDnat(), Forward: m.GetForward(),
		Incomplete: m.GetIncomplete(),
	}
	return e, d.err
}

func decodeRoute(m *typhav1.Route) (view.Item, error) {
	if t := m.GetType(); t < typhav1.RouteType_ROUTE_TYPE_BLOCK || t > typhav1.RouteType_ROUTE_TYPE_TUNNEL {
		return nil, fmt.Errorf("route type %d: %w", t, ErrUnknownKind)
	}
	send, ok := decodeTunnel(m.GetSend())
	if !ok {
		return nil, fmt.Errorf("tunnel %d: %w", m.GetSend(), ErrUnknownKind)
	}
	dst, err := requiredPrefix(m.GetDestination())
	if err != nil {
		return nil, err
	}
	r := view.Route{
		Dst: dst, Type: view.RouteType(m.GetType()), Node: m.GetNode(), Pool: m.GetPool(), Send: send, CrossSubnet: m.GetCrossSubnet(),
	}
	for _, t := range m.GetReceive() {
		if tunnel, ok := decodeTunnel(t); ok { // a way to receive that this version lacks takes nothing from the others
			r.Receive = append(r.Receive, tunnel)
		}
	}
	return r, nil
}

func decodeTunnel(t typhav1.Tunnel) (view.Tunnel, bool) {
	if t < typhav1.Tunnel_TUNNEL_NONE || t > typhav1.Tunnel_TUNNEL_WIREGUARD {
		return 0, false
	}
	return view.Tunnel(t - 1), true
}

// decoder reads fields and keeps the first error.
type decoder struct {
	err error
}

func (d *decoder) note(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) prefix(m *typhav1.Prefix) netip.Prefix {
	p, err := DecodePrefix(m)
	d.note(err)
	return p
}

func (d *decoder) prefixes(list []*typhav1.Prefix) []netip.Prefix {
	p, err := DecodePrefixes(list)
	d.note(err)
	return p
}

func (d *decoder) addr(b []byte) netip.Addr {
	a, err := DecodeAddr(b)
	d.note(err)
	return a
}

func (d *decoder) addrs(list [][]byte) []netip.Addr {
	a, err := DecodeAddrs(list)
	d.note(err)
	return a
}

func (d *decoder) mac(b []byte) string {
	s, err := DecodeMAC(b)
	d.note(err)
	return s
}

// number reads a number that has few bits in view and 32 on the wire.
func (d *decoder) number(what string, n, most uint32) uint32 {
	if n > most {
		d.note(fmt.Errorf("%s %d is above %d", what, n, most))
		return 0
	}
	return n
}

func (d *decoder) rules(list []*typhav1.Rule) []view.Rule {
	var out []view.Rule
	for _, m := range list {
		out = append(out, view.Rule{
			Action: decodeAction(m.GetAction()), IPVersion: uint8(d.number("IP version", m.GetIpVersion(), 6)),
			Protocol:    view.Protocol(d.number("protocol", m.GetProtocol(), math.MaxUint8)),
			NotProtocol: view.Protocol(d.number("protocol", m.GetNotProtocol(), math.MaxUint8)),
			ICMP:        d.icmp(m.GetIcmp()), NotICMP: d.icmp(m.GetNotIcmp()),
			Source: d.match(m.GetSource()), Destination: d.match(m.GetDestination()), Annotations: m.GetAnnotations(), HTTP: decodeHTTP(m.GetHttp()),
		})
	}
	return out
}

func decodeHTTP(m *typhav1.HttpMatch) *view.HTTP {
	if m == nil {
		return nil
	}
	h := &view.HTTP{Methods: m.GetMethods()}
	for _, p := range m.GetPaths() {
		h.Paths = append(h.Paths, view.HTTPPath{Exact: p.GetExact(), Prefix: p.GetPrefix()})
	}
	return h
}

func (d *decoder) icmp(m *typhav1.Icmp) *view.ICMP {
	if m == nil {
		return nil
	}
	i := &view.ICMP{Type: uint8(d.number("ICMP type", m.GetType(), math.MaxUint8))}
	if m.Code != nil {
		code := uint8(d.number("ICMP code", m.GetCode(), math.MaxUint8))
		i.Code = &code
	}
	return i
}

func (d *decoder) match(m *typhav1.Match) view.Match {
	return view.Match{
		Nets: d.prefixes(m.GetNets()), NotNets: d.prefixes(m.GetNotNets()), Sets: m.GetSets(), NotSets: m.GetNotSets(),
		IPPortSets: m.GetIpPortSets(), Ports: d.ports(m.GetPorts()), NamedPorts: m.GetNamedPorts(),
		NotPorts: d.ports(m.GetNotPorts()), NotNamedPorts: m.GetNotNamedPorts(),
	}
}

func (d *decoder) ports(list []*typhav1.PortRange) []view.PortRange {
	var out []view.PortRange
	for _, m := range list {
		first, last := d.number("port", m.GetFirst(), math.MaxUint16), d.number("port", m.GetLast(), math.MaxUint16)
		if last < first {
			d.note(fmt.Errorf("port range %d to %d runs backwards", first, last))
		}
		out = append(out, view.PortRange{First: uint16(first), Last: uint16(last)})
	}
	return out
}
