package kubernetes

import (
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/api"
)

// maxPorts is how many ports a rule of ours may have.
const maxPorts = 50

// clusterProtocols gathers what a rule says of protocols: by protocol, and last the ports that are given by name, which may be
// of any. Lists that are too long for one rule are several.
func clusterProtocols(list []v1alpha2.ClusterNetworkPolicyProtocol) ([]protocolMatch, error) {
	var numbered []api.KubernetesPort
	var named []api.Port
	for i := range list {
		port, name, err := clusterProtocol(&list[i])
		switch {
		case err != nil:
			return nil, fmt.Errorf("protocol or port %d: %w", i, err)
		case name != "":
			named = append(named, api.Port{Name: name})
		default:
			numbered = append(numbered, port)
		}
	}
	var matches []protocolMatch
	if len(numbered) > 0 || len(named) == 0 {
		var err error
		if matches, err = protocolPorts(numbered); err != nil {
			return nil, err
		}
	}
	if len(named) > 0 {
		matches = append(matches, protocolMatch{ports: fewest(named)})
	}
	var out []protocolMatch
	for _, m := range matches {
		if len(m.ports) == 0 {
			out = append(out, m)
		}
		for ports := range slices.Chunk(m.ports, maxPorts) {
			out = append(out, protocolMatch{m.protocol, ports})
		}
	}
	return out, nil
}

// clusterProtocol reads one item: a port of a protocol, or a port's name. An item of which nothing is understood comes from a
// later version of that API and says something that is not known here; it must not count as one that says nothing.
func clusterProtocol(p *v1alpha2.ClusterNetworkPolicyProtocol) (port api.KubernetesPort, name string, err error) {
	var ports []*v1alpha2.Port
	var protocols []api.Protocol
	add := func(protocol api.Protocol, port *v1alpha2.Port) {
		protocols, ports = append(protocols, protocol), append(ports, port)
	}
	if p.TCP != nil {
		add(api.ProtocolTCP, p.TCP.DestinationPort)
	}
	if p.UDP != nil {
		add(api.ProtocolUDP, p.UDP.DestinationPort)
	}
	if p.SCTP != nil {
		add(api.ProtocolSCTP, p.SCTP.DestinationPort)
	}
	name = p.DestinationNamedPort
	switch {
	case len(protocols) == 0 && name == "":
		return port, "", errors.New("says nothing that is known here; write tcp, udp, sctp or destinationNamedPort")
	case len(protocols) > 1 || len(protocols) == 1 && name != "":
		return port, "", errors.New("says several things at once; write an item for each")
	case name != "":
		if len(validation.IsValidPortName(name)) > 0 {
			return port, "", fmt.Errorf("destinationNamedPort %q is no name of a port: write at most 15 lower-case letters, digits and -", name)
		}
		return port, name, nil
	}
	port.Protocol = &protocols[0]
	switch n := ports[0]; {
	case n == nil || (n.Number == 0) == (n.Range == nil):
		return port, "", errors.New("names no port; write destinationPort with either number or range")
	case n.Range != nil:
		port.Port, port.EndPort = new(intstr.FromInt32(n.Range.Start)), new(n.Range.End)
	default:
		port.Port = new(intstr.FromInt32(n.Number))
	}
	_, err = portOf(port)
	return port, "", err
}
