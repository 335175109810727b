package cache

import (
	"net/netip"
	"reflect"

	"github.com/muslin-net/muslin/api"
)

// Endpoint is a workload endpoint, or a pod as one, in the form in which it is kept. By far most objects are endpoints, so of each
// there is only what somebody looks at, read once, and what others have too is not its own. It is immutable.
type Endpoint struct {
	*Traits
	Name        string // of the object that says where it is: node, orchestrator, workload and interface
	Node        string
	Workload    string // the pod's name, or what else identifies the workload on its node
	ContainerID string
	Interface   string // on the host
	MAC         string
	UID         string // of the pod's object
	Nets        []netip.Prefix
}

// Traits are what the endpoints of a workload, as a rule, have in common and share.
type Traits struct {
	Namespace      string
	Orchestrator   string
	ServiceAccount string
	Inside         string // the interface's name inside
	Profiles       []string
	Labels         map[string]string
	Annotations    map[string]string
	Ports          []api.WorkloadEndpointPort
	Spoofed        []string // prefixes that may be source addresses beside its own
	NATs           []api.IPNAT
	QoS            *api.QoSControls
}

// EndpointOf is an object's Endpoint. It shares its maps and lists with it, and with no other. nil is nobody's.
func EndpointOf(o *api.WorkloadEndpoint) *Endpoint {
	if o == nil {
		return nil
	}
	e := &Endpoint{
		Traits: &Traits{
			Namespace: o.Namespace, Orchestrator: o.Spec.Orchestrator, ServiceAccount: o.Spec.ServiceAccountName, Inside: o.Spec.Endpoint,
			Profiles: o.Spec.Profiles, Labels: o.Labels, Annotations: o.Annotations, Ports: o.Spec.Ports,
			Spoofed: o.Spec.AllowSpoofedSourcePrefixes, NATs: o.Spec.IPNATs, QoS: o.Spec.QoSControls,
		},
		Name: o.Name, Node: o.Spec.Node, Workload: o.Spec.Workload, ContainerID: o.Spec.ContainerID, Interface: o.Spec.InterfaceName, MAC: o.Spec.MAC,
		UID: string(o.UID),
	}
	switch o.Spec.Orchestrator {
	case api.OrchestratorKubernetes:
		e.Workload = o.Spec.Pod
	case api.OrchestratorCNI:
		e.Workload = o.Spec.ContainerID
	}
	for _, text := range o.Spec.IPNetworks {
		if p, err := api.ParseNet(text); err == nil {
			e.Nets = append(e.Nets, p.Masked())
		}
	}
	return e
}

// Equal tells whether two traits are the same.
func (t *Traits) Equal(other *Traits) bool { return t == other || reflect.DeepEqual(t, other) }

// Equal tells whether two endpoints are the same.
func (e *Endpoint) Equal(other *Endpoint) bool {
	if e == other || e == nil || other == nil {
		return e == other
	}
	return reflect.DeepEqual(e, other)
}
