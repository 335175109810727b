package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/muslin-net/muslin/integration/lab/pki"
)

// machine is a node: its namespaces and its directory on disk.
type machine struct {
	node  Node
	space *space
	dir   string
	port  string // its port on the fabric
}

// Places inside a node's mount namespace.
const (
	pkiDir      = "/etc/calico/pki"      // the node's own certificate
	typhaPKIDir = "/etc/calico/typha"    // typha's, where it runs
	operatorDir = "/etc/calico/operator" // an operator's, on the first node
	cniConfDir  = "/etc/cni/net.d"
	netnsDir    = "/run/netns"
)

// nodeDir is where a node's files lie, as the machine sees them.
func nodeDir(stateDir, node string) string { return filepath.Join(stateDir, "nodes", node) }

// logPath is the file with a process's output, as the machine sees it.
func logPath(stateDir, node, process string) string {
	return filepath.Join(nodeDir(stateDir, node), "var-log-calico", process+".log")
}

// prepareNode lays out a node's directory.
func prepareNode(stateDir string, n Node, hosts string) error {
	dir := nodeDir(stateDir, n.Name)
	for _, d := range n.dirs() {
		if err := os.MkdirAll(filepath.Join(dir, d.sub), 0o755); err != nil {
			return err
		}
	}
	for _, sub := range []string{"run/netns", "run/lock", "run/calico", "etc-cni/net.d", "opt-cni/bin"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts), 0o644)
}

// hostsFile names all nodes for each node's /etc/hosts.
func hostsFile(t Topology) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, n := range t.Nodes {
		for _, a := range n.Addresses {
			fmt.Fprintf(&b, "%s %s\n", a, n.Name)
		}
	}
	return b.String()
}

// writeCertificates gives each process the identity it needs, and no other.
func writeCertificates(stateDir string, t Topology, ca *pki.CA, issue func(pki.Role) (pki.Pair, error)) error {
	caDir := filepath.Join(stateDir, "pki")
	if err := os.MkdirAll(caDir, 0o700); err != nil {
		return err
	}
	if err := ca.Write(caDir); err != nil {
		return err
	}
	for i, n := range t.Nodes {
		if n.Machine != nil {
			continue
		}
		roles := map[string]pki.Role{"pki": pki.Node(n.Name)}
		if n.runs(ProcessTypha) {
			roles["typha"] = pki.Typha(append([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, n.Addresses...)...)
		}
		if i == 0 {
			roles["operator"] = pki.Operator("lab")
		}
		for sub, role := range roles {
			pair, err := issue(role)
			if err != nil {
				return err
			}
			if err := pair.Write(filepath.Join(nodeDir(stateDir, n.Name), "etc-calico", sub)); err != nil {
				return err
			}
		}
	}
	return nil
}

// buildMachine makes a node's namespaces and plugs it into the fabric.
func (s *supervisor) buildMachine(index int) (*machine, error) {
	n := s.topology.Nodes[index]
	dir := nodeDir(s.config.StateDir, n.Name)
	sp, err := newMachine(n.Name, func() error { return mountNode(dir, n) })
	if err != nil {
		return nil, err
	}
	if err := setForwarding(sp, false); err != nil {
		return nil, err
	}
	var addrs []netip.Prefix
	var gateways []netip.Addr
	for _, a := range n.Addresses {
		sub, p, _ := s.topology.subnetOf(a)
		addrs = append(addrs, netip.PrefixFrom(a, p.Bits()))
		gateways = append(gateways, sub.gatewayFor(p))
	}
	port := portName(n.Name, index)
	if s.topology.checks(n) {
		if err := s.fabric.cloud.check(port, n.Addresses, true); err != nil {
			return nil, err
		}
	}
	if err := s.fabric.plug(s.subnetIndex(n), port, sp, n.Interface, addrs); err != nil {
		return nil, err
	}
	return &machine{node: n, space: sp, dir: dir, port: port}, defaultRoutes(sp, gateways)
}

// buildRouter makes the namespace that joins the subnets. It forwards between them and knows nothing else, as the
// routers of a cloud do: no route to a pod is ever put there, and it neither takes nor gives hints (redirects, router
// advertisements, source routes) by which it could come to one.
func (s *supervisor) buildRouter() error {
	sp, err := newMachine(routerName, mountSys)
	if err != nil {
		return err
	}
	s.router = sp
	if err := setForwarding(sp, true); err != nil {
		return err
	}
	if err := sp.do(deafRouter); err != nil {
		return err
	}
	for i, sub := range s.topology.Subnets {
		var addrs []netip.Prefix
		for _, p := range sub.Prefixes {
			addrs = append(addrs, netip.PrefixFrom(sub.gatewayFor(p), p.Bits()))
		}
		iface := fmt.Sprintf("eth%d", i)
		if err := s.fabric.plug(i, fmt.Sprintf("router%d", i), sp, iface, addrs); err != nil {
			return err
		}
	}
	return nil
}

// deafRouter sets what makes a router stick to its own routes. It says at once, and each time, what it cannot route: a
// probe should not wait for what will not come.
func deafRouter() error {
	settings := []struct{ name, value string }{
		{"ipv4/icmp_ratelimit", "0"},
		{"ipv4/conf/*/accept_redirects", "0"},
		{"ipv4/conf/*/send_redirects", "0"},
		{"ipv4/conf/*/accept_source_route", "0"},
		{"ipv6/icmp/ratelimit", "0"},
		{"ipv6/conf/*/accept_redirects", "0"},
		{"ipv6/conf/*/accept_ra", "0"},
	}
	for _, set := range settings {
		paths, err := filepath.Glob("/proc/sys/net/" + set.name) // none of a family that the kernel lacks
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := os.WriteFile(path, []byte(set.value), 0); err != nil {
				return fmt.Errorf("set up the router: %w", err)
			}
		}
	}
	return nil
}

func (s *supervisor) subnetIndex(n Node) int {
	home, _, _ := s.topology.subnetOf(n.Addresses[0])
	for i, sub := range s.topology.Subnets {
		if sub.Name == home.Name {
			return i
		}
	}
	return 0
}
