package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ParseTopology decodes, defaults and validates a topology; file is only used in errors.
func ParseTopology(file string, data []byte) (Topology, error) {
	var t Topology
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&t); err != nil {
		if errors.Is(err, io.EOF) {
			return Topology{}, problem(file+" is empty", "a topology needs at least subnets and nodes")
		}
		return Topology{}, decodeProblem(file, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Topology{}, problem(file+" holds more than one YAML document", "put one topology in a file")
	}
	t.setDefaults()
	if err := t.Validate(); err != nil {
		return Topology{}, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

// text returns the topology as a file that ParseTopology accepts.
func (t Topology) text() ([]byte, error) {
	type plain Topology
	return yaml.Marshal(plain(t))
}

var (
	unknownField = regexp.MustCompile(`line (\d+): field (\S+) not found in type lab\.(\w+)`)
	wrongType    = regexp.MustCompile(`line (\d+): cannot unmarshal !!(\w+) (.*)into (.*)`)
)

// knownFields lists what each block of the file may hold, for the error about a field that it may not.
var knownFields = map[string]string{
	"Topology": "subnets, nodes, pods, pools, datastore, backend, speaker, fabric",
	"Subnet":   "name, prefixes, gateways",
	"Fabric":   "mtu, sourceDestCheck",
	"Node":     "name, addresses, interface, labels, zone, processes, env, sourceDestCheck, speaker, machine",
	"Machine":  "dirs, programs",
	"Program":  "name, args, env",
	"Pod":      "name, namespace, node, labels, ipv4Pools, ipv6Pools",
	"Pool":     "name, cidr, blockSize, ipipMode, vxlanMode, natOutgoing, nodeSelector",
}

// decodeProblem turns the decoder's message into one line that names line, field and choices.
func decodeProblem(file string, err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if m := unknownField.FindStringSubmatch(text); m != nil {
		return problem(fmt.Sprintf("%s line %s: unknown field %q in %s", file, m[1], m[2], strings.ToLower(m[3])),
			"known are "+knownFields[m[3]])
	}
	if m := wrongType.FindStringSubmatch(text); m != nil {
		return problem(fmt.Sprintf("%s line %s: a %s %sdoes not fit here", file, m[1], m[2], m[3]),
			"compare with topologies/demo.yaml")
	}
	return problem(file+": "+strings.TrimPrefix(text, "yaml: "), "compare with topologies/demo.yaml")
}

// WithDefaults returns the topology with what it does not say filled in, as reading one from a file does.
func (t Topology) WithDefaults() Topology {
	t.setDefaults()
	return t
}

func (t *Topology) setDefaults() {
	if t.Datastore == "" {
		t.Datastore = DatastoreEmbedded
	}
	if t.Backend == "" {
		t.Backend = BackendBird
	}
	if t.Speaker == "" {
		t.Speaker = SpeakerMuslin
	}
	if t.Fabric.MTU == 0 {
		t.Fabric.MTU = defaultMTU
	}
	for i := range t.Subnets {
		s := &t.Subnets[i]
		for j, p := range s.Prefixes {
			s.Prefixes[j] = p.Masked()
			if !s.gatewayFor(p).IsValid() && p.IsValid() {
				s.Gateways = append(s.Gateways, p.Masked().Addr().Next())
			}
		}
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if n.Interface == "" {
			n.Interface = defaultInterface
		}
		if n.Speaker == "" {
			n.Speaker = t.Speaker
		}
		if n.Processes == nil && n.Machine == nil {
			n.Processes = t.defaultProcesses(i)
		}
	}
	for i := range t.Pods {
		if t.Pods[i].Namespace == "" {
			t.Pods[i].Namespace = defaultNamespace
		}
	}
	for i := range t.Pools {
		t.Pools[i].setDefaults()
	}
}

func (t *Topology) defaultProcesses(index int) []string {
	var ps []string
	if index == 0 {
		if t.Datastore == DatastoreEtcd {
			ps = append(ps, ProcessEtcd)
		}
		ps = append(ps, ProcessTypha, ProcessControllers)
	}
	return append(ps, ProcessStartup, ProcessBird, ProcessFelix, ProcessConfd)
}

func (p *Pool) setDefaults() {
	v6 := p.CIDR.Addr().Is6()
	if p.Name == "" {
		p.Name = "default-ipv4-ippool"
		if v6 {
			p.Name = "default-ipv6-ippool"
		}
	}
	if p.BlockSize == 0 {
		p.BlockSize = 26
		if v6 {
			p.BlockSize = 122
		}
	}
	if p.IPIPMode == "" {
		p.IPIPMode = "Never"
	}
	if p.VXLANMode == "" {
		p.VXLANMode = "Never"
	}
	if p.NodeSelector == "" {
		p.NodeSelector = "all()"
	}
	if p.NATOutgoing == nil {
		yes := true
		p.NATOutgoing = &yes
	}
}

var (
	dnsLabel      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
	interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
)

// Validate checks that the topology can be built. The first thing wrong is returned, with its place and the fix.
func (t *Topology) Validate() error {
	if len(t.Subnets) == 0 {
		return problem("subnets is empty", "add one with a name and a prefix")
	}
	if len(t.Nodes) == 0 {
		return problem("nodes is empty", "add one with a name and an address")
	}
	if t.Datastore != DatastoreEmbedded && t.Datastore != DatastoreEtcd {
		return problem(fmt.Sprintf("datastore %q is unknown", t.Datastore), "use embedded or etcd")
	}
	if t.Backend != BackendBird && t.Backend != BackendVXLAN {
		return problem(fmt.Sprintf("backend %q is unknown", t.Backend), "use bird or vxlan")
	}
	if t.Fabric.MTU < 1280 || t.Fabric.MTU > 65535 {
		return problem(fmt.Sprintf("fabric.mtu %d is out of range", t.Fabric.MTU), "use 1280 to 65535")
	}
	for _, check := range []func() error{t.validateSubnets, t.validateNodes, t.validatePods, t.validatePools} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (t *Topology) validateSubnets() error {
	names := map[string]bool{}
	var seen []netip.Prefix
	for i, s := range t.Subnets {
		at := fmt.Sprintf("subnets[%d] (%s)", i, s.Name)
		if !dnsLabel.MatchString(s.Name) {
			return problem(at+": bad name", "use lower-case letters, digits and dashes")
		}
		if names[s.Name] {
			return problem(at+": the name is taken", "give each subnet its own")
		}
		names[s.Name] = true
		if len(s.Prefixes) == 0 {
			return problem(at+": no prefixes", "add one, such as 10.30.0.0/24")
		}
		if err := oneEachFamily(at+".prefixes", s.Prefixes, func(p netip.Prefix) netip.Addr { return p.Addr() }); err != nil {
			return err
		}
		for _, p := range s.Prefixes {
			for _, other := range seen {
				if p.Overlaps(other) {
					return problem(fmt.Sprintf("%s: %s overlaps %s", at, p, other), "give each subnet its own prefix")
				}
			}
			seen = append(seen, p)
		}
		for _, g := range s.Gateways {
			if !slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(g) }) {
				return problem(fmt.Sprintf("%s: gateway %s is in none of its prefixes", at, g), "take an address of the subnet")
			}
		}
		if len(s.Gateways) != len(s.Prefixes) {
			return problem(at+": more gateways than prefixes", "give one gateway for each prefix")
		}
	}
	return nil
}

func (t *Topology) validateNodes() error {
	names := map[string]bool{routerName: true, fabricName: true}
	addrs := map[netip.Addr]string{}
	for _, s := range t.Subnets {
		for _, g := range s.Gateways {
			addrs[g] = "the router"
		}
	}
	for i, n := range t.Nodes {
		at := fmt.Sprintf("nodes[%d] (%s)", i, n.Name)
		if !dnsLabel.MatchString(n.Name) || len(n.Name) > 63 {
			return problem(at+": bad name", "use at most 63 lower-case letters, digits and dashes")
		}
		if names[n.Name] {
			return problem(at+": the name is taken", "give each node its own; router and fabric are the lab's")
		}
		names[n.Name] = true
		if !interfaceName.MatchString(n.Interface) || n.Interface == "lo" {
			return problem(fmt.Sprintf("%s: %q is no interface name", at, n.Interface), "use up to 15 letters and digits, such as ens5")
		}
		if err := t.validateAddresses(at, n, addrs); err != nil {
			return err
		}
		if err := n.Machine.validate(at + ".machine"); err != nil {
			return err
		}
		if n.Speaker != SpeakerMuslin && n.Speaker != SpeakerBIRD2 {
			return problem(fmt.Sprintf("%s: speaker %q is unknown", at, n.Speaker), "use muslin or bird2")
		}
		known := []string{ProcessEtcd, ProcessTypha, ProcessControllers, ProcessStartup, ProcessBird, ProcessFelix, ProcessConfd, ProcessMonitor}
		for _, p := range n.Processes {
			if !slices.Contains(known, p) {
				return problem(fmt.Sprintf("%s: unknown process %q", at, p), "choose from "+strings.Join(known, ", "))
			}
		}
		if i > 0 && (n.runs(ProcessTypha) && t.Datastore == DatastoreEmbedded || n.runs(ProcessEtcd)) {
			return problem(at+": the datastore runs on the first node only", "use datastore: etcd, and typha here, for a second typha")
		}
	}
	return nil
}

func (m *Machine) validate(at string) error {
	if m == nil {
		return nil
	}
	for _, dir := range m.Dirs {
		if !filepath.IsAbs(dir) || dir != filepath.Clean(dir) || dir == "/" {
			return problem(fmt.Sprintf("%s.dirs: %q is no directory of a node", at, dir), "give an absolute path, without dots, such as /var/lib/containerd")
		}
	}
	names := map[string]bool{}
	for _, p := range m.Programs {
		if !dnsLabel.MatchString(p.Name) || names[p.Name] {
			return problem(fmt.Sprintf("%s.programs: bad name %q", at, p.Name), "give each its own, of lower-case letters, digits and dashes")
		}
		names[p.Name] = true
		if len(p.Args) == 0 || !filepath.IsAbs(p.Args[0]) {
			return problem(fmt.Sprintf("%s.programs: %s has no absolute path", at, p.Name), "begin its args with one")
		}
	}
	return nil
}

func (t *Topology) validateAddresses(at string, n Node, taken map[netip.Addr]string) error {
	if len(n.Addresses) == 0 {
		return problem(at+": no addresses", "add one out of a subnet's prefix")
	}
	if err := oneEachFamily(at+".addresses", n.Addresses, func(a netip.Addr) netip.Addr { return a }); err != nil {
		return err
	}
	var home string
	for _, a := range n.Addresses {
		s, p, ok := t.subnetOf(a)
		if !ok {
			return problem(fmt.Sprintf("%s: %s is in no subnet", at, a), "take an address out of a subnet's prefix")
		}
		if home != "" && home != s.Name {
			return problem(fmt.Sprintf("%s: its addresses are in two subnets, %s and %s", at, home, s.Name), "keep a node in one subnet")
		}
		home = s.Name
		if a == p.Addr() && a.Is4() {
			return problem(fmt.Sprintf("%s: %s is the address of the subnet itself", at, a), "take another one")
		}
		if who, dup := taken[a]; dup {
			return problem(fmt.Sprintf("%s: %s belongs to %s already", at, a, who), "give each node its own address")
		}
		taken[a] = n.Name
	}
	return nil
}

func (t *Topology) validatePods() error {
	ids := map[string]bool{}
	for i, p := range t.Pods {
		at := fmt.Sprintf("pods[%d] (%s)", i, p.id())
		if err := t.validatePod(at, p); err != nil {
			return err
		}
		if ids[p.id()] {
			return problem(at+": the name is taken", "give each pod its own")
		}
		ids[p.id()] = true
	}
	return nil
}

func (t *Topology) validatePod(at string, p Pod) error {
	if !dnsLabel.MatchString(p.Name) || !dnsLabel.MatchString(p.Namespace) {
		return problem(at+": bad name or namespace", "use lower-case letters, digits and dashes")
	}
	if _, ok := t.node(p.Node); !ok {
		return problem(fmt.Sprintf("%s: there is no node %q", at, p.Node), "nodes are "+strings.Join(t.nodeNames(), ", "))
	}
	if _, clash := t.node(p.id()); clash || p.id() == routerName || p.id() == fabricName {
		return problem(at+": a node has that name", "name pods and nodes apart, so that exec and probe know which you mean")
	}
	return nil
}

func (t *Topology) validatePools() error {
	modes := []string{"Never", "Always", "CrossSubnet"}
	for i, p := range t.Pools {
		at := fmt.Sprintf("pools[%d] (%s)", i, p.Name)
		if !p.CIDR.IsValid() {
			return problem(at+": no cidr", "add one, such as 192.168.0.0/16")
		}
		if p.CIDR != p.CIDR.Masked() {
			return problem(fmt.Sprintf("%s: cidr %s has host bits", at, p.CIDR), "write "+p.CIDR.Masked().String())
		}
		if p.BlockSize < p.CIDR.Bits() || p.BlockSize > p.CIDR.Addr().BitLen() {
			return problem(fmt.Sprintf("%s: blocks of /%d do not fit in %s", at, p.BlockSize, p.CIDR), "use a longer block prefix than the pool's")
		}
		if !slices.Contains(modes, p.IPIPMode) || !slices.Contains(modes, p.VXLANMode) {
			return problem(fmt.Sprintf("%s: ipipMode %q or vxlanMode %q is unknown", at, p.IPIPMode, p.VXLANMode), "use Never, Always or CrossSubnet")
		}
		if p.IPIPMode != "Never" && p.VXLANMode != "Never" {
			return problem(at+": both ipipMode and vxlanMode are on", "set one of them to Never")
		}
		for _, o := range t.Pools[:i] {
			if o.Name == p.Name || o.CIDR.Overlaps(p.CIDR) {
				return problem(fmt.Sprintf("%s: %s clashes with pool %s (%s)", at, p.CIDR, o.Name, o.CIDR), "give each pool its own name and range")
			}
		}
		for _, s := range t.Subnets {
			for _, sp := range s.Prefixes {
				if sp.Overlaps(p.CIDR) {
					return problem(fmt.Sprintf("%s: %s overlaps subnet %s (%s)", at, p.CIDR, s.Name, sp), "choose another range for pods")
				}
			}
		}
	}
	return nil
}

func (t *Topology) nodeNames() []string {
	names := make([]string, len(t.Nodes))
	for i, n := range t.Nodes {
		names[i] = n.Name
	}
	sort.Strings(names)
	return names
}

func oneEachFamily[T fmt.Stringer](at string, items []T, addr func(T) netip.Addr) error {
	var v4, v6 bool
	for _, it := range items {
		a := addr(it)
		switch {
		case !a.IsValid():
			return problem(at+": an address is empty", "fill it in or drop it")
		case a.Is4() && v4, a.Is6() && v6:
			return problem(fmt.Sprintf("%s: %s is the second of its family", at, it), "give at most one IPv4 and one IPv6")
		}
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return nil
}
