package main

import (
	"fmt"
	"net/netip"

	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
	"github.com/muslin-net/muslin/typha/kube"
	"github.com/muslin-net/muslin/typha/secretdir"
)

// computing are the settings that the computation takes.
func (s settings) computing() (compute.Options, error) {
	o := compute.Options{Namespace: s.Namespace}
	if s.ClusterIPs != "" {
		p, err := netip.ParsePrefix(s.ClusterIPs)
		if err != nil {
			return o, fmt.Errorf("setting advertise-cluster-ips: %q is not a CIDR; write one such as 10.96.0.0/12, or leave it out", s.ClusterIPs)
		}
		o.ClusterRanges = []netip.Prefix{p.Masked()}
	}
	return o, nil
}

// sources are where state comes from beside the datastore: Services and cluster-wide policies from Kubernetes, if there is one;
// passwords from files, or else from there.
func (s settings) sources(d *daemon.Daemon) (intake.Options, error) {
	o := intake.Options{Logger: d.Log, Metrics: intake.NewMetrics(d.Metrics)}
	config, err := kube.Config(s.Kubeconfig)
	if err != nil {
		return o, err
	}
	if config == nil {
		d.Log.Info("there is no way to a Kubernetes API, hence no Services and no policies of Kubernetes; a kubeconfig gives one")
	} else {
		d.Log.Info("following Services, EndpointSlices and cluster-wide network policies", "server", config.Host)
		if o.Services, err = kube.NewServices(config, d.Log); err != nil {
			return o, err
		}
		if o.Policies, err = kube.NewPolicies(config, d.Log); err != nil {
			return o, err
		}
	}
	switch {
	case s.SecretsDir != "":
		o.Secrets = secretdir.New(s.SecretsDir, d.Log)
	case config != nil:
		if o.Secrets, err = kube.NewSecrets(config, s.Namespace, d.Log); err != nil {
			return o, err
		}
	}
	return o, nil
}
