package main

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/datastore/trouble"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/internal/rpc"
	"github.com/muslin-net/muslin/typha/authority"
	"github.com/muslin-net/muslin/typha/kube"
	"github.com/muslin-net/muslin/typha/server"
)

// InCluster are settings for typhas that run in a Kubernetes. Their names are those of Calico's typha where it has them.
type InCluster struct {
	CASecret    string   `flag:"ca-secret" env:"TYPHA_CASECRET" usage:"Secret in typha's namespace with the CA of the cluster (ca.crt, ca.key), made if it is absent and published as a ConfigMap of the same name; typha then signs its own certificate. In a pod that is given no --cert it is calico-ca"`
	PKIDir      string   `flag:"pki-dir" env:"TYPHA_PKIDIR" default:"/var/run/calico/pki" usage:"directory for what --ca-secret brings, best in memory"`
	ServerNames []string `flag:"server-names" env:"TYPHA_SERVERNAMES" usage:"names and addresses beside typha and those of the Service that the certificate of --ca-secret is for"`
	NodeAccount string   `flag:"node-account" env:"TYPHA_NODEACCOUNT" usage:"service account, as namespace/name, whose pods enrol their nodes; empty means calico-node in typha's namespace"`
	Service     string   `flag:"k8s-service-name" env:"TYPHA_K8SSERVICENAME" usage:"Service of typha in its namespace, from whose EndpointSlices the replicas are known; none where --replicas has several. In a pod it is calico-typha"`
	PodIP       string   `flag:"pod-ip" env:"POD_IP" usage:"address by which nodes reach this replica; empty finds out which of the Service's addresses is one of this host"`
	NoNetwork   bool     `flag:"leave-network-unavailable" env:"TYPHA_LEAVENETWORKUNAVAILABLE" usage:"do not write the condition NetworkUnavailable of Kubernetes nodes: another plugin does, where this one only enforces policy"`

	Health      string `flag:"health-enabled" env:"TYPHA_HEALTHENABLED" usage:"true or false: serve /liveness and /readiness where no --health says where; empty means true in a pod"`
	HealthHost  string `flag:"health-host" env:"TYPHA_HEALTHHOST" default:"localhost" usage:"address for --health-enabled"`
	HealthPort  int    `flag:"health-port" env:"TYPHA_HEALTHPORT" default:"9098" usage:"port for --health-enabled"`
	Metrics     bool   `flag:"metrics-enabled" env:"TYPHA_PROMETHEUSMETRICSENABLED" usage:"serve /metrics where no --metrics says where"`
	MetricsHost string `flag:"metrics-host" env:"TYPHA_PROMETHEUSMETRICSHOST" usage:"address for --metrics-enabled; empty means all"`
	MetricsPort int    `flag:"metrics-port" env:"TYPHA_PROMETHEUSMETRICSPORT" default:"9093" usage:"port for --metrics-enabled"`
}

// inPod tells whether typha runs in a pod.
func inPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// complete fills in what goes without saying in a pod.
func (c *InCluster) complete(s *settings) {
	if !inPod() || s.Kubeconfig != "" {
		return
	}
	if s.CA == "" && s.Cert == "" {
		c.CASecret = cmp.Or(c.CASecret, "calico-ca")
	}
	if len(s.Replicas) < 2 {
		c.Service = cmp.Or(c.Service, "calico-typha")
	}
}

// Serve says where health and metrics are served; see daemon.Served.
func (c *InCluster) Serve() (health, metrics string) {
	if c.Health == "true" || c.Health == "" && inPod() {
		health = net.JoinHostPort(c.HealthHost, strconv.Itoa(c.HealthPort))
	}
	if c.Metrics {
		metrics = net.JoinHostPort(c.MetricsHost, strconv.Itoa(c.MetricsPort))
	}
	return health, metrics
}

// self is who this replica is: its address as nodes reach it, as far as that is said, and the port of all replicas.
func (s settings) self(listens net.Addr) (own, port string) {
	_, port, _ = net.SplitHostPort(listens.String()) // it is a listener's, which has one
	if len(s.Replicas) > 0 {
		return s.Replicas[0], port
	}
	if s.PodIP != "" {
		return net.JoinHostPort(s.PodIP, port), port
	}
	return "", port
}

// cluster is the Kubernetes that typha is part of, or follows from outside.
type cluster struct {
	api      kube.API // its Config is nil if there is none
	board    *trouble.Board
	tokens   server.TokenReviewer
	network  server.NodeNetwork
	replicas *kube.Replicas // nil unless they are discovered
	// replicaName is what the certificates of all replicas are for; empty where each is for its host.
	replicaName string
}

// cluster finds out what there is of a Kubernetes. Nothing is asked of it yet.
func (s settings) cluster(d *daemon.Daemon) (*cluster, error) {
	board := trouble.NewBoard("typha", func(text string) { d.Health.Note("what cannot be read", text) }, d.Metrics, d.Log)
	config, err := kube.Config(s.Kubeconfig)
	c := &cluster{api: kube.API{Config: config, Log: d.Log, Trouble: board.Tell}, board: board}
	if err != nil {
		return nil, err
	}
	if config == nil {
		if s.CASecret != "" || s.Service != "" {
			return nil, errors.New("settings ca-secret and k8s-service-name need a Kubernetes: run typha as a pod with a service account, or give a kubeconfig")
		}
		return c, nil
	}
	account := cmp.Or(s.NodeAccount, s.Namespace+"/calico-node")
	if c.tokens, err = kube.NewTokens(c.api, account); err != nil {
		return nil, err
	}
	if !s.NoNetwork {
		if c.network, err = kube.NewNodes(c.api); err != nil {
			return nil, err
		}
	}
	if s.Service != "" {
		if c.replicas, err = kube.NewReplicas(c.api, s.Namespace, s.Service); err != nil {
			return nil, err
		}
	}
	if s.CASecret != "" {
		c.replicaName = "typha"
	}
	return c, nil
}

// identity is by what typha shows who it is, and signs.
type identity struct {
	files rpc.Files
	caKey string
	// keep renews what is there, until ctx ends.
	keep func(ctx context.Context) error
}

// identity returns the files that the settings name or, with a Secret, waits for the CA that is in there.
func (c *cluster) identity(ctx context.Context, s settings) (identity, error) {
	if s.CASecret == "" {
		return identity{
			files: rpc.Files{CA: s.CA, Cert: s.Cert, Key: s.Key}, caKey: s.CAKey, keep: func(context.Context) error { return nil },
		}, nil
	}
	keeper, err := authority.NewKeeper(s.PKIDir, s.names(), c.api.Log)
	if err != nil {
		return identity{}, err
	}
	source, err := kube.NewAuthority(c.api, s.Namespace, s.CASecret)
	if err != nil {
		return identity{}, err
	}
	if err := source.Get(ctx, keeper.Take); err != nil {
		return identity{}, err
	}
	return identity{
		files: keeper.Files(), caKey: keeper.CAKey(),
		keep: func(ctx context.Context) error {
			group, ctx := errgroup.WithContext(ctx)
			group.Go(func() error { return keeper.Run(ctx) })
			group.Go(func() error { return source.Run(ctx, keeper.Take) })
			return group.Wait()
		},
	}, nil
}

// names are those that typha's own certificate is for.
func (s settings) names() (n authority.Names) {
	n.DNS = []string{"typha", "localhost"}
	service := cmp.Or(s.Service, "calico-typha")
	for _, suffix := range []string{"", "." + s.Namespace, "." + s.Namespace + ".svc", "." + s.Namespace + ".svc.cluster.local"} {
		n.DNS = append(n.DNS, service+suffix)
	}
	for _, name := range s.ServerNames {
		if ip, err := netip.ParseAddr(name); err == nil {
			n.IPs = append(n.IPs, ip)
		} else if !slices.Contains(n.DNS, strings.ToLower(name)) {
			n.DNS = append(n.DNS, strings.ToLower(name))
		}
	}
	return n
}

// discover follows the replicas of the Service, if there is one, until ctx ends. This one is that with an address of this host,
// unless its own is given.
func (c *cluster) discover(ctx context.Context, own, port string, tell func(own string, serving, all []string)) error {
	if c.replicas == nil {
		return nil
	}
	return c.replicas.Run(ctx, func(a kube.Addresses) {
		tell(cmp.Or(own, ownOf(a.All, port)), addressesOf(a.Ready, port), addressesOf(a.All, port))
	})
}

func addressesOf(list []netip.Addr, port string) (out []string) {
	for _, a := range list {
		out = append(out, net.JoinHostPort(a.String(), port))
	}
	return out
}

// ownOf is the one of the addresses that this host has; empty if it has none.
func ownOf(list []netip.Addr, port string) string {
	has, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range list {
		if slices.ContainsFunc(has, func(own net.Addr) bool {
			p, err := netip.ParsePrefix(own.String())
			return err == nil && p.Addr().Unmap() == a
		}) {
			return net.JoinHostPort(a.String(), port)
		}
	}
	return ""
}
