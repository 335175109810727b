package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Ports and addresses of the cluster-wide processes on the first node.
const (
	typhaPort = 5473
	etcdPort  = 2379
)

// healthPorts are where processes tell on loopback whether they are ready; felix's and bird's are those that calico-node's
// probes ask.
var healthPorts = map[string]uint16{ProcessBird: 9097, ProcessTypha: 9098, ProcessFelix: 9099, ProcessControllers: 9095}

func healthAddr(process string) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), healthPorts[process])
}

// binaries lists the programs that a topology needs in the bin directory.
func binaries(t Topology) []string {
	var names []string
	need := map[string]bool{}
	for _, n := range t.Nodes {
		for _, p := range n.Processes {
			need[p] = need[p] || p != ProcessEtcd && (p != ProcessBird || n.Speaker != SpeakerBIRD2)
		}
	}
	for _, p := range []string{ProcessTypha, ProcessControllers, ProcessStartup, ProcessBird, ProcessFelix, ProcessConfd} {
		if need[p] {
			names = append(names, p)
		}
	}
	if need[ProcessFelix] {
		names = append(names, "calico", "calico-ipam")
	}
	if need[ProcessTypha] {
		names = append(names, "calicoctl")
	}
	return names
}

// typhas are the addresses that nodes dial, in the order of the topology.
func (t *Topology) typhas() []string {
	var as []string
	for _, n := range t.Nodes {
		if n.runs(ProcessTypha) {
			as = append(as, netip.AddrPortFrom(n.Addresses[0], typhaPort).String())
		}
	}
	return as
}

// etcdAddr is where the cluster's etcd listens on the first node: an embedded one on loopback, for calicoctl there; one of
// its own on the node's address, for any typha.
func (t *Topology) etcdAddr() netip.AddrPort {
	if t.Datastore == DatastoreEmbedded {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), etcdPort)
	}
	return netip.AddrPortFrom(t.Nodes[0].Addresses[0], etcdPort)
}

func (t *Topology) etcdURL() string { return "http://" + t.etcdAddr().String() }

// commandOf says how a process of a node is run.
func (s *supervisor) commandOf(n Node, process string) command {
	c := command{name: process, path: filepath.Join(s.config.BinDir, process), env: s.nodeEnv(n)}
	tls := []string{"--ca", pkiDir + "/ca.crt", "--cert", pkiDir + "/tls.crt", "--key", pkiDir + "/tls.key"}
	client := append([]string{"--node", n.Name, "--typha", strings.Join(s.topology.typhas(), ",")}, tls...)
	switch process {
	case ProcessEtcd:
		c.path = etcdBinary
		url := s.topology.etcdURL()
		c.args = []string{
			"--name", n.Name, "--data-dir", "/var/lib/calico/etcd",
			"--listen-client-urls", url, "--advertise-client-urls", url,
			"--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-level", "warn",
		}
	case ProcessTypha:
		c.args = []string{
			"--listen", fmt.Sprintf(":%d", typhaPort),
			"--ca", typhaPKIDir + "/ca.crt", "--cert", typhaPKIDir + "/tls.crt", "--key", typhaPKIDir + "/tls.key",
			"--health", healthAddr(process).String(),
		}
		if all := s.topology.typhas(); len(all) > 1 {
			c.args = append(c.args, "--replicas", strings.Join(ownFirst(all, n), ","))
		}
		if s.topology.Datastore == DatastoreEmbedded {
			c.args = append(c.args, "--datastore", "embedded", "--datastore-dir", "/var/lib/calico/datastore",
				"--datastore-listen", s.topology.etcdAddr().String())
		} else {
			c.args = append(c.args, "--datastore", "etcdv3", "--datastore-endpoints", s.topology.etcdURL())
		}
	case ProcessControllers:
		c.args = []string{"--datastore", "etcdv3", "--datastore-endpoints", s.topology.etcdURL(), "--health", healthAddr(process).String()}
	case ProcessStartup:
		c.args = append([]string{"-startup"}, client...)
		c.once = true
	case ProcessMonitor:
		c.path = filepath.Join(s.config.BinDir, ProcessStartup)
		c.args = append([]string{"-monitor-addresses"}, client...)
	case ProcessFelix:
		c.args = append(client, "--health", healthAddr(process).String())
	case ProcessConfd:
		c.args = client
		if n.Speaker == SpeakerBIRD2 { // BIRD's health is what confd says of it
			c.args = append(c.args, "--health", healthAddr(ProcessBird).String())
		}
	case ProcessBird:
		if n.Speaker == SpeakerBIRD2 {
			return s.bird2(c)
		}
		c.args = []string{"--health", healthAddr(process).String()}
	}
	return c
}

// Places of BIRD 2 on a node: those that confd writes and asks without being told others.
const (
	bird2Binary = "/usr/sbin/bird"
	bird2File   = "/etc/calico/bird2.conf"
	bird2Socket = "/run/calico/bird2.ctl"
)

// bird2 runs the machine's BIRD 2 as soon as confd has written what it is to do. It begins in recovery mode, so that a new
// start keeps the kernel's routes.
func (s *supervisor) bird2(c command) command {
	c.path = "/bin/sh"
	c.args = []string{"-c", fmt.Sprintf("until [ -s %s ]; do sleep 0.05; done; exec %s -f -R -c %s -s %s", bird2File, bird2Binary, bird2File, bird2Socket)}
	return c
}

// ownFirst moves a node's own address to the front.
func ownFirst(addrs []string, n Node) []string {
	own := netip.AddrPortFrom(n.Addresses[0], typhaPort).String()
	return append([]string{own}, slices.DeleteFunc(slices.Clone(addrs), func(a string) bool { return a == own })...)
}

// etcdBinary is Debian's etcd-server.
const etcdBinary = "/usr/bin/etcd"

// baseEnv is the environment of each program in the lab.
func (s *supervisor) baseEnv() []string {
	env := []string{
		envState + "=" + s.config.StateDir,
		"PATH=" + s.config.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
	}
	for _, keep := range []string{"TERM", "LANG", "TZ"} {
		if v, ok := os.LookupEnv(keep); ok {
			env = append(env, keep+"="+v)
		}
	}
	return env
}

// nodeEnv is the environment of each process of a node.
func (s *supervisor) nodeEnv(n Node) []string {
	env := append(s.baseEnv(), "NODENAME="+n.Name, "CALICO_NETWORKING_BACKEND="+string(s.currentBackend()), "CALICO_BGP_SPEAKER="+string(n.Speaker))
	if len(s.topology.Pools) > 0 {
		env = append(env, "NO_DEFAULT_POOLS=true")
	}
	if !n.has(false) {
		env = append(env, "IP=none")
	}
	if n.has(true) { // calico-node looks for IPv4 unasked, for IPv6 only if it is told to
		env = append(env, "IP6=autodetect")
	}
	for _, k := range slices.Sorted(maps.Keys(n.Env)) {
		env = append(env, k+"="+n.Env[k])
	}
	return env
}

// shellEnv is the environment of what a user runs on a node. On the first one it lets calicoctl reach the datastore, and typha
// as an operator.
func (s *supervisor) shellEnv(n Node) []string {
	if n.Machine != nil {
		return s.baseEnv()
	}
	env := s.nodeEnv(n)
	if n.Name == s.topology.Nodes[0].Name {
		env = append(env, "DATASTORE_TYPE=etcdv3", "ETCD_ENDPOINTS="+s.topology.etcdURL(), "CALICO_TYPHA="+strings.Join(s.topology.typhas(), ","))
	}
	return env
}
