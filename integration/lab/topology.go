package lab

import (
	"maps"
	"net/netip"
	"os"
	"slices"
)

// Datastore says where a lab's cluster state lives.
type Datastore string

// The datastores a lab can run.
const (
	DatastoreEmbedded Datastore = "embedded" // etcd inside the first node's typha
	DatastoreEtcd     Datastore = "etcd"     // the machine's etcd binary, as a process of the first node
)

// Backend is the calico_backend of a cluster: who brings routes to its nodes.
type Backend string

// The backends that a lab can run.
const (
	BackendBird  Backend = "bird"  // BGP: bird and confd run on each node
	BackendVXLAN Backend = "vxlan" // no BGP at all: neither of them runs, and pools have to be VXLAN ones
)

// wants tells whether a process runs with this backend.
func (b Backend) wants(process string) bool {
	return b != BackendVXLAN || process != ProcessBird && process != ProcessConfd
}

// Speaker is which program speaks BGP on a node.
type Speaker string

// The speakers that a lab can run.
const (
	SpeakerMuslin Speaker = "muslin" // our bird
	SpeakerBIRD2  Speaker = "bird2"  // the machine's BIRD 2, which confd configures
)

// Topology describes a cluster on one machine. It is what a topology file decodes to.
type Topology struct {
	// Subnets are the fabric: one bridge each, joined by a router that owns their gateways.
	Subnets []Subnet `yaml:"subnets"`
	// Nodes are the machines. The first one also runs the cluster-wide processes.
	Nodes []Node `yaml:"nodes"`
	// Pods are added, in this order, once all nodes are ready.
	Pods []Pod `yaml:"pods,omitempty"`
	// Pools are created before the first node starts. Without any, the first node to start proposes the default pools, as on
	// a real cluster (CALICO_IPV4POOL_* in the nodes' environment).
	Pools []Pool `yaml:"pools,omitempty"`
	// Datastore defaults to embedded.
	Datastore Datastore `yaml:"datastore,omitempty"`
	// Backend says who brings routes to the nodes, default bird. Changing it later is SetBackend.
	Backend Backend `yaml:"backend,omitempty"`
	// Speaker says which program the nodes run as bird, default muslin.
	Speaker Speaker `yaml:"speaker,omitempty"`
	// Fabric tunes how the subnets treat frames.
	Fabric Fabric `yaml:"fabric,omitempty"`
}

// Subnet is one broadcast domain.
type Subnet struct {
	Name string `yaml:"name"`
	// Prefixes are at most one of each family.
	Prefixes []netip.Prefix `yaml:"prefixes"`
	// Gateways are the router's addresses, one in each prefix; default the first address of the prefix.
	Gateways []netip.Addr `yaml:"gateways,omitempty"`
}

// Fabric tunes how the subnets treat frames.
type Fabric struct {
	// MTU of the node uplinks in bytes, default 1500.
	MTU int `yaml:"mtu,omitempty"`
	// SourceDestCheck makes the fabric behave like a cloud: a frame from a node whose source, or a frame to a node whose
	// destination, is not that node's own address is dropped. Only outer headers are looked at. It is for all nodes that do
	// not say otherwise, and can be changed while the lab is up (SetSourceDestCheck).
	SourceDestCheck bool `yaml:"sourceDestCheck,omitempty"`
}

// Node is one machine of the cluster.
type Node struct {
	Name string `yaml:"name"`
	// Addresses are at most one of each family, all in the prefixes of one subnet.
	Addresses []netip.Addr `yaml:"addresses"`
	// Interface is the name of the uplink, default ens5.
	Interface string `yaml:"interface,omitempty"`
	// Labels are put on the Node object once the node has registered.
	Labels map[string]string `yaml:"labels,omitempty"`
	// Zone becomes the label topology.kubernetes.io/zone.
	Zone string `yaml:"zone,omitempty"`
	// Processes are what the node runs, see the Process* constants. Default: calico-node, bird, felix and confd, and on
	// the first node also typha and kube-controllers (and etcd, if that is the datastore).
	Processes []string `yaml:"processes"`
	// Env is added to the environment of each of the node's processes, such as FELIX_IPIPDRIVER: BPF.
	Env map[string]string `yaml:"env,omitempty"`
	// SourceDestCheck is the fabric's check for this node, default what the fabric says for all.
	SourceDestCheck *bool `yaml:"sourceDestCheck,omitempty"`
	// Speaker is which program the node runs as bird, default what the topology says for all.
	Speaker Speaker `yaml:"speaker,omitempty"`
	// Machine makes the node a machine for programs that the lab does not know; it then runs no processes of a lab by default.
	Machine *Machine `yaml:"machine,omitempty"`
}

// Machine is a node whose root is a copy of this machine's: what is written there is seen by the node only, and gone with it.
// Neither CNI configuration nor certificates are put on it.
type Machine struct {
	// Dirs are directories, as the node sees them, that are not part of that copy but lie in the state directory, below
	// nodes/NODE/ with dashes for slashes: for what a copy on write is not good enough for, or what is to be read from outside.
	Dirs []string `yaml:"dirs,omitempty"`
	// Programs can be started (Lab.Start), and are then kept running as the lab's own processes are.
	Programs []Program `yaml:"programs,omitempty"`
}

// Program is one that a machine can run.
type Program struct {
	Name string   `yaml:"name"`
	Args []string `yaml:"args"` // the first is the path of the program
	Env  []string `yaml:"env,omitempty"`
}

// Pod is one workload.
type Pod struct {
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace,omitempty"` // default "default"
	Node      string `yaml:"node"`
	// Labels are given to the CNI plugin with the ADD.
	Labels map[string]string `yaml:"labels,omitempty"`
	// IPv4Pools and IPv6Pools are the pools to take addresses from, by name or CIDR, as ipv4_pools and ipv6_pools of a CNI
	// configuration say. Without any, all of the family will do.
	IPv4Pools []string `yaml:"ipv4Pools,omitempty"`
	IPv6Pools []string `yaml:"ipv6Pools,omitempty"`
	// Annotations are handed on to the CNI plugin, as containerd does.
	Annotations map[string]string `yaml:"annotations,omitempty"`
	// HostPorts are ports of the node that lead to the pod, where the node's CNI configuration has portmap.
	HostPorts []HostPort `yaml:"hostPorts,omitempty"`
}

// HostPort is a port of a node that leads to one of a pod.
type HostPort struct {
	Host     uint16 `yaml:"host" json:"hostPort"`
	Pod      uint16 `yaml:"pod" json:"containerPort"`
	Protocol string `yaml:"protocol" json:"protocol"` // tcp or udp
}

// Pool is an IP pool to create before the nodes start.
type Pool struct {
	Name         string       `yaml:"name,omitempty"` // default default-ipv4-ippool or default-ipv6-ippool
	CIDR         netip.Prefix `yaml:"cidr"`
	BlockSize    int          `yaml:"blockSize,omitempty"`    // prefix length of a block, default 26 (IPv6: 122)
	IPIPMode     string       `yaml:"ipipMode,omitempty"`     // Never (default), Always, CrossSubnet
	VXLANMode    string       `yaml:"vxlanMode,omitempty"`    // Never (default), Always, CrossSubnet
	NATOutgoing  *bool        `yaml:"natOutgoing,omitempty"`  // default true
	NodeSelector string       `yaml:"nodeSelector,omitempty"` // default all()
}

// The processes a node can run.
const (
	ProcessEtcd  = "etcd"
	ProcessTypha = "typha"
	// ProcessControllers are kube-controllers.
	ProcessControllers = "kube-controllers"
	ProcessStartup     = "calico-node"
	ProcessBird        = "bird"
	ProcessFelix       = "felix"
	ProcessConfd       = "confd"
	// ProcessMonitor is calico-node -monitor-addresses. It runs only where a node's processes name it, and acts on what
	// IP=autodetect and IP6=autodetect leave to it.
	ProcessMonitor = "monitor-addresses"
)

const (
	defaultInterface = "ens5"
	defaultMTU       = 1500
	defaultNamespace = "default"
	zoneLabel        = "topology.kubernetes.io/zone"
)

// ReadTopology reads, decodes, defaults and validates a topology file. Errors name the file, the place in it and the fix.
func ReadTopology(path string) (Topology, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Topology{}, problem("cannot read the topology: "+err.Error(), "give a file with -f; topologies/demo.yaml is an example")
	}
	return ParseTopology(path, data)
}

func (t *Topology) node(name string) (Node, bool) {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// subnetOf returns the subnet that holds the address.
func (t *Topology) subnetOf(a netip.Addr) (Subnet, netip.Prefix, bool) {
	for _, s := range t.Subnets {
		for _, p := range s.Prefixes {
			if p.Contains(a) {
				return s, p, true
			}
		}
	}
	return Subnet{}, netip.Prefix{}, false
}

// sameSubnet tells whether two nodes share a broadcast domain.
func (t *Topology) sameSubnet(a, b string) bool {
	na, okA := t.node(a)
	nb, okB := t.node(b)
	if !okA || !okB {
		return false
	}
	sa, _, _ := t.subnetOf(na.Addresses[0])
	sb, _, _ := t.subnetOf(nb.Addresses[0])
	return sa.Name == sb.Name
}

// gatewayFor returns the router's address in the prefix.
func (s Subnet) gatewayFor(p netip.Prefix) netip.Addr {
	for _, g := range s.Gateways {
		if p.Contains(g) {
			return g
		}
	}
	return netip.Addr{}
}

// id is how a pod is named on the command line: the bare name in namespace default, namespace/name elsewhere.
func (p Pod) id() string {
	if p.Namespace == "" || p.Namespace == defaultNamespace {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// allLabels are the labels plus the zone's.
func (n Node) allLabels() map[string]string {
	all := map[string]string{}
	maps.Copy(all, n.Labels)
	if n.Zone != "" {
		all[zoneLabel] = n.Zone
	}
	return all
}

// checks tells whether the fabric checks a node's sources and destinations from the start.
func (t *Topology) checks(n Node) bool {
	if n.SourceDestCheck != nil {
		return *n.SourceDestCheck
	}
	return t.Fabric.SourceDestCheck
}

// NewPool is a pool with all defaults: no encapsulation, outgoing traffic translated.
func NewPool(cidr netip.Prefix) Pool {
	p := Pool{CIDR: cidr}
	p.setDefaults()
	return p
}

// has tells whether the node has an address of a family.
func (n Node) has(v6 bool) bool { return n.address(v6).IsValid() }

// address is the node's address of a family; invalid if there is none.
func (n Node) address(v6 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func (n Node) runs(process string) bool {
	return slices.Contains(n.Processes, process)
}

// programs are those of a machine.
func (n Node) programs() []Program {
	if n.Machine == nil {
		return nil
	}
	return n.Machine.Programs
}
