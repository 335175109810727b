package compute

import (
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

// worldServices are the names of services in each namespace.
var worldServices = []string{"web", "dns"}

// stepKubernetes changes a service, a slice or a secret.
func (w *world) stepKubernetes(e *Engine) {
	gone := w.chance(30)
	switch w.r.IntN(5) {
	case 0, 1:
		name := w.pick(worldNamespaces) + "/" + w.pick(worldServices)
		if gone {
			delete(w.services, name)
		} else {
			w.services[name] = w.service()
		}
		e.SetService(name, w.services[name])
	case 2, 3:
		name := fmt.Sprintf("red/slice%d", w.r.IntN(4))
		if gone {
			delete(w.slices, name)
		} else {
			w.slices[name] = w.slice()
		}
		e.SetEndpointSlice(name, w.slices[name])
	default:
		ref := SecretRef{w.pick([]string{"s", "t"}), "k"}
		if gone {
			delete(w.values, ref)
		} else {
			w.values[ref] = []byte(w.pick(worldValues))
		}
	}
}

// someAddresses are a few of three addresses.
func (w *world) someAddresses(percent int, from ...string) (out []netip.Addr) {
	for _, a := range from {
		if w.chance(percent) {
			out = append(out, netip.MustParseAddr(a))
		}
	}
	return out
}

func (w *world) service() *Service {
	return &Service{
		Type:            ServiceType(w.pick([]string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"})),
		External:        TrafficPolicy(w.pick([]string{"", "Cluster", "Local"})),
		ClusterIPs:      w.someAddresses(60, "10.96.0.1", "10.96.0.2", "fd96::1"),
		ExternalIPs:     w.someAddresses(40, "172.20.0.1", "172.20.0.2", "8.8.8.8"),
		LoadBalancerIPs: w.someAddresses(40, "172.21.0.1", "172.20.0.1", "fd21::1"),
	}
}

func (w *world) slice() *EndpointSlice {
	s := &EndpointSlice{Service: w.pick(worldNamespaces) + "/" + w.pick(worldServices)}
	if w.chance(5) {
		s.Service = ""
	}
	address := "10.0.0.%d"
	if w.chance(30) {
		address = "fd00::%d"
	}
	for range w.r.IntN(3) {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf(address, w.r.IntN(4)+1))},
			Node:      w.pick(append([]string{"", "elsewhere"}, worldNodes...)),
			Ready:     w.chance(60),
		})
	}
	for range 1 + w.r.IntN(2) {
		s.Ports = append(s.Ports, ServicePort{Protocol: view.Protocol(6 + 11*w.r.IntN(2)), Port: 53})
	}
	return s
}

func (w *world) password() *api.BGPPassword {
	if w.chance(40) {
		return nil
	}
	return &api.BGPPassword{SecretKeyRef: &api.SecretKeySelector{Name: w.pick([]string{"s", "t", ""}), Key: "k"}}
}

func (w *world) blocks(from ...string) (out []api.ServiceIPBlock) {
	for _, cidr := range from {
		if w.chance(50) {
			out = append(out, api.ServiceIPBlock{CIDR: cidr})
		}
	}
	return out
}

func (w *world) bgp() api.Object {
	if w.chance(60) {
		o := &api.BGPConfiguration{}
		o.Name = w.pick([]string{"default", "default", "default", "node.n1", "other"})
		o.Spec.LogSeverityScreen = w.pick([]string{"Debug", "Info"})
		o.Spec.ServiceClusterIPs = w.blocks("10.96.0.0/16", "fd96::/112", "10.96.0.2/32", "")
		o.Spec.ServiceExternalIPs = w.blocks("172.20.0.0/16", "172.20.0.1/32", "172.20.0.2")
		o.Spec.ServiceLoadBalancerIPs = w.blocks("172.21.0.0/16", "fd21::1/128", "172.20.0.0/16")
		if w.chance(60) {
			o.Spec.ServiceLoadBalancerAggregation = new(w.pick([]string{"Enabled", "Disabled"}))
		}
		if w.chance(50) {
			o.Spec.ListenPort = 1179
		}
		if w.chance(30) {
			o.Spec.NodeToNodeMeshEnabled = new(w.chance(50))
		}
		if w.chance(30) {
			o.Spec.ASNumber = new(api.ASNumber(64500))
		}
		if w.chance(20) {
			o.Spec.RouteReflectors = &api.RouteReflectors{Mode: api.ReflectorMode(w.pick([]string{"Manual", "Auto"}))}
		}
		o.Spec.NodeMeshPassword = w.password()
		if w.chance(50) {
			o.Spec.LocalWorkloadPeeringIPV4 = w.pick([]string{"169.254.8.1", "169.254.8.2", "nonsense"})
			o.Spec.LocalWorkloadPeeringIPV6 = w.pick([]string{"", "fe80::8:1"})
		}
		return o
	}
	o := &api.BGPPeer{}
	o.Name = w.pick([]string{"peer", "peer2", "peer3"})
	o.Spec.Password = w.password()
	switch w.r.IntN(3) {
	case 0:
		o.Spec.Node = w.pick(worldNodes)
	case 1:
		o.Spec.NodeSelector = w.pick([]string{"app == 'a'", "!has(app)", "all()", "bad ("})
	}
	switch w.r.IntN(5) {
	case 0, 1, 2:
		o.Spec.PeerIP = w.pick([]string{"10.30.0.1", "10.30.0.2", "10.30.0.3:179", "10.30.0.1:1179", "192.0.2.1"})
		if w.chance(50) {
			o.Spec.ASNumber = 64500
		}
	case 3:
		o.Spec.PeerSelector = w.pick([]string{"env == 'a'", "has(env)", "all()"})
	default:
		o.Spec.LocalWorkloadSelector = w.pick([]string{"all()", "app == 'a'", "has(env)", "bad ("})
	}
	if w.chance(30) {
		o.Spec.ReversePeering = new(api.ReversePeering(w.pick([]string{"Auto", "Manual"})))
	}
	return o
}
