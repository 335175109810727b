package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/flowcontrol"
)

// Config says how to reach the API server. With nothing given it is reached as a pod reaches its own cluster's.
type Config struct {
	Kubeconfig       string // path of a kubeconfig file, or several as in KUBECONFIG
	KubeconfigInline string // its content instead; wins over the path
	Context          string // of the kubeconfig; empty means its current one

	// These beat what the kubeconfig says.
	Endpoint                  string // URL of the server
	CertFile, KeyFile, CAFile string // PEM
	Token                     string
	InsecureSkipVerify        bool

	REST *rest.Config // used instead of all above if set

	QPS   float32 // requests per second of this client, on average; 0 means 1000, negative any number
	Burst int     // how many may come at once; 0 means 1000

	APIGroup   string // group and version of the custom resources; empty means what the cluster has
	UsePodCIDR bool   // tunnel addresses are the first of the node's range of pods

	DialTimeout time.Duration // to get a connection; 0 means 5 s
	OpTimeout   time.Duration // of one read, write or list page; 0 means 15 s
	PageSize    int64         // objects per list request; 0 means 500

	Logger *slog.Logger // for what a caller cannot be told, as resources that cannot be read; nil means slog.Default
}

func (c Config) withDefaults() Config {
	c.QPS = cmp.Or(c.QPS, 1000)
	c.Burst = cmp.Or(c.Burst, 1000)
	c.DialTimeout = cmp.Or(c.DialTimeout, 5*time.Second)
	c.OpTimeout = cmp.Or(c.OpTimeout, 15*time.Second)
	c.PageSize = cmp.Or(c.PageSize, 500)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c
}

// RESTConfig returns the settings as client-go has them.
func (c Config) RESTConfig() (*rest.Config, error) {
	conf, err := c.reach()
	if err != nil {
		return nil, err
	}
	conf = rest.CopyConfig(conf)
	conf.UserAgent = cmp.Or(conf.UserAgent, "muslin/"+filepath.Base(os.Args[0]))
	conf.WarningHandler = rest.NoWarnings{}
	conf.Timeout = 0 // it would end watches; each request has a limit of its own
	if conf.Dial == nil {
		conf.Dial = (&net.Dialer{Timeout: c.DialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	if conf.RateLimiter == nil && c.QPS > 0 { // one for all groups
		conf.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(c.QPS, c.Burst)
	}
	return conf, nil
}

// reach finds out which server is meant, and as whom.
func (c Config) reach() (*rest.Config, error) {
	if c.REST != nil {
		return c.REST, nil
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("client certificate of the Kubernetes API: K8S_CERT_FILE and K8S_KEY_FILE must be set both or not at all")
	}
	overrides := &clientcmd.ConfigOverrides{CurrentContext: c.Context}
	overrides.ClusterInfo = clientcmdapi.Cluster{Server: c.Endpoint, CertificateAuthority: c.CAFile, InsecureSkipTLSVerify: c.InsecureSkipVerify}
	overrides.AuthInfo = clientcmdapi.AuthInfo{ClientCertificate: c.CertFile, ClientKey: c.KeyFile, Token: c.Token}
	switch {
	case c.KubeconfigInline != "":
		parsed, err := clientcmd.Load([]byte(c.KubeconfigInline))
		if err != nil {
			return nil, fmt.Errorf("kubeconfigInline is no kubeconfig: %w; put the whole content of the file there", err)
		}
		return complete("kubeconfigInline", clientcmd.NewNonInteractiveClientConfig(*parsed, c.Context, overrides, nil))
	case c.Kubeconfig != "":
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig}
		if strings.ContainsRune(c.Kubeconfig, filepath.ListSeparator) {
			rules = &clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(c.Kubeconfig)}
		}
		return complete("KUBECONFIG "+c.Kubeconfig, clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides))
	case c.Endpoint != "":
		return complete("K8S_API_ENDPOINT "+c.Endpoint, clientcmd.NewDefaultClientConfig(*clientcmdapi.NewConfig(), overrides))
	}
	conf, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("no Kubernetes API is given, and this is no pod; set KUBECONFIG to the path of a kubeconfig, or K8S_API_ENDPOINT")
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("this pod has no service account: %w; give it one (automountServiceAccountToken), or set KUBECONFIG", err)
	case err != nil:
		return nil, fmt.Errorf("the service account of this pod: %w", err)
	}
	return conf, nil
}

func complete(of string, c clientcmd.ClientConfig) (*rest.Config, error) {
	conf, err := c.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%s: %w; correct it", of, err)
	}
	return conf, nil
}
