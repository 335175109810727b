package verb

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/datastore/open"
)

func TestDisplayName(t *testing.T) {
	t.Parallel()
	require.Equal(t, "calicoctl", displayName("/usr/local/bin/calicoctl"))
	require.Equal(t, "kubectl calico", displayName("/usr/local/bin/kubectl-calico"))
}

func TestSettingsAsKubectlHasThem(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	const k, e = open.TypeKubernetes, open.TypeEtcd
	for _, test := range []struct {
		name          string
		cfg           open.Config
		plugin, inPod bool
		file          string
		want          open.Config
	}{
		{"etcd stays etcd", open.Config{Type: e}, false, false, file, open.Config{Type: e}},
		{"a plugin means Kubernetes", open.Config{Type: e}, true, false, file, open.Config{Type: k, Kubeconfig: file}},
		{"unless an etcd is named", open.Config{Type: e, EtcdEndpoints: "http://a:1"}, true, false, file, open.Config{Type: e, EtcdEndpoints: "http://a:1"}},
		{"the user's file", open.Config{Type: k}, false, false, file, open.Config{Type: k, Kubeconfig: file}},
		{"not in a pod", open.Config{Type: k}, false, true, file, open.Config{Type: k}},
		{"another file", open.Config{Type: k, Kubeconfig: "mine"}, false, false, file, open.Config{Type: k, Kubeconfig: "mine"}},
		{"an address", open.Config{Type: k, K8sAPIEndpoint: "https://a:1"}, false, false, file, open.Config{Type: k, K8sAPIEndpoint: "https://a:1"}},
		{"no file", open.Config{Type: k}, false, false, file + "x", open.Config{Type: k}},
	} {
		require.Equal(t, test.want, asKubectl(test.cfg, test.plugin, test.file, test.inPod), test.name)
	}
}
