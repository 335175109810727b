package open

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore/etcd"
	"github.com/muslin-net/muslin/datastore/kubernetes"
)

// DefaultFile is where calicoctl looks for its settings unless told otherwise.
const DefaultFile = "/etc/calico/calicoctl.cfg"

// Config says which datastore to use and how to reach it. The JSON names are those of the spec of a CalicoAPIConfig file,
// the env names those of the environment, where each also works with the prefix CALICO_, which wins.
type Config struct {
	Type string `json:"datastoreType,omitempty" env:"DATASTORE_TYPE"` // etcdv3 (the default), kubernetes or embedded

	EtcdEndpoints    string `json:"etcdEndpoints,omitempty" env:"ETCD_ENDPOINTS"` // URLs, comma-separated
	EtcdDiscoverySRV string `json:"etcdDiscoverySrv,omitempty" env:"ETCD_DISCOVERY_SRV"`
	EtcdUsername     string `json:"etcdUsername,omitempty" env:"ETCD_USERNAME"`
	EtcdPassword     string `json:"etcdPassword,omitempty" env:"ETCD_PASSWORD"`
	EtcdCertFile     string `json:"etcdCertFile,omitempty" env:"ETCD_CERT_FILE"`
	EtcdKeyFile      string `json:"etcdKeyFile,omitempty" env:"ETCD_KEY_FILE"`
	EtcdCAFile       string `json:"etcdCACertFile,omitempty" env:"ETCD_CA_CERT_FILE"`
	EtcdCert         string `json:"etcdCert,omitempty"` // PEM text instead of the files
	EtcdKey          string `json:"etcdKey,omitempty"`
	EtcdCA           string `json:"etcdCACert,omitempty"`

	Kubeconfig            string  `json:"kubeconfig,omitempty" env:"KUBECONFIG"`
	KubeconfigInline      string  `json:"kubeconfigInline,omitempty"`
	K8sAPIEndpoint        string  `json:"k8sAPIEndpoint,omitempty" env:"K8S_API_ENDPOINT"`
	K8sCertFile           string  `json:"k8sCertFile,omitempty" env:"K8S_CERT_FILE"`
	K8sKeyFile            string  `json:"k8sKeyFile,omitempty" env:"K8S_KEY_FILE"`
	K8sCAFile             string  `json:"k8sCAFile,omitempty" env:"K8S_CA_FILE"`
	K8sAPIToken           string  `json:"k8sAPIToken,omitempty" env:"K8S_API_TOKEN"`
	K8sInsecureSkipVerify bool    `json:"k8sInsecureSkipTLSVerify,omitempty" env:"K8S_INSECURE_SKIP_TLS_VERIFY"`
	K8sDisableNodePoll    bool    `json:"k8sDisableNodePoll,omitempty" env:"K8S_DISABLE_NODE_POLL"`
	K8sContext            string  `json:"k8sCurrentContext,omitempty" env:"K8S_CURRENT_CONTEXT"`
	K8sContextShort       string  `json:"context,omitempty"` // another spelling of K8sContext
	K8sClientQPS          float32 `json:"k8sClientQPS,omitempty" env:"K8S_CLIENT_QPS"`
	K8sClientBurst        int     `json:"k8sClientBurst,omitempty" env:"K8S_CLIENT_BURST"`
	APIGroup              string  `json:"calicoAPIGroup,omitempty" env:"CALICO_API_GROUP"`
	UsePodCIDR            bool    `json:"usePodCIDR,omitempty" env:"USE_POD_CIDR"`

	// Of the embedded datastore, which uses the etcd certificate settings for its listener.
	Directory string `json:"datastoreDirectory,omitempty" env:"DATASTORE_DIRECTORY"` // where its data is
	Listen    string `json:"datastoreListen,omitempty" env:"DATASTORE_LISTEN"`       // host:port; empty means a free loopback port

	Logger *slog.Logger `json:"-"` // nil means slog.Default
}

// Load returns the settings as calicoctl finds them. A file given by name must exist. Without one ("") DefaultFile is
// read if it exists, else the environment.
func Load(file string, environment func(string) (string, bool)) (Config, error) {
	if file != "" {
		return FromFile(file)
	}
	cfg, err := FromFile(DefaultFile)
	if errors.Is(err, fs.ErrNotExist) {
		return FromEnvironment(environment)
	}
	return cfg, err
}

// FromFile reads a CalicoAPIConfig file, YAML or JSON. A field it does not know is an error.
func FromFile(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("datastore settings: %w", err)
	}
	var doc struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   map[string]any `json:"metadata,omitempty"`
		Spec       Config         `json:"spec"`
	}
	if err := yaml.UnmarshalStrict(text, &doc); err != nil {
		return Config{}, fmt.Errorf("datastore settings in %s: %w", file, err)
	}
	if doc.APIVersion != api.GroupVersion || doc.Kind != "CalicoAPIConfig" {
		return Config{}, fmt.Errorf("datastore settings in %s: apiVersion %q, kind %q; the file must have apiVersion %q, kind %q",
			file, doc.APIVersion, doc.Kind, api.GroupVersion, "CalicoAPIConfig")
	}
	return doc.Spec.withDefaults(), nil
}

// FromEnvironment reads the settings from variables; pass os.LookupEnv.
func FromEnvironment(lookup func(string) (string, bool)) (Config, error) {
	var cfg Config
	for name, set := range cfg.variables() {
		for _, full := range []string{"CALICO_" + name, name} {
			value, ok := lookup(full)
			if !ok || value == "" {
				continue
			}
			if err := set(value); err != nil {
				return Config{}, fmt.Errorf("environment variable %s=%q: %w", full, value, err)
			}
			break
		}
	}
	return cfg.withDefaults(), nil
}

func (c Config) withDefaults() Config {
	c.Type = cmp.Or(c.Type, TypeEtcd)
	c.K8sContext = cmp.Or(c.K8sContext, c.K8sContextShort)
	return c
}

// etcd returns the settings of the etcd backend.
func (c Config) etcd() (etcd.Config, error) {
	conf := etcd.Config{
		Endpoints: strings.Split(c.EtcdEndpoints, ","), DiscoverySRV: c.EtcdDiscoverySRV,
		Username: c.EtcdUsername, Password: c.EtcdPassword,
		CertFile: c.EtcdCertFile, KeyFile: c.EtcdKeyFile, CAFile: c.EtcdCAFile,
		Logger: c.Logger,
	}
	if c.EtcdCert == "" && c.EtcdKey == "" && c.EtcdCA == "" {
		return conf, nil
	}
	if c.EtcdCertFile != "" || c.EtcdKeyFile != "" || c.EtcdCAFile != "" {
		return conf, errors.New("etcd certificates are given both as text (etcdCert, etcdKey, etcdCACert) and as files; give one of the two")
	}
	conf.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.EtcdCA != "" {
		conf.TLS.RootCAs = x509.NewCertPool()
		if !conf.TLS.RootCAs.AppendCertsFromPEM([]byte(c.EtcdCA)) {
			return conf, errors.New("etcdCACert holds no PEM certificate")
		}
	}
	if c.EtcdCert != "" || c.EtcdKey != "" {
		cert, err := tls.X509KeyPair([]byte(c.EtcdCert), []byte(c.EtcdKey))
		if err != nil {
			return conf, fmt.Errorf("etcdCert and etcdKey: %w", err)
		}
		conf.TLS.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

// Kubernetes returns the settings of the Kubernetes backend.
func (c Config) Kubernetes() kubernetes.Config {
	return kubernetes.Config{
		Kubeconfig: c.Kubeconfig, KubeconfigInline: c.KubeconfigInline, Context: c.K8sContext,
		Endpoint: c.K8sAPIEndpoint, CertFile: c.K8sCertFile, KeyFile: c.K8sKeyFile, CAFile: c.K8sCAFile,
		Token: c.K8sAPIToken, InsecureSkipVerify: c.K8sInsecureSkipVerify,
		QPS: c.K8sClientQPS, Burst: c.K8sClientBurst,
		APIGroup: c.APIGroup, UsePodCIDR: c.UsePodCIDR, Logger: c.Logger,
	}
}
