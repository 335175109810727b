package open

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/datastore"
)

func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func TestFromEnvironment(t *testing.T) {
	for _, test := range []struct {
		name string
		vars map[string]string
		want Config
	}{
		{"nothing", nil, Config{Type: "etcdv3"}},
		{"empty means unset", map[string]string{"DATASTORE_TYPE": "", "USE_POD_CIDR": ""}, Config{Type: "etcdv3"}},
		{"etcd", map[string]string{
			"DATASTORE_TYPE": "etcdv3", "ETCD_ENDPOINTS": "https://a:2379,https://b:2379", "ETCD_DISCOVERY_SRV": "example.org",
			"ETCD_USERNAME": "u", "ETCD_PASSWORD": "p", "ETCD_CERT_FILE": "c", "ETCD_KEY_FILE": "k", "ETCD_CA_CERT_FILE": "a",
		}, Config{
			Type: "etcdv3", EtcdEndpoints: "https://a:2379,https://b:2379", EtcdDiscoverySRV: "example.org",
			EtcdUsername: "u", EtcdPassword: "p", EtcdCertFile: "c", EtcdKeyFile: "k", EtcdCAFile: "a",
		}},
		{"the prefix wins", map[string]string{"CALICO_ETCD_ENDPOINTS": "http://new:2379", "ETCD_ENDPOINTS": "http://old:2379"}, Config{Type: "etcdv3", EtcdEndpoints: "http://new:2379"}},
		{"kubernetes", map[string]string{
			"CALICO_DATASTORE_TYPE": "kubernetes", "KUBECONFIG": "f", "K8S_API_ENDPOINT": "e", "K8S_CERT_FILE": "c", "K8S_KEY_FILE": "k",
			"K8S_CA_FILE": "a", "K8S_INSECURE_SKIP_TLS_VERIFY": "true", "K8S_CURRENT_CONTEXT": "x", "K8S_CLIENT_QPS": "2.5",
			"K8S_CLIENT_BURST": "9", "CALICO_API_GROUP": "projectcalico.org/v3", "USE_POD_CIDR": "true",
		}, Config{
			Type: "kubernetes", Kubeconfig: "f", K8sAPIEndpoint: "e", K8sCertFile: "c", K8sKeyFile: "k", K8sCAFile: "a",
			K8sInsecureSkipVerify: true, K8sContext: "x", K8sClientQPS: 2.5, K8sClientBurst: 9, APIGroup: "projectcalico.org/v3", UsePodCIDR: true,
		}},
		{
			"embedded",
			map[string]string{"DATASTORE_TYPE": "embedded", "DATASTORE_DIRECTORY": "/d", "DATASTORE_LISTEN": "127.0.0.1:1"},
			Config{Type: "embedded", Directory: "/d", Listen: "127.0.0.1:1"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := FromEnvironment(environment(test.vars))
			require.NoError(t, err)
			require.Equal(t, test.want, cfg)
		})
	}
	for name, value := range map[string]string{"CALICO_USE_POD_CIDR": "maybe", "K8S_CLIENT_BURST": "1.5", "K8S_CLIENT_QPS": "fast"} {
		_, err := FromEnvironment(environment(map[string]string{name: value}))
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, value)
	}
}

func TestFromFile(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		file := filepath.Join(dir, "calicoctl.cfg")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	const head = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n"
	cfg, err := FromFile(write(head + "  datastoreType: etcdv3\n  etcdEndpoints: https://a:2379\n  etcdCACertFile: ca.pem\n  etcdDiscoverySrv: x\n  k8sClientQPS: 2.5\n"))
	require.NoError(t, err)
	require.Equal(t, Config{Type: "etcdv3", EtcdEndpoints: "https://a:2379", EtcdCAFile: "ca.pem", EtcdDiscoverySRV: "x", K8sClientQPS: 2.5}, cfg)
	cfg, err = FromFile(write(head + "  etcdEndpoints: http://a:2379\n"))
	require.NoError(t, err)
	require.Equal(t, "etcdv3", cfg.Type)

	for _, test := range []struct{ name, text, want string }{
		{"unknown field", head + "  etcdEndpoint: http://a:2379\n", "etcdEndpoint"},
		{"wrong kind", "apiVersion: projectcalico.org/v3\nkind: IPPool\n", "CalicoAPIConfig"},
		{"no YAML", "{", "calicoctl.cfg"},
	} {
		_, err := FromFile(write(test.text))
		require.ErrorContains(t, err, test.want, test.name)
	}
	_, err = Load(filepath.Join(dir, "none.cfg"), environment(nil))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "none.cfg")
}

func TestOpenErrors(t *testing.T) {
	for _, test := range []struct {
		cfg  Config
		want []string
	}{
		{Config{Type: "etcdv3"}, []string{"ETCD_ENDPOINTS"}},
		{Config{Type: "kubernetes"}, []string{"KUBECONFIG", "K8S_API_ENDPOINT"}},
		{Config{Type: "kubernetes", Kubeconfig: "/none/such"}, []string{"/none/such"}},
		{Config{Type: "kubernetes", KubeconfigInline: "{"}, []string{"kubeconfigInline"}},
		{Config{Type: "kubernetes", K8sAPIEndpoint: "https://a:1", K8sCertFile: "c"}, []string{"K8S_KEY_FILE"}},
		{Config{Type: "kubernetes", K8sAPIEndpoint: "https://a:1", APIGroup: "example.org/v1"}, []string{"CALICO_API_GROUP", "example.org/v1", "crd.projectcalico.org/v1"}},
		{Config{Type: "embedded"}, []string{"DATASTORE_TYPE", "ETCD_ENDPOINTS"}},
		{Config{Type: "mysql"}, []string{"mysql", "etcdv3, kubernetes, embedded"}},
		{Config{Type: "etcdv3", EtcdEndpoints: "http://a:1", EtcdCA: "x"}, []string{"etcdCACert"}},
		{Config{Type: "etcdv3", EtcdEndpoints: "http://a:1", EtcdCert: "x"}, []string{"etcdCert"}},
		{Config{Type: "etcdv3", EtcdEndpoints: "http://a:1", EtcdCA: "x", EtcdCAFile: "y"}, []string{"one of the two"}},
	} {
		_, err := Open(t.Context(), test.cfg)
		for _, want := range test.want {
			require.ErrorContains(t, err, want)
		}
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestOpenGivenBackend(t *testing.T) {
	var seen Config
	backend := Backend{Type: "embedded", Open: func(_ context.Context, cfg Config) (datastore.Client, error) { seen = cfg; return nil, nil }}
	_, err := Open(t.Context(), Config{Type: "embedded", Directory: "/d"}, backend)
	require.NoError(t, err)
	require.Equal(t, "/d", seen.Directory)
}

// TestEveryFieldHasNames keeps file and environment in step with the struct.
func TestEveryFieldHasNames(t *testing.T) {
	for field := range reflect.TypeFor[Config]().Fields() {
		require.NotEmpty(t, field.Tag.Get("json"), field.Name)
	}
}
