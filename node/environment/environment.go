// Package environment knows the variables that a node's containers are given: those of Calico's manifests and our own, what
// each does here, and which have no effect and why. It is pure. docs/node.md has the same table for people.
package environment

import (
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/spelling"
)

// Variable is one of them.
type Variable struct {
	Name string
	// Readers are the programs that read it, by their folders; none if it has no effect.
	Readers []string
	// Does is what it does, or why it has no effect.
	Does string
}

// All lists the variables in the order in which people look for them.
func All() []Variable {
	return slices.Concat(identity, addresses, pools, typha, daemons, installer, ignored)
}

var identity = []Variable{
	{"NODENAME", []string{"node", "felix", "confd"}, "name of the node; without it calico-node takes what an earlier start left, then `HOSTNAME`"},
	{"FELIX_FELIXHOSTNAME", []string{"felix"}, "the same for felix alone"},
	{"HOSTNAME", []string{"node"}, "name of the node in lower case, if nothing else says it"},
	{"CALICO_K8S_NODE_REF", []string{"node"}, "name of the Kubernetes node, for `orchRefs`"},
	{"CALICO_NETWORKING_BACKEND", []string{"node", "felix", "confd", "bird"}, "`bird` (BGP), `vxlan` (no BGP: bird and confd idle, their probes pass), `none` (policy only: no addresses, no pools)"},
	{"CALICO_BGP_SPEAKER", []string{"felix", "confd"}, "`muslin` (our bird) or `bird2` (BIRD 2, which you run)"},
	{"CALICO_STARTUP_LOGLEVEL", []string{"node"}, "how much calico-node logs: `debug`, `info`, `warning`, `error`"},
}

var addresses = []Variable{
	{"IP", []string{"node"}, "the node's IPv4 address: `autodetect`, `none`, ADDRESS or ADDRESS/LENGTH; unset: detect unless one is stored"},
	{"IP6", []string{"node"}, "the node's IPv6 address, by the same words; unset: none"},
	{"IP_AUTODETECTION_METHOD", []string{"node"}, "`first-found`, `interface=`, `skip-interface=`, `cidr=`, `can-reach=`, `kubernetes-internal-ip`"},
	{"IP6_AUTODETECTION_METHOD", []string{"node"}, "the same for IPv6"},
	{"NODE_IPS", []string{"node"}, "what `kubernetes-internal-ip` goes by: `status.hostIPs` of the downward API"},
	{"AUTODETECT_POLL_INTERVAL", []string{"node"}, "how often addresses are looked at beside what the kernel tells; 60s"},
	{"DISABLE_NODE_IP_CHECK", []string{"node"}, "`true` registers an address that another node has"},
	{"AS", []string{"node"}, "AS number of the node"},
	{"CALICO_ROUTER_ID", []string{"confd"}, "router id of BGP: an address, or `hash`"},
}

var pools = []Variable{
	{"NO_DEFAULT_POOLS", []string{"node"}, "`true` proposes no pools"},
	{"CALICO_IPV4POOL_CIDR", []string{"node"}, "range of the first IPv4 pool; 192.168.0.0/16, or the first of 172.16.0.0/12 that the host does not use"},
	{"CALICO_IPV4POOL_IPIP", []string{"node"}, "`Always`, `CrossSubnet`, `Never`; Always unless VXLAN is asked for"},
	{"CALICO_IPV4POOL_VXLAN", []string{"node"}, "`Always`, `CrossSubnet`, `Never`"},
	{"CALICO_IPV4POOL_BLOCK_SIZE", []string{"node"}, "20 to 32; 26"},
	{"CALICO_IPV4POOL_NAT_OUTGOING", []string{"node"}, "`true` or `false`; true"},
	{"CALICO_IPV4POOL_NODE_SELECTOR", []string{"node"}, "nodes that may use the pool; all()"},
	{"CALICO_IPV4POOL_DISABLE_BGP_EXPORT", []string{"node"}, "`true` or `false`; false"},
	{"CALICO_IPV6POOL_CIDR", []string{"node"}, "range of the first IPv6 pool, made if `IP6` asks for IPv6; a random unique local /48"},
	{"CALICO_IPV6POOL_VXLAN", []string{"node"}, "as for IPv4"},
	{"CALICO_IPV6POOL_IPIP", []string{"node"}, "only `Never`: IP-in-IP carries IPv4"},
	{"CALICO_IPV6POOL_BLOCK_SIZE", []string{"node"}, "116 to 128; 122"},
	{"CALICO_IPV6POOL_NAT_OUTGOING", []string{"node"}, "`true` or `false`; false"},
	{"CALICO_IPV6POOL_NODE_SELECTOR", []string{"node"}, "as for IPv4"},
	{"CALICO_IPV6POOL_DISABLE_BGP_EXPORT", []string{"node"}, "as for IPv4"},
}

var typha = []Variable{
	{"FELIX_TYPHAK8SSERVICENAME", []string{"typha/client"}, "service of typha in the pod's namespace, whose address is in the container's environment; unset and `none`: calico-typha"},
	{"FELIX_TYPHAADDR", []string{"typha/client"}, "addresses of typha as host:port, in place of the service"},
	{"FELIX_TYPHACN", []string{"typha/client"}, "name in typha's certificate; typha"},
	{"FELIX_TYPHACAFILE", []string{"typha/client"}, "CA certificate; /var/run/calico/pki/ca.crt"},
	{"FELIX_TYPHACERTFILE", []string{"typha/client"}, "the node's certificate; /var/run/calico/pki/tls.crt"},
	{"FELIX_TYPHAKEYFILE", []string{"typha/client"}, "its key; /var/run/calico/pki/tls.key"},
	{"ENROLL_TOKENFILE", []string{"node"}, "service-account token to enrol with; /var/run/secrets/typha/token"},
	{"ENROLL_CAFILE", []string{"node"}, "CA to show it to; /etc/calico/typha-ca/ca.crt"},
	{"ENROLL_JOINTOKENFILE", []string{"node"}, "join token to enrol with where there is no Kubernetes"},
}

var daemons = []Variable{
	{"FELIX_HEALTHENABLED", []string{"felix"}, "`true` serves felix's health, which the probes ask"},
	{"FELIX_HEALTHHOST", []string{"felix", "node"}, "where; localhost"},
	{"FELIX_HEALTHPORT", []string{"felix", "node"}, "where; 9099"},
	{"FELIX_PROMETHEUSMETRICSENABLED", []string{"felix"}, "`true` serves felix's metrics"},
	{"FELIX_PROMETHEUSMETRICSHOST", []string{"felix"}, "where; every address of the node"},
	{"FELIX_PROMETHEUSMETRICSPORT", []string{"felix"}, "where; 9091"},
	{"FELIX_LOGSEVERITYSCREEN", []string{"felix"}, "how much felix logs; unset: what FelixConfiguration says"},
	{"FELIX_IPIPDRIVER", []string{"felix"}, "what carries IP-in-IP: `Auto`, `Kernel`, `BPF`"},
	{"FELIX_WARMPOOLSIZE", []string{"felix"}, "most addresses held ready for pods; 64"},
	{"BIRD_HEALTHADDR", []string{"bird", "node"}, "where bird serves health and metrics; localhost:9097"},
	{"BIRD_PEER_METRICS", []string{"bird"}, "`individual`, `aggregate` or `auto`"},
	{"BGP_LOGSEVERITYSCREEN", []string{"confd"}, "how much bird and confd log; unset: what BGPConfiguration says"},
}

var installer = []Variable{
	{"CNI_CONF_NAME", []string{"node"}, "file to write; 10-calico.conflist"},
	{"CNI_OLD_CONF_NAME", []string{"node"}, "file of an earlier installation, removed once the new one is there"},
	{"CNI_NETWORK_CONFIG", []string{"node"}, "its content, a template; unset: the standard one"},
	{"CNI_NETWORK_CONFIG_FILE", []string{"node"}, "file with the template"},
	{"CNI_MTU", []string{"node"}, "for `__CNI_MTU__`; 0, which follows the network between the nodes"},
	{"CNI_NET_DIR", []string{"node"}, "the host's name for the directory of configurations, for `__KUBECONFIG_FILEPATH__`; /etc/cni/net.d"},
	{"KUBERNETES_NODE_NAME", []string{"node"}, "for `__KUBERNETES_NODE_NAME__`; `NODENAME`"},
	{"SKIP_CNI_BINARIES", []string{"node"}, "plugins that are not installed, separated by commas"},
	{"UPDATE_CNI_BINARIES", []string{"node"}, "`false` leaves plugins that are there; `true` replaces others' plugins too"},
	{"SLEEP", []string{"node"}, "`true` does not end after installing; false"},
}

const (
	noDatastore = "nodes have no datastore, only typha has; set it there"
	noFiles     = "logs go to standard error, where the container runtime keeps them"
)

var ignored = []Variable{
	{Name: "WAIT_FOR_DATASTORE", Does: "start-up always waits, for typha"},
	{Name: "DATASTORE_TYPE", Does: noDatastore},
	{Name: "ETCD_ENDPOINTS", Readers: []string{"node"}, Does: "for `__ETCD_ENDPOINTS__` of the CNI template; else none: " + noDatastore},
	{Name: "ETCD_CA_CERT_FILE", Does: noDatastore},
	{Name: "ETCD_CERT_FILE", Does: noDatastore},
	{Name: "ETCD_KEY_FILE", Does: noDatastore},
	{Name: "ETCD_DISCOVERY_SRV", Does: noDatastore},
	{Name: "CLUSTER_TYPE", Does: "kube-controllers write the type of the cluster; set it there"},
	{Name: "USE_POD_CIDR", Does: "the ranges that Kubernetes gives to nodes are known always; `usePodCidr` in the CNI configuration uses them"},
	{Name: "CALICO_DISABLE_FILE_LOGGING", Does: noFiles},
	{Name: "CALICO_MANAGE_CNI", Does: "the CNI plugin has no credential to renew"},
	{Name: "CALICO_ADVERTISE_CLUSTER_IPS", Does: "typha computes what is announced; set it there, or use BGPConfiguration"},
	{Name: "FELIX_TYPHAK8SNAMESPACE", Does: "the service is looked for in the pod's own namespace"},
	{Name: "FELIX_TYPHAURISAN", Does: "typha is known by the name in its certificate (`FELIX_TYPHACN`)"},
	{Name: "FELIX_DATASTORETYPE", Does: noDatastore},
	{Name: "CNI_BIN_DIR", Does: "mount the host's directory at /host/opt/cni/bin"},
	{Name: "SKIP_TLS_VERIFY", Does: "the CNI plugin speaks to felix on its node alone"},
	{Name: "KUBECONFIG_FILE_NAME", Does: "no kubeconfig is written to the host"},
}

// Notes says what of an environment, as os.Environ has it, has no effect, one line for each variable.
func Notes(environ []string) (notes []string) {
	known := All()
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(entry, "=")
		if value == "" {
			continue
		}
		i := slices.IndexFunc(known, func(v Variable) bool { return v.Name == name })
		switch {
		case i >= 0 && len(known[i].Readers) == 0:
			notes = append(notes, fmt.Sprintf("environment variable %s has no effect: %s", name, plain(known[i].Does)))
		case i < 0 && (strings.HasPrefix(name, "CALICO_IPV4POOL_") || strings.HasPrefix(name, "CALICO_IPV6POOL_")):
			notes = append(notes, fmt.Sprintf("environment variable %s is not known; did you mean %s?", name, nearest(name)))
		}
	}
	return notes
}

func nearest(name string) string {
	return slices.MinFunc(All(), func(a, b Variable) int {
		return spelling.Distance(a.Name, name) - spelling.Distance(b.Name, name)
	}).Name
}

func plain(text string) string { return strings.ReplaceAll(text, "`", "") }

// Table is the list in Markdown.
func Table() string {
	var b strings.Builder
	b.WriteString("| variable | read by | what it does |\n|---|---|---|\n")
	for _, v := range All() {
		by := strings.Join(v.Readers, ", ")
		switch {
		case by == "":
			by = "nobody"
		case v.Readers[0] == "node":
			by = strings.Replace(by, "node", "calico-node", 1)
		case v.Readers[0] == "typha/client":
			by = "calico-node, felix, confd"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, by, v.Does)
	}
	return b.String()
}
