package cluster

import (
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/lab"
)

// Control is the machine of the control plane, which runs no pods.
const Control = "control"

// Addresses and ranges of each cluster; clusters are apart, so all can have the same.
const (
	apiPort      = 6443
	ServiceRange = "10.96.0.0/16"
	PodRange     = "192.168.0.0/16"
)

// Places on machines.
const (
	confDir    = "/etc/kubernetes"
	auditLog   = "/var/log/kubernetes/audit.log"
	containerd = "/run/containerd/containerd.sock"
)

// Programs of machines, as the lab calls them (lab.Kill, lab.Start), beside those of k8s.Program.
const (
	Etcd       = "etcd"
	Resources  = "etcd-resources"
	Containerd = "containerd"
)

// ResourcesURL is where an etcd is for resources, which wants certificates: Resources, which nobody starts but who wants it.
var ResourcesURL = "https://" + netip.AddrPortFrom(serverAddress, 2381).String()

// ResourcesFile is a file of who may use that etcd, on the machine of the control plane: ca.crt, tls.crt or tls.key.
func ResourcesFile(name string) string { return confDir + "/resources-client/" + name }

var (
	serverAddress = netip.MustParseAddr("10.40.0.10")
	serviceOne    = netip.MustParseAddr("10.96.0.1") // of the range: the API's own service
)

// Worker is the name of a worker, from 1 on.
func Worker(number int) string { return fmt.Sprintf("worker-%d", number) }

// workerAddress spreads workers over two subnets.
func workerAddress(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 40, byte((number - 1) % 2), byte(10 + number)})
}

// zone is the failure domain of a worker, one for each subnet.
func zone(number int) string { return fmt.Sprintf("zone-%d", (number-1)%2+1) }

// topology says what machines a cluster has, and what they run: pure, but for the paths that it is told.
func topology(o Options, paths map[k8s.Program]string) lab.Topology {
	t := lab.Topology{
		Subnets: []lab.Subnet{
			{Name: "zone-1", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.40.0.0/24")}},
			{Name: "zone-2", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.40.1.0/24")}},
		},
		Nodes: []lab.Node{{
			Name: Control, Addresses: []netip.Addr{serverAddress}, Interface: "eth0",
			Machine: &lab.Machine{Dirs: []string{confDir, "/var/lib/etcd", "/var/log/kubernetes"}, Programs: controlPrograms(o, paths)},
		}},
	}
	for i := 1; i <= o.Workers; i++ {
		t.Nodes = append(t.Nodes, lab.Node{
			Name: Worker(i), Addresses: []netip.Addr{workerAddress(i)}, Interface: "eth0",
			Machine: &lab.Machine{
				Dirs:     []string{confDir, "/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods"},
				Programs: workerPrograms(i, paths),
			},
		})
	}
	return t.WithDefaults()
}

func controlPrograms(o Options, paths map[k8s.Program]string) []lab.Program {
	const etcd = "http://127.0.0.1:2379"
	pki := func(of, file string) string { return confDir + "/" + of + "/" + file }
	var ranges []string
	if o.NodeRanges {
		ranges = []string{"--allocate-node-cidrs", "--cluster-cidr", PodRange}
	}
	return []lab.Program{
		{Name: Etcd, Args: []string{
			"/usr/bin/etcd", "--data-dir", "/var/lib/etcd/data", "--unsafe-no-fsync", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
			"--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-level", "warn",
		}},
		{Name: Resources, Args: []string{
			"/usr/bin/etcd", "--data-dir", "/var/lib/etcd/resources", "--unsafe-no-fsync", "--listen-client-urls", ResourcesURL, "--advertise-client-urls", ResourcesURL,
			"--cert-file", pki("resources", "tls.crt"), "--key-file", pki("resources", "tls.key"), "--trusted-ca-file", pki("resources", "ca.crt"), "--client-cert-auth",
			"--listen-peer-urls", "http://127.0.0.1:2382", "--logger", "zap", "--log-level", "warn",
		}},
		{Name: string(k8s.APIServer), Args: []string{
			paths[k8s.APIServer], "--etcd-servers", etcd, "--advertise-address", serverAddress.String(), "--secure-port", fmt.Sprint(apiPort),
			"--tls-cert-file", pki("server", "tls.crt"), "--tls-private-key-file", pki("server", "tls.key"), "--client-ca-file", pki("server", "ca.crt"),
			"--kubelet-client-certificate", pki("admin", "tls.crt"), "--kubelet-client-key", pki("admin", "tls.key"),
			"--kubelet-preferred-address-types", "InternalIP", "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
			"--service-cluster-ip-range", ServiceRange, "--service-account-issuer", "https://kubernetes.default.svc",
			"--service-account-key-file", pki("service-accounts", "tls.crt"), "--service-account-signing-key-file", pki("service-accounts", "tls.key"),
			"--allow-privileged=true", "--audit-policy-file", confDir + "/audit.yaml", "--audit-log-path", auditLog, "--v", "1",
		}},
		{Name: string(k8s.ControllerManager), Args: append([]string{
			paths[k8s.ControllerManager], "--kubeconfig", pki("controllers", "kubeconfig"), "--use-service-account-credentials",
			"--service-account-private-key-file", pki("service-accounts", "tls.key"), "--root-ca-file", pki("server", "ca.crt"),
			"--leader-elect=false", "--bind-address", "127.0.0.1", "--v", "1",
		}, ranges...)},
		{Name: string(k8s.Scheduler), Args: []string{
			paths[k8s.Scheduler], "--kubeconfig", pki("scheduler", "kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1", "--v", "1",
		}},
	}
}

func workerPrograms(number int, paths map[k8s.Program]string) []lab.Program {
	return []lab.Program{
		{Name: Containerd, Args: []string{"/usr/bin/containerd", "--config", confDir + "/containerd.toml"}},
		{Name: string(k8s.Kubelet), Args: []string{
			paths[k8s.Kubelet], "--config", confDir + "/kubelet.yaml", "--kubeconfig", confDir + "/kubelet/kubeconfig",
			"--hostname-override", Worker(number), "--node-ip", workerAddress(number).String(), "--root-dir", "/var/lib/kubelet",
			"--node-labels", "topology.kubernetes.io/zone=" + zone(number), "--v", "1",
		}},
		{Name: string(k8s.Proxy), Args: []string{paths[k8s.Proxy], "--config", confDir + "/proxy.yaml", "--v", "1"}},
	}
}
