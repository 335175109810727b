package server

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/conditions"
	"github.com/muslin-net/muslin/typha/wire"
)

// nodesService registers nodes.
type nodesService struct {
	typhav1.UnimplementedNodesServiceServer
	*Server
}

// Register creates or updates the calling node's Node, proposes pools, and sees to the tunnel addresses.
func (s nodesService) Register(ctx context.Context, m *typhav1.RegisterRequest) (*typhav1.RegisterResponse, error) {
	name, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	want, err := readRegistration(name, m)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	var created []string
	var node *api.Node
	if m.GetReadOnly() {
		node, err = s.nodes.get(ctx, name)
	} else {
		if created, err = s.nodes.proposePools(ctx, want.pools); err == nil {
			node, err = s.nodes.register(ctx, want)
		}
	}
	if err != nil {
		return nil, storeError(err)
	}
	message, err := wire.Message(view.Resource{Object: node}, view.Version{})
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &typhav1.RegisterResponse{Node: message.GetResource(), PoolsCreated: created, Replicas: s.replicaList()}, nil
}

// ReportStatus stores what a node says of itself, if it is new.
func (s nodesService) ReportStatus(ctx context.Context, m *typhav1.ReportStatusRequest) (*typhav1.ReportStatusResponse, error) {
	name, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	if err := tellable(m); err != nil {
		return nil, err
	}
	given := []metav1.Condition{}
	for _, c := range m.GetConditions() {
		k := metav1.Condition{
			Type: c.GetType(), Status: metav1.ConditionFalse, Reason: cmp.Or(c.GetReason(), "Reported"), Message: c.GetMessage(),
		}
		if c.GetStatus() {
			k.Status = metav1.ConditionTrue
		}
		given = append(given, k)
	}
	kernel := &api.NodeKernel{Features: map[string]string{}}
	maps.Copy(kernel.Features, m.GetCapabilities())
	_, err = s.nodes.update(ctx, name, func(n *api.Node) error {
		if m.GetBeside() {
			n.Status.Conditions = conditions.Peers(n.Status.Conditions, given, now)
			return nil
		}
		n.Status.Conditions = conditions.Report(n.Status.Conditions, given, now)
		n.Status.Kernel = kernel
		return nil
	})
	if err != nil {
		return nil, storeError(err)
	}
	return &typhav1.ReportStatusResponse{}, nil
}

// maxConditions is how many conditions a node may report, and how many features of its kernel.
const maxConditions = 256

// tellable refuses conditions that are not the caller's to tell.
func tellable(m *typhav1.ReportStatusRequest) error {
	if n := max(len(m.GetConditions()), len(m.GetCapabilities())); n > maxConditions {
		return status.Errorf(codes.InvalidArgument, "%d conditions or capabilities are too many; give at most %d", n, maxConditions)
	}
	for _, c := range m.GetConditions() {
		if c.GetType() == "" {
			return status.Error(codes.InvalidArgument, "a condition has no type")
		}
		if !conditions.Reportable(c.GetType(), m.GetBeside()) {
			return status.Errorf(codes.PermissionDenied, "condition %s is not told by whoever reports it here (beside is %v)", c.GetType(), m.GetBeside())
		}
	}
	return nil
}

// Replicas lists the replicas.
func (s nodesService) Replicas(ctx context.Context, _ *typhav1.ReplicasRequest) (*typhav1.ReplicasResponse, error) {
	if _, err := callingNode(ctx); err != nil {
		return nil, err
	}
	return &typhav1.ReplicasResponse{Replicas: s.replicaList()}, nil
}

// storeError turns an error of the datastore into a status.
func storeError(err error) error {
	code := codes.Internal
	switch {
	case status.Code(err) != codes.Unknown: // it is one already
		return err
	case errors.Is(err, datastore.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, datastore.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, datastore.ErrConflict):
		code = codes.Aborted
	case errors.Is(err, datastore.ErrUnavailable), errors.Is(err, datastore.ErrFull): // either way it passes
		code = codes.Unavailable
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.As(err, new(api.Errors)):
		code = codes.InvalidArgument
	}
	return status.Error(code, err.Error())
}

// registration is what a node says of itself.
type registration struct {
	name                 string
	ipv4, ipv6           netip.Prefix // invalid to keep what is stored
	clearIPv4, clearIPv6 bool
	asNumber             api.ASNumber
	wireguard            []byte
	interfaces           []api.NodeInterface
	orchRefs             []api.OrchRef
	pools                []*api.IPPool
	skipCheck            bool
}

func readRegistration(name string, m *typhav1.RegisterRequest) (registration, error) {
	r := registration{
		name: name, clearIPv4: m.GetClearIpv4(), clearIPv6: m.GetClearIpv6(), asNumber: api.ASNumber(m.GetAsNumber()),
		wireguard: m.GetWireguardKey(), skipCheck: m.GetSkipAddressCheck(),
	}
	var err error
	if r.ipv4, err = wire.DecodePrefix(m.GetIpv4()); err == nil && r.ipv4.IsValid() && !r.ipv4.Addr().Is4() {
		err = fmt.Errorf("%s is no IPv4 address", r.ipv4)
	}
	if err != nil {
		return r, fmt.Errorf("ipv4: %w", err)
	}
	if r.ipv6, err = wire.DecodePrefix(m.GetIpv6()); err == nil && r.ipv6.IsValid() && !r.ipv6.Addr().Is6() {
		err = fmt.Errorf("%s is no IPv6 address", r.ipv6)
	}
	if err != nil {
		return r, fmt.Errorf("ipv6: %w", err)
	}
	if n := len(r.wireguard); n != 0 && n != 32 {
		return r, fmt.Errorf("wireguard_key has %d bytes; a key has 32", n)
	}
	if n := len(m.GetInterfaces()) + len(m.GetOrchRefs()) + len(m.GetPoolProposals()); n > maxList {
		return r, fmt.Errorf("%d interfaces, references and pools are too many; give at most %d", n, maxList)
	}
	for _, i := range m.GetInterfaces() {
		addresses, err := wire.DecodeAddrs(i.GetAddresses())
		if err != nil {
			return r, fmt.Errorf("interface %s: %w", i.GetName(), err)
		}
		iface := api.NodeInterface{Name: i.GetName()}
		for _, a := range addresses {
			iface.Addresses = append(iface.Addresses, a.String())
		}
		r.interfaces = append(r.interfaces, iface)
	}
	for _, o := range m.GetOrchRefs() {
		r.orchRefs = append(r.orchRefs, api.OrchRef{Orchestrator: o.GetOrchestrator(), NodeName: o.GetNodeName()})
	}
	for _, p := range m.GetPoolProposals() {
		o, err := wire.DecodeResource(p)
		if err != nil {
			return r, fmt.Errorf("proposed pool: %w", err)
		}
		pool, ok := o.(*api.IPPool)
		if !ok {
			return r, fmt.Errorf("proposed pool: a %s is no IPPool", p.GetKind())
		}
		r.pools = append(r.pools, pool)
	}
	return r, nil
}

// applyTo writes what the node says of itself into its Node.
func (r registration) applyTo(n *api.Node) {
	bgp := api.NodeBGPSpec{}
	if n.Spec.BGP != nil {
		bgp = *n.Spec.BGP
	}
	was4, was6 := bgp.IPv4Address, bgp.IPv6Address
	bgp.IPv4Address = stated(was4, r.ipv4, r.clearIPv4)
	bgp.IPv6Address = stated(was6, r.ipv6, r.clearIPv6)
	if r.asNumber != 0 {
		bgp.ASNumber = &r.asNumber
	}
	if n.Spec.BGP = &bgp; bgp == (api.NodeBGPSpec{}) {
		n.Spec.BGP = nil // an empty one is not valid
	}
	n.Spec.Interfaces = r.interfaces
	if len(r.orchRefs) > 0 {
		n.Spec.OrchRefs = r.orchRefs
	}
	if len(r.wireguard) > 0 {
		n.Status.WireguardPublicKey = base64.StdEncoding.EncodeToString(r.wireguard)
	}
	n.Spec.Addresses = slices.DeleteFunc(n.Spec.Addresses, func(a api.NodeAddress) bool {
		return a.Type == api.AddressCalicoNode
	})
	for _, address := range []string{bgp.IPv4Address, bgp.IPv6Address} {
		if address != "" {
			n.Spec.Addresses = append(n.Spec.Addresses, api.NodeAddress{Address: address, Type: api.AddressCalicoNode})
		}
	}
}

// stated is the address to store: the given one, none if it is to be cleared, else the one before.
func stated(was string, now netip.Prefix, clear bool) string {
	switch {
	case now.IsValid():
		return now.String()
	case clear:
		return ""
	}
	return was
}

func newNode(name string) *api.Node {
	return &api.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}
