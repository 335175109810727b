package api

import (
	"fmt"
	"regexp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FelixConfiguration configures felix: "default" for the cluster, "node.<name>" for one node, and any other name with a
// nodeSelector for the nodes it selects. What is set in a narrower one wins.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={felixconfig,felixconfigs},categories=calico
// +kubebuilder:printcolumn:name="Node Selector",type=string,JSONPath=`.spec.nodeSelector`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!has(self.spec.nodeSelector) || !(self.metadata.name == 'default' || self.metadata.name.startsWith('node.'))",message="nodeSelector is for objects of other names: default is for all nodes, node.<name> for one",fieldPath=".spec.nodeSelector"
type FelixConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec FelixConfigurationSpec `json:"spec"`
}

// ProtoPort is a port of a protocol, for one network or all.
type ProtoPort struct {
	// Protocol is TCP, UDP or SCTP; unset is TCP.
	// +kubebuilder:validation:Pattern=`^(?i)(TCP|UDP|SCTP)?$`
	Protocol string `json:"protocol,omitempty"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port uint16 `json:"port"`
	// Net limits it to one network.
	// +kubebuilder:validation:MaxLength=49
	// +kubebuilder:validation:Pattern=`^([0-9a-fA-F:.]+(/[0-9]{1,3})?)?$`
	Net string `json:"net,omitempty"`
}

// HealthTimeoutOverride changes how long one component may be silent.
type HealthTimeoutOverride struct {
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9_ -]+$`
	Name string `json:"name"`
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	Timeout metav1.Duration `json:"timeout"`
}

// RouteTableIDRange is an inclusive range of the kernel's route tables.
//
// +kubebuilder:validation:XValidation:rule="self.min >= 1 && self.min <= self.max",message="min is at least 1 and not above max"
type RouteTableIDRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// NodeConfigPrefix begins the names of objects that configure one node: "node.<name>". BGPConfiguration has them too.
const NodeConfigPrefix = "node."

// DefaultFailsafeInbound are the ports of host endpoints that stay open unless configured: SSH, DHCP, BGP, etcd, Typha
// and the Kubernetes API. They are Calico's and 5474, at which nodes enrol: one whose certificate has ended must get a new one
// before it can be told a policy that lets it.
func DefaultFailsafeInbound() []ProtoPort {
	return protoPorts("tcp:22 udp:68 tcp:179 tcp:2379 tcp:2380 tcp:5473 tcp:5474 tcp:6443 tcp:6666 tcp:6667")
}

// DefaultFailsafeOutbound are the ports that host endpoints can reach unless configured: DNS, DHCP and the same services.
func DefaultFailsafeOutbound() []ProtoPort {
	return protoPorts("udp:53 udp:67 tcp:179 tcp:2379 tcp:2380 tcp:5473 tcp:5474 tcp:6443 tcp:6666 tcp:6667")
}

// Default leaves the object as it is: a default written into one layer would overrule what a wider one says. What holds
// in the end is for EffectiveFelix to tell.
func (f *FelixConfiguration) Default() {}

// Validate checks the configuration.
func (f *FelixConfiguration) Validate() error {
	var c checker
	c.object(f, subdomainName)
	s, spec := &f.Spec, path("spec")
	if s.NodeSelector != nil {
		if f.Name == DefaultName || strings.HasPrefix(f.Name, NodeConfigPrefix) {
			c.bad(spec.at("nodeSelector"), *s.NodeSelector, "is given in "+f.Name+", which has its nodes already", "remove it, or choose another name for the object")
		}
		c.selector(spec.at("nodeSelector"), *s.NodeSelector, false)
	}
	c.parameters(spec, s)
	s.checkRouteTables(&c, spec)
	c.protoPorts(spec.at("failsafeInboundHostPorts"), s.FailsafeInboundHostPorts)
	c.protoPorts(spec.at("failsafeOutboundHostPorts"), s.FailsafeOutboundHostPorts)
	for i, o := range s.HealthTimeoutOverrides {
		here := spec.at("healthTimeoutOverrides").index(i)
		if !reporterName.MatchString(o.Name) {
			c.bad(here.at("name"), o.Name, "is not the name of a component", "write letters, digits, _ - and blanks")
		}
		c.duration(here.at("timeout"), &o.Timeout)
	}
	if s.KubeNodePortRanges != nil {
		for i, p := range *s.KubeNodePortRanges {
			c.numericPort(spec.at("kubeNodePortRanges").index(i), p)
		}
	}
	for _, f := range []struct {
		name             string
		normal, elevated *int
	}{
		{"ipv4ElevatedRoutePriority", s.IPv4NormalRoutePriority, s.IPv4ElevatedRoutePriority},
		{"ipv6ElevatedRoutePriority", s.IPv6NormalRoutePriority, s.IPv6ElevatedRoutePriority},
	} {
		if f.normal != nil && f.elevated != nil && *f.elevated >= *f.normal {
			c.bad(spec.at(f.name), *f.elevated, fmt.Sprintf("is not below the normal priority, %d", *f.normal), "write a lower number, which the kernel prefers")
		}
	}
	return c.err()
}

var reporterName = regexp.MustCompile(`^[a-zA-Z0-9_ -]+$`)

// maxRouteTables is how many route tables felix may be given.
const maxRouteTables = 65535

func (s *FelixConfigurationSpec) checkRouteTables(c *checker, spec path) {
	if s.RouteTableRange != nil {
		at := spec.at("routeTableRange")
		s.RouteTableRange.check(c, at, 250)
		if s.RouteTableRanges != nil {
			c.bad(at, s.RouteTableRange.String(), "is the old form of routeTableRanges, which is given too", "remove routeTableRange")
		}
	}
	if s.RouteTableRanges == nil {
		return
	}
	total := 0
	for i := range *s.RouteTableRanges {
		r := &(*s.RouteTableRanges)[i]
		r.check(c, spec.at("routeTableRanges").index(i), 1<<32-1)
		total += r.Max - r.Min + 1
	}
	if total > maxRouteTables {
		c.bad(spec.at("routeTableRanges"), total, "is the number of tables", fmt.Sprintf("give at most %d", maxRouteTables))
	}
}

// String is "min-max".
func (r RouteTableIDRange) String() string { return fmt.Sprintf("%d-%d", r.Min, r.Max) }

func (r RouteTableIDRange) check(c *checker, at path, most int) {
	if r.Min < 1 || r.Min > r.Max || r.Max > most {
		c.bad(at, r.String(), "is not a range of route tables", fmt.Sprintf("write min and max from 1 to %d, min not above max", most))
	}
}

func (c *checker) protoPorts(at path, ports *[]ProtoPort) {
	if ports == nil {
		return
	}
	for i, p := range *ports {
		here := at.index(i)
		if p.Protocol != "" {
			c.portedProtocol(here.at("protocol"), Protocol(p.Protocol))
		}
		if p.Port == 0 {
			c.bad(here.at("port"), p.Port, "is not a port", "write a number from 1 to 65535")
		}
		if p.Net != "" {
			c.cidr(here.at("net"), p.Net, anyFamily)
		}
	}
}

// numericPort checks a port or range that cannot be a name.
func (c *checker) numericPort(at path, p Port) {
	if p.IsNamed() {
		c.bad(at, p.Name, "is a name where numbers are needed", "write a range such as \"30000:32767\"")
		return
	}
	c.port(at, p)
}

// protoPorts reads a list such as "tcp:22 udp:68".
func protoPorts(list string) []ProtoPort {
	var ports []ProtoPort
	for entry := range strings.FieldsSeq(list) {
		protocol, number, _ := strings.Cut(entry, ":")
		p, err := ParsePort(number)
		if err != nil {
			panic("api: " + err.Error()) // the lists are in this file
		}
		ports = append(ports, ProtoPort{Protocol: string(ParseProtocol(protocol)), Port: p.First})
	}
	return ports
}
