package install

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// standard is the configuration of a node of Kubernetes: calico, and portmap for host ports. What a runtime says of a pod is
// asked for by capabilities.
const standard = `{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
  "plugins": [
    {
      "type": "calico",
      "nodename": "__KUBERNETES_NODE_NAME__",
      "log_level": "info",
      "mtu": __CNI_MTU__,
      "ipam": {"type": "calico-ipam"},
      "policy": {"type": "k8s"},
      "capabilities": {"bandwidth": true, "ips": true, "mac": true, "io.kubernetes.cri.pod-annotations": true}
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    }
  ]
}
`

var placeholder = regexp.MustCompile(`__[A-Z0-9_]+?__`)

// Conflist is a network configuration list made of a template, the standard one if it is empty, with its placeholders
// replaced (spec §6.1). One that is left is an error, as is a result that no runtime would take.
func Conflist(template string, getenv func(string) string) ([]byte, error) {
	if template == "" {
		template = standard
	}
	mtu := getenv("CNI_MTU")
	if mtu == "" {
		mtu = "0" // felix knows it
	}
	if _, err := strconv.ParseUint(mtu, 10, 16); err != nil {
		return nil, fmt.Errorf("environment variable CNI_MTU: %q is not an MTU; write a number of bytes, or 0 to follow the network between the nodes", mtu)
	}
	nodename := cmp.Or(getenv("KUBERNETES_NODE_NAME"), getenv("NODENAME"))
	text := strings.NewReplacer(
		"__KUBERNETES_NODE_NAME__", nodename, "__CNI_MTU__", mtu,
		// There is no credential on the host: templates that name one get the file's name, and the plugin does not read it.
		"__KUBECONFIG_FILEPATH__", path.Join(cmp.Or(getenv("CNI_NET_DIR"), "/etc/cni/net.d"), "calico-kubeconfig"),
		"__KUBECONFIG_FILENAME__", "calico-kubeconfig", "__SERVICEACCOUNT_TOKEN__", "",
		"__KUBERNETES_SERVICE_HOST__", getenv("KUBERNETES_SERVICE_HOST"), "__KUBERNETES_SERVICE_PORT__", getenv("KUBERNETES_SERVICE_PORT"),
		"__LOG_LEVEL__", "info", "__ETCD_ENDPOINTS__", getenv("ETCD_ENDPOINTS"),
		"__ETCD_KEY_FILE__", "", "__ETCD_CERT_FILE__", "", "__ETCD_CA_CERT_FILE__", "",
	).Replace(template)
	if left := placeholder.FindString(text); left != "" {
		return nil, fmt.Errorf("CNI network configuration: nobody knows what to put for %s; known are __KUBERNETES_NODE_NAME__, __CNI_MTU__ and the like", left)
	}
	var list struct {
		Name    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("CNI network configuration is not valid JSON: %w", err)
	}
	switch {
	case list.Name == "":
		return nil, fmt.Errorf(`CNI network configuration: key "name" is missing; give the network a name such as k8s-pod-network`)
	case len(list.Plugins) == 0:
		return nil, fmt.Errorf(`CNI network configuration: it has no "plugins"; a list is wanted, whose first plugin is of type calico`)
	case slices.ContainsFunc(list.Plugins, func(p struct{ Type string }) bool { return p.Type == "" }):
		return nil, fmt.Errorf(`CNI network configuration: a plugin has no "type"`)
	}
	return []byte(text), nil
}
