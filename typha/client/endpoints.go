package client

import (
	"context"
	"net/netip"

	"github.com/muslin-net/muslin/api/view"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// Endpoint is a workload endpoint as its node knows it.
type Endpoint struct {
	ID          view.EndpointID
	UID         string // of the pod, if the CNI call had it
	ContainerID string
	Pod         string // name of the pod, empty outside Kubernetes
	Interface   string // host side
	MAC         string // of the pod's side
	Addresses   []netip.Addr
	// Labels and Profiles came with the CNI call; they count only where typha knows no Pod.
	Labels   map[string]string
	Profiles []string
	Ports    []Port
	// QoS, Floating and AllowedSources came with the CNI call, too.
	QoS            *view.QoS
	AllowedSources []netip.Prefix
	Floating       []netip.Addr
}

// Port is a named port of an endpoint.
type Port struct {
	Name     string
	Protocol view.Protocol
	Port     uint16
	HostPort uint16     // 0 if none
	HostIP   netip.Addr // invalid if none
}

// Report is the whole set of endpoints on the node.
type Report struct {
	// Instance names the running process, Sequence grows with each of its reports; one that arrives late is ignored.
	Instance  string
	Sequence  uint64
	Endpoints []Endpoint
}

// RefusedEndpoint is an endpoint that typha did not take, and why.
type RefusedEndpoint struct {
	ID     string // orchestrator/workload/endpoint
	Reason string
}

// Report tells typha which endpoints there are; all others of this node are gone. Those refused are left out, the rest
// is taken. stored is false while part of it waits in typha for the datastore; nothing needs to be done then.
func (c *Client) Report(ctx context.Context, r Report) (refused []RefusedEndpoint, stored bool, err error) {
	request := &typhav1.ReportRequest{Instance: r.Instance, Sequence: r.Sequence}
	for _, e := range r.Endpoints {
		request.Endpoints = append(request.Endpoints, encodeEndpoint(e))
	}
	err = c.endpoints(ctx, func(ctx context.Context, svc typhav1.EndpointsServiceClient) error {
		answer, err := svc.Report(ctx, request)
		if err != nil {
			return err
		}
		for _, m := range answer.GetRefused() {
			refused = append(refused, RefusedEndpoint{ID: m.GetId(), Reason: m.GetReason()})
		}
		stored = answer.GetStored()
		return nil
	})
	return refused, stored, err
}

func encodeEndpoint(e Endpoint) *typhav1.LocalEndpoint {
	m := &typhav1.LocalEndpoint{
		Orchestrator: e.ID.Orchestrator, Workload: e.ID.Workload, Endpoint: e.ID.Endpoint,
		Uid: e.UID, ContainerId: e.ContainerID, Pod: e.Pod, Interface: e.Interface, Mac: wire.EncodeMAC(e.MAC),
		Addresses: wire.EncodeAddrs(e.Addresses), Labels: e.Labels, Profiles: e.Profiles, Qos: wire.EncodeQoS(e.QoS), AllowedSources: wire.EncodePrefixes(e.AllowedSources),
		Floating: wire.EncodeAddrs(e.Floating),
	}
	for _, p := range e.Ports {
		m.Ports = append(m.Ports, &typhav1.EndpointPort{
			Name: p.Name, Protocol: uint32(p.Protocol), Port: uint32(p.Port), HostPort: uint32(p.HostPort), HostIp: p.HostIP.AsSlice(),
		})
	}
	return m
}
