package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/muslin-net/muslin/deploy/image"
	"github.com/muslin-net/muslin/integration/lab/pki"
)

// place is where a directory of a machine lies for this one.
func place(stateDir, machine, dir string) string {
	return filepath.Join(stateDir, "nodes", machine, strings.ReplaceAll(dir[1:], "/", "-"))
}

// writeFiles gives all machines their certificates and configurations.
func writeFiles(cgroups, stateDir string, workers int) error {
	now := time.Now()
	ca, err := pki.NewCA("kubernetes", now)
	if err != nil {
		return err
	}
	type user struct {
		machine, dir string
		role         pki.Role
	}
	users := []user{
		{Control, "server", pki.Role{
			CommonName: "kube-apiserver", Server: true,
			DNS: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"}, IPs: []netip.Addr{serverAddress, serviceOne, netip.MustParseAddr("127.0.0.1")},
		}},
		{Control, "service-accounts", pki.Role{CommonName: "service-accounts"}},
		{Control, "resources", pki.Role{CommonName: "etcd", Server: true, IPs: []netip.Addr{serverAddress}}},
		{Control, "resources-client", pki.Role{CommonName: "muslin"}},
		{Control, "admin", pki.Role{CommonName: "admin", Group: "system:masters"}},
		{Control, "controllers", pki.Role{CommonName: "system:kube-controller-manager"}},
		{Control, "scheduler", pki.Role{CommonName: "system:kube-scheduler"}},
	}
	for i := 1; i <= workers; i++ {
		users = append(users,
			user{Worker(i), "kubelet", pki.Role{
				CommonName: "system:node:" + Worker(i), Group: "system:nodes", Server: true, DNS: []string{Worker(i)}, IPs: []netip.Addr{workerAddress(i)},
			}},
			user{Worker(i), "proxy", pki.Role{CommonName: "system:kube-proxy"}})
	}
	for _, u := range users {
		pair, err := ca.Issue(u.role, now)
		if err != nil {
			return err
		}
		dir := filepath.Join(place(stateDir, u.machine, confDir), u.dir)
		if err := errors.Join(pair.Write(dir), os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(kubeconfig(confDir+"/"+u.dir)), 0o600)); err != nil {
			return err
		}
	}
	files := map[string]string{filepath.Join(place(stateDir, Control, confDir), "audit.yaml"): auditPolicy}
	for i := 1; i <= workers; i++ {
		dir := place(stateDir, Worker(i), confDir)
		files[filepath.Join(dir, "containerd.toml")] = containerdConfig
		files[filepath.Join(dir, "kubelet.yaml")] = kubeletConfig(cgroupOf(cgroups, Worker(i)))
		files[filepath.Join(dir, "proxy.yaml")] = proxyConfig(Worker(i))
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// kubeconfig is one that uses the certificate in a directory of the machine.
func kubeconfig(dir string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: kubernetes, cluster: {server: "https://%s", certificate-authority: %[2]s/ca.crt}}]
users: [{name: user, user: {client-certificate: %[2]s/tls.crt, client-key: %[2]s/tls.key}}]
contexts: [{name: kubernetes, context: {cluster: kubernetes, user: user}}]
current-context: kubernetes
`, netip.AddrPortFrom(serverAddress, apiPort), dir)
}

// auditPolicy has the server write down who asked for what, once for each request; of a watch, when it begins.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
`

// kubeletConfig: the kubelet may neither run out of what this machine has little of, nor look for what it lacks (cgroups of
// the second version, a resolver, negative OOM scores).
func kubeletConfig(cgroup string) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%s
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: %[2]s/kubelet/ca.crt}}
authorization: {mode: AlwaysAllow}
tlsCertFile: %[2]s/kubelet/tls.crt
tlsPrivateKeyFile: %[2]s/kubelet/tls.key
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
enforceNodeAllocatable: [pods]
failSwapOn: false
localStorageCapacityIsolation: false
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
oomScoreAdj: 0
resolvConf: ""
clusterDNS: [10.96.0.10]
staticPodPath: %[2]s/manifests
fileCheckFrequency: 1s
# A suite waits for volumes and for pods that are to go.
syncFrequency: 10s
`, containerd, confDir, cgroup)
}

func proxyConfig(node string) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %s/proxy/kubeconfig}
clusterCIDR: %s
hostnameOverride: %s
# Settings of the whole machine, which a machine of a lab may not touch.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 100ms}
`, confDir, PodRange, node)
}

var containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + image.Canonical(WorkloadImage) + `"
  disable_apparmor = true
  # Lower scores than this machine's own programs have may be forbidden to them.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`
