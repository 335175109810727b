// Package recipe reads small worlds with questions and their answers, as people write them: the recipes of Kubernetes'
// documents and of Calico's tutorials, and worlds in which something was once wrong.
//
// A recipe is a stream of YAML documents. Those with a kind are what users apply: objects of ours, and policies of Kubernetes.
// One without a kind says what there is, and asks:
//
//	namespaces: {shop: {team: a}}                      # with their labels
//	pods:                                              # all on one node; addresses 10.65.0.1, fd00:65::1 and so on
//	- {name: shop/web, labels: {app: web}, ports: {http: tcp/8080}}
//	services: {shop/web: {pods: [shop/web], ports: [tcp/8080]}}
//	verdicts: |
//	  shop/web -> shop/db tcp/5432      allow
//	  203.0.113.7 -> shop/web icmp/8    deny           # an address is elsewhere
//	  shop/web -> host tcp/22           deny           # the node itself, also as a source
//	settings: {EndpointToHost: Accept, Node: n1}       # with Node, that node's host endpoints take part
//
// A question without an address is asked in both families.
package recipe

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
)

// Node is the node that all pods are on.
const Node = "n1"

// Recipe is a world and what is asked of it.
type Recipe struct {
	World     oracle.World
	Settings  oracle.Settings
	Questions []Question
}

// Question is a packet on its way, and whether it passes.
type Question struct {
	Text    string // as it was written, with the family
	Way     oracle.Way
	Packet  oracle.Packet
	Allowed bool
}

// plain is a document without a kind.
type plain struct {
	Namespaces map[string]map[string]string `json:"namespaces"`
	Accounts   map[string]map[string]string `json:"serviceAccounts"` // labels by namespace/name
	Pods       []pod                        `json:"pods"`
	Services   map[string]service           `json:"services"`
	Settings   oracle.Settings              `json:"settings"`
	Verdicts   string                       `json:"verdicts"`
}

type pod struct {
	Name           string            `json:"name"` // namespace/name
	Labels         map[string]string `json:"labels"`
	Ports          map[string]string `json:"ports"` // "tcp/80" by name
	ServiceAccount string            `json:"serviceAccount"`
}

type service struct {
	Pods  []string `json:"pods"`
	Ports []string `json:"ports"`
}

// Host addresses of the node itself, by family.
var hostAddresses = [2]netip.Addr{netip.MustParseAddr("192.168.9.1"), netip.MustParseAddr("fd00:9::1")}

// Read reads a recipe.
func Read(data []byte) (*Recipe, error) {
	r := &reader{pods: map[string]*api.WorkloadEndpoint{}}
	for i, doc := range bytes.Split(append([]byte("\n"), data...), []byte("\n---")) {
		if err := r.document(doc); err != nil {
			return nil, fmt.Errorf("document %d: %w", i, err)
		}
	}
	if err := r.ask(); err != nil {
		return nil, err
	}
	return &r.Recipe, nil
}

type reader struct {
	Recipe
	pods     map[string]*api.WorkloadEndpoint
	verdicts []string
}

func (r *reader) document(doc []byte) error {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(doc, &head); err != nil {
		return err
	}
	switch {
	case head.Kind == "NetworkPolicy" && head.APIVersion == "networking.k8s.io/v1":
		return take(doc, &r.World.Kubernetes)
	case head.APIVersion == v1alpha2.GroupVersion.String() && head.Kind == "ClusterNetworkPolicy":
		return take(doc, &r.World.Cluster)
	case head.APIVersion == v1alpha1.GroupVersion.String() && head.Kind == "AdminNetworkPolicy":
		return take(doc, &r.World.Admin)
	case head.APIVersion == v1alpha1.GroupVersion.String() && head.Kind == "BaselineAdminNetworkPolicy":
		return take(doc, &r.World.Baseline)
	case head.Kind != "":
		objects, err := api.Decode(doc)
		if err != nil {
			return err
		}
		for _, o := range objects {
			o.Default()
			if err := o.Validate(); err != nil {
				return fmt.Errorf("%s: %w", api.KeyOf(o), err)
			}
		}
		r.World.Objects = append(r.World.Objects, objects...)
		return nil
	}
	var p plain
	if err := yaml.UnmarshalStrict(doc, &p); err != nil {
		return err
	}
	return r.plain(&p)
}

// take reads a document of Kubernetes.
func take[T any](doc []byte, into *[]T) error {
	var o T
	err := yaml.UnmarshalStrict(doc, &o)
	*into = append(*into, o)
	return err
}

func (r *reader) plain(p *plain) error {
	profile := func(name, prefix, own string, labels map[string]string, rules []api.Rule) {
		o := &api.Profile{}
		o.Name = name
		o.Spec.LabelsToApply = map[string]string{prefix + "projectcalico.org/name": own}
		for k, v := range labels {
			o.Spec.LabelsToApply[prefix+k] = v
		}
		o.Spec.Ingress, o.Spec.Egress = rules, rules
		r.World.Objects = append(r.World.Objects, o)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Namespaces)) {
		profile("kns."+name, "pcns.", name, p.Namespaces[name], []api.Rule{{Action: api.Allow}})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Accounts)) {
		ns, own, _ := strings.Cut(name, "/")
		profile("ksa."+ns+"."+own, "pcsa.", own, p.Accounts[name], nil)
	}
	for i := range p.Pods {
		if err := r.pod(&p.Pods[i]); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := oracle.Service{Name: name}
		for _, pod := range p.Services[name].Pods {
			if r.pods[pod] == nil {
				return fmt.Errorf("service %s: there is no pod %s", name, pod)
			}
			s.Addresses = append(s.Addresses, address(r.pods[pod], 0), address(r.pods[pod], 1))
		}
		for _, text := range p.Services[name].Ports {
			port, err := parsePort(text)
			if err != nil {
				return err
			}
			s.Ports = append(s.Ports, port)
		}
		r.World.Services = append(r.World.Services, s)
	}
	if p.Settings != (oracle.Settings{}) {
		r.Settings = p.Settings
	}
	r.verdicts = append(r.verdicts, strings.Split(p.Verdicts, "\n")...)
	return nil
}

func (r *reader) pod(p *pod) error {
	ns, name, ok := strings.Cut(p.Name, "/")
	if !ok {
		return fmt.Errorf("pod %s: write namespace/name", p.Name)
	}
	n := len(r.pods) + 1
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.Labels = ns, p.Labels
	o.Spec = api.WorkloadEndpointSpec{
		Orchestrator: api.OrchestratorKubernetes, Node: Node, Pod: name, Endpoint: "eth0", ContainerID: fmt.Sprintf("c%d", n),
		InterfaceName: fmt.Sprintf("cali%d", n), Profiles: []string{"kns." + ns}, ServiceAccountName: p.ServiceAccount,
		IPNetworks: []string{fmt.Sprintf("10.65.0.%d/32", n), fmt.Sprintf("fd00:65::%x/128", n)},
	}
	if p.ServiceAccount != "" {
		o.Spec.Profiles = append(o.Spec.Profiles, "ksa."+ns+"."+p.ServiceAccount)
	}
	var err error
	if o.Name, err = api.WorkloadEndpointName(o.Spec); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Ports)) {
		port, err := parsePort(p.Ports[name])
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
		o.Spec.Ports = append(o.Spec.Ports, api.WorkloadEndpointPort{Name: name, Protocol: api.Protocol(strconv.Itoa(int(port.Protocol))), Port: port.Number})
	}
	r.pods[p.Name] = o
	r.World.Objects = append(r.World.Objects, o)
	return nil
}

// ask reads the questions.
func (r *reader) ask() error {
	for _, line := range r.verdicts {
		text, _, _ := strings.Cut(line, "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if len(words) != 5 || words[1] != "->" || words[4] != "allow" && words[4] != "deny" {
			return fmt.Errorf("%q is no question: write \"shop/web -> shop/db tcp/5432 allow\"", line)
		}
		asked := false
		for family := range 2 {
			q, ok, err := r.question(words, family)
			if err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			if ok {
				r.Questions = append(r.Questions, q)
			}
			asked = asked || ok
		}
		if !asked {
			return fmt.Errorf("%q is of no family", line)
		}
	}
	return nil
}

// question is a line in one family; not ok if it is of the other.
func (r *reader) question(words []string, family int) (q Question, ok bool, err error) {
	q.Text = strings.Join(words, " ") + []string{" (IPv4)", " (IPv6)"}[family]
	q.Allowed = words[4] == "allow"
	end := func(name string, key *api.Key, host *bool) (netip.Addr, error) {
		if p := r.pods[name]; p != nil {
			*key = api.KeyOf(p)
			return address(p, family), nil
		}
		if name == "host" {
			*host = true
			return hostAddresses[family], nil
		}
		a, err := netip.ParseAddr(name)
		if err != nil {
			return a, fmt.Errorf("%s is neither a pod nor an address", name)
		}
		return a, nil
	}
	p := &q.Packet
	if p.Source, err = end(words[0], &q.Way.From, &q.Way.FromHost); err != nil {
		return q, false, err
	}
	if p.Destination, err = end(words[2], &q.Way.To, &q.Way.ToHost); err != nil {
		return q, false, err
	}
	if six := family == 1; p.Source.Is6() != six || p.Destination.Is6() != six {
		return q, false, nil
	}
	kind, number, _ := strings.Cut(words[3], "/")
	if kind == "icmp" || kind == "icmpv6" {
		if (kind == "icmpv6") != p.V6() {
			return q, false, nil
		}
		p.Protocol = map[bool]uint8{false: oracle.ICMP, true: oracle.ICMPv6}[p.V6()]
		n, err := strconv.ParseUint(number, 10, 8)
		p.Type = uint8(n)
		return q, true, err
	}
	port, err := parsePort(words[3])
	p.Protocol, p.SourcePort, p.DestinationPort = port.Protocol, 40000, port.Number
	return q, true, err
}

func address(o *api.WorkloadEndpoint, family int) netip.Addr {
	return netip.MustParsePrefix(o.Spec.IPNetworks[family]).Addr()
}

// parsePort reads "tcp/80".
func parsePort(text string) (oracle.Port, error) {
	protocol, number, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	p, ok := api.Protocol(protocol).Number()
	if err != nil || !ok {
		return oracle.Port{}, fmt.Errorf("%q is no port: write tcp/80", text)
	}
	return oracle.Port{Protocol: p, Number: uint16(n)}, nil
}
