package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/wire"
)

// Intake is where the state of the cluster comes in.
type Intake interface {
	// Report replaces what a node's felix says of its endpoints. They are part of the state before the datastore shows
	// them.
	Report(ctx context.Context, node string, endpoints []*api.WorkloadEndpoint) error
	// Wake returns when everything that came in before has gone out to the views, and their clients have been woken.
	Wake(ctx context.Context) error
	// Invalid returns the objects that fail validation, with what is wrong with them.
	Invalid() map[api.Key]error
}

// Labels that every endpoint has.
const (
	labelNamespace    = "projectcalico.org/namespace"
	labelOrchestrator = "projectcalico.org/orchestrator"
)

// endpointsService takes what runs on a node.
type endpointsService struct {
	typhav1.UnimplementedEndpointsServiceServer
	*Server
}

// Report takes the whole set of a node's endpoints: what is right is part of the views when it returns, and written to
// the datastore afterwards.
func (s endpointsService) Report(ctx context.Context, m *typhav1.ReportRequest) (*typhav1.ReportResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	if m.GetInstance() == "" || len(m.GetInstance()) > longestText {
		return nil, status.Errorf(codes.InvalidArgument, "a report needs the instance of felix that makes it, in at most %d bytes", longestText)
	}
	if err := notMany("endpoints", len(m.GetEndpoints())); err != nil {
		return nil, err
	}
	n := s.reports.node(node)
	n.reporting.Lock() // one report of a node at a time, in order
	defer n.reporting.Unlock()
	if n.instance == m.GetInstance() && m.GetSequence() < n.sequence {
		return &typhav1.ReportResponse{Refused: n.refused, Stored: s.reports.stored(n)}, nil
	}
	same, err := n.repeats(m, time.Now())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	question := s.question(node)
	if same && question == "" {
		n.sequence = m.GetSequence()
		return &typhav1.ReportResponse{Stored: s.reports.stored(n)}, nil
	}
	endpoints, refused, err := s.judge(ctx, n, m.GetEndpoints())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Intake.Report(ctx, node, endpoints); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if len(refused) > 0 {
		question = "" // what is refused is not in the datastore, and may be on the node
	}
	s.reports.want(n, s.storable(endpoints), n.instance != m.GetInstance() || question != "", question)
	n.instance, n.sequence, n.refused = m.GetInstance(), m.GetSequence(), refused
	n.judged = time.Now()
	return &typhav1.ReportResponse{Refused: refused, Stored: s.reports.stored(n)}, nil
}

// judgeEvery is how often a report that repeats the one before is judged anew: felix repeats itself so that a typha that
// forgot learns again, which should cost little where nothing was forgotten.
const judgeEvery = 5 * time.Minute

// repeats tells whether a report says what the one before said, all of which was taken a short while ago. It remembers
// the report. The caller holds reporting.
func (n *nodeReport) repeats(m *typhav1.ReportRequest, now time.Time) (bool, error) {
	said, err := proto.MarshalOptions{Deterministic: true}.Marshal(&typhav1.ReportRequest{Endpoints: m.GetEndpoints()})
	if err != nil {
		return false, err
	}
	digest := sha256.Sum256(said)
	same := n.digest == digest && n.instance == m.GetInstance() && len(n.refused) == 0 && now.Sub(n.judged) < judgeEvery
	n.digest = digest
	if !same {
		n.judged = time.Time{} // until it is
	}
	return same, nil
}

// candidate is a reported endpoint that is well formed.
type candidate struct {
	pod       *cache.Endpoint       // by which it was identified
	object    *api.WorkloadEndpoint // never changed: those who got it keep it
	addresses []netip.Addr
	own       []netip.Addr // that the pod may have past IPAM
}

// candidateOf is an endpoint as an object: that of the report before, where that said the same of it and so did its pod. Of a
// node's endpoints one changes at a time as a rule, and to check the others anew would be most of what a pod's start costs here.
func (s *Server) candidateOf(n *nodeReport, m *typhav1.LocalEndpoint) (c candidate, said sum, err error) {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return c, said, err
	}
	said, c.pod = sha256.Sum256(text), s.podOf(m)
	if before, ok := n.candidates[said]; ok && before.pod == c.pod {
		return before, said, nil
	}
	if c.object, c.addresses, err = endpointObject(n.name, m); err == nil {
		c.own, err = s.identify(c.object, c.pod, c.addresses, m.GetUid())
	}
	return c, said, err
}

// judge turns a report into objects, and refuses what is malformed or has addresses that are not the node's. The caller holds
// reporting.
func (s *Server) judge(ctx context.Context, n *nodeReport, list []*typhav1.LocalEndpoint) ([]*api.WorkloadEndpoint, []*typhav1.RefusedEndpoint, error) {
	node := n.name
	var refused []*typhav1.RefusedEndpoint
	refuse := func(m *typhav1.LocalEndpoint, reason string) {
		id := m.GetOrchestrator() + "/" + m.GetWorkload() + "/" + m.GetEndpoint()
		s.refusals.note(refusedEndpoint, roleNode+"/"+node, shortened(id, longestText), errors.New(reason))
		refused = append(refused, &typhav1.RefusedEndpoint{Id: id, Reason: reason})
	}
	var sound []*typhav1.LocalEndpoint
	var candidates []candidate // of these
	var all []netip.Addr
	known := make(map[sum]candidate, len(list))
	for _, m := range list {
		c, said, err := s.candidateOf(n, m)
		if err != nil {
			refuse(m, err.Error())
			continue
		}
		known[said] = c
		sound, candidates = append(sound, m), append(candidates, c)
		all = append(all, c.addresses...)
	}
	n.candidates = known
	holders, err := s.holders(ctx, all)
	if err != nil {
		return nil, nil, status.Errorf(codes.Unavailable, "the addresses of the endpoints cannot be checked now: %v", err)
	}
	free := s.unmanaged(node)
	var out []*api.WorkloadEndpoint
	taken := map[string]bool{}
	for i, c := range candidates {
		if reason := notOurs(node, c.addresses, holders, append(free, singles(c.own)...)); reason != "" {
			refuse(sound[i], reason)
			continue
		}
		name := c.object.Namespace + "/" + c.object.Name
		if taken[name] {
			refuse(sound[i], "it is reported twice")
			continue
		}
		taken[name] = true
		out = append(out, c.object)
	}
	return out, refused, nil
}

// unmanaged are the ranges whose addresses a node may have without asking IPAM: those that the configuration names, and those
// that Kubernetes gave to the node.
func (s *Server) unmanaged(node string) []netip.Prefix {
	ranges := slices.Clone(s.cfg.Unmanaged)
	if n, ok := s.cfg.Cache.Snapshot().Get(api.Key{Kind: "Node", Name: node}).(*api.Node); ok {
		for _, text := range n.Status.PodCIDRs {
			if cidr, err := netip.ParsePrefix(text); err == nil {
				ranges = append(ranges, cidr)
			}
		}
	}
	return ranges
}

// notOurs says why a node may not have these addresses; empty if it may.
func notOurs(node string, addresses []netip.Addr, holders map[netip.Addr]string, free []netip.Prefix) string {
	for _, a := range addresses {
		switch holder, held := holders[a]; {
		case !held && slices.ContainsFunc(free, func(p netip.Prefix) bool { return p.Contains(a) }):
		case !held:
			return fmt.Sprintf("address %s is not allocated; the endpoint must get its addresses from IPAM (delete the pod to have it made anew), or typha be told of its range (--unmanaged)", a)
		case holder != node:
			return fmt.Sprintf("address %s is allocated to node %q, not to node %q", a, holder, node)
		}
	}
	return ""
}

// maxAddresses is how many addresses an endpoint may have.
const maxAddresses = 64

// endpointObject is the WorkloadEndpoint of a reported endpoint.
func endpointObject(node string, m *typhav1.LocalEndpoint) (*api.WorkloadEndpoint, []netip.Addr, error) {
	namespace, workload, ok := strings.Cut(m.GetWorkload(), "/")
	if !ok || namespace == "" || workload == "" || m.GetEndpoint() == "" {
		return nil, nil, fmt.Errorf("its id must have an orchestrator, a workload as namespace/name, and an interface")
	}
	if n := max(len(m.GetAddresses()), len(m.GetFloating())); n > maxAddresses {
		return nil, nil, fmt.Errorf("it has %d addresses; an endpoint has at most %d", n, maxAddresses)
	}
	addresses, err := wire.DecodeAddrs(m.GetAddresses())
	if err != nil {
		return nil, nil, err
	}
	mac, err := wire.DecodeMAC(m.GetMac())
	if err != nil {
		return nil, nil, err
	}
	o := &api.WorkloadEndpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Labels: map[string]string{}},
		Spec: api.WorkloadEndpointSpec{
			Orchestrator: m.GetOrchestrator(), Node: node, ContainerID: m.GetContainerId(), Pod: m.GetPod(),
			Endpoint: m.GetEndpoint(), InterfaceName: m.GetInterface(), MAC: mac, Profiles: m.GetProfiles(),
		},
	}
	switch m.GetOrchestrator() {
	case api.OrchestratorKubernetes:
		o.Spec.Pod = workload
	case api.OrchestratorCNI:
		o.Spec.ContainerID = workload
	default:
		o.Spec.Workload = workload
	}
	for _, a := range addresses {
		o.Spec.IPNetworks = append(o.Spec.IPNetworks, netip.PrefixFrom(a, a.BitLen()).String())
	}
	for _, p := range m.GetPorts() {
		port, err := endpointPort(p)
		if err != nil {
			return nil, nil, err
		}
		o.Spec.Ports = append(o.Spec.Ports, port)
	}
	allowed, err := wire.DecodePrefixes(m.GetAllowedSources())
	if err != nil {
		return nil, nil, err
	}
	for _, p := range allowed {
		o.Spec.AllowSpoofedSourcePrefixes = append(o.Spec.AllowSpoofedSourcePrefixes, p.String())
	}
	floating, err := wire.DecodeAddrs(m.GetFloating())
	if err != nil {
		return nil, nil, err
	}
	o.Spec.IPNATs = kubernetes.NATs(addresses, floating)
	o.Spec.QoSControls = qosControls(m.GetQos())
	maps.Copy(o.Labels, m.GetLabels())
	o.Labels[labelNamespace], o.Labels[labelOrchestrator] = namespace, m.GetOrchestrator()
	o.Default()
	if err := o.Validate(); err != nil {
		return nil, nil, err
	}
	return o, addresses, nil
}

// qosControls are limits as resources have them; nil stays nil.
func qosControls(m *typhav1.Qos) *api.QoSControls {
	if m == nil {
		return nil
	}
	n := func(v uint64) int64 { return int64(min(v, math.MaxInt64)) }
	return &api.QoSControls{
		IngressBandwidth: n(m.GetIngressBandwidth()), IngressBurst: n(m.GetIngressBurst()), IngressPeakrate: n(m.GetIngressPeakrate()), IngressMinburst: n(m.GetIngressMinburst()),
		EgressBandwidth: n(m.GetEgressBandwidth()), EgressBurst: n(m.GetEgressBurst()), EgressPeakrate: n(m.GetEgressPeakrate()), EgressMinburst: n(m.GetEgressMinburst()),
		IngressPacketRate: n(m.GetIngressPacketRate()), IngressPacketBurst: n(m.GetIngressPacketBurst()),
		EgressPacketRate: n(m.GetEgressPacketRate()), EgressPacketBurst: n(m.GetEgressPacketBurst()),
		IngressMaxConnections: n(m.GetIngressMaxConnections()), EgressMaxConnections: n(m.GetEgressMaxConnections()),
	}
}

func endpointPort(m *typhav1.EndpointPort) (api.WorkloadEndpointPort, error) {
	host, err := wire.DecodeAddr(m.GetHostIp())
	if err != nil {
		return api.WorkloadEndpointPort{}, err
	}
	if m.GetPort() > 65535 || m.GetHostPort() > 65535 {
		return api.WorkloadEndpointPort{}, fmt.Errorf("port %q is above 65535", m.GetName())
	}
	p := api.WorkloadEndpointPort{
		Name: m.GetName(), Protocol: protocolName(m.GetProtocol()), Port: uint16(m.GetPort()), HostPort: uint16(m.GetHostPort()),
	}
	if host.IsValid() {
		p.HostIP = host.String()
	}
	return p, nil
}

// protocolName is a protocol as resources spell it: by name where it has one.
func protocolName(number uint32) api.Protocol {
	for _, p := range []api.Protocol{api.ProtocolTCP, api.ProtocolUDP, api.ProtocolSCTP, api.ProtocolUDPLite} {
		if n, _ := p.Number(); uint32(n) == number {
			return p
		}
	}
	return api.Protocol(fmt.Sprint(number))
}
