package verb

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/muslin-net/muslin/datastore/open"
)

// plugin is the name of the binary under which kubectl finds it, as "kubectl calico".
const plugin = "kubectl-calico"

// isPlugin tells whether the program was started as kubectl's.
func isPlugin(path string) bool { return strings.HasPrefix(filepath.Base(path), plugin) }

// displayName is what the program calls itself in usage texts, by the name that it was started under.
func displayName(path string) string {
	if isPlugin(path) {
		return strings.Replace(plugin, "-", " ", 1)
	}
	return "calicoctl"
}

// settings are those of the file or the environment, and of the command line, which wins.
func (g *globals) settings() (open.Config, error) {
	cfg, err := open.Load(g.config, os.LookupEnv)
	if err != nil {
		return cfg, err
	}
	if g.context != "" {
		cfg.K8sContext = g.context
	}
	home, _ := os.UserHomeDir() // without one there is no file in it either
	_, inPod := os.LookupEnv("KUBERNETES_SERVICE_HOST")
	cfg = asKubectl(cfg, isPlugin(os.Args[0]), filepath.Join(home, ".kube", "config"), inPod)
	cfg.Logger, err = g.logger()
	return cfg, err
}

// asKubectl has a user find Kubernetes where kubectl does: as a plugin without an etcd named anywhere, Kubernetes is meant; and
// where no API server is named, the one in the user's own kubeconfig.
func asKubectl(cfg open.Config, plugin bool, kubeconfig string, inPod bool) open.Config {
	if plugin && cfg.Type == open.TypeEtcd && cfg.EtcdEndpoints == "" && cfg.EtcdDiscoverySRV == "" {
		cfg.Type = open.TypeKubernetes
	}
	named := cfg.Kubeconfig != "" || cfg.KubeconfigInline != "" || cfg.K8sAPIEndpoint != ""
	if cfg.Type != open.TypeKubernetes || named || inPod {
		return cfg
	}
	if info, err := os.Stat(kubeconfig); err == nil && info.Mode().IsRegular() {
		cfg.Kubeconfig = kubeconfig
	}
	return cfg
}
