package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"

	"github.com/muslin-net/muslin/datastore/open"
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

// unmanaged are the ranges of addresses that no IPAM of ours gives.
func (s settings) unmanaged() (list []netip.Prefix, err error) {
	for _, text := range s.Unmanaged {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("setting unmanaged: %q is not a CIDR such as 10.77.0.0/16", text)
		}
		list = append(list, cidr)
	}
	return list, nil
}

// datastore are the settings of the datastore.
func (s settings) datastore() (open.Config, error) {
	conf, err := open.FromEnvironment(os.LookupEnv)
	if err != nil {
		return conf, err
	}
	conf.Type = cmp.Or(s.Datastore, conf.Type)
	conf.EtcdEndpoints = cmp.Or(s.Endpoints, conf.EtcdEndpoints)
	conf.Kubeconfig = cmp.Or(s.Kubeconfig, conf.Kubeconfig)
	conf.Directory = cmp.Or(s.Directory, conf.Directory)
	conf.Listen = cmp.Or(s.Reachable, conf.Listen)
	return conf, nil
}

// sources are where state comes from beside the datastore: Services, pods and cluster-wide policies from Kubernetes, if there is
// one; passwords from files, or else from there.
func (s settings) sources(d *daemon.Daemon, c *cluster) (intake.Options, error) {
	o := intake.Options{Logger: d.Log, Metrics: intake.NewMetrics(d.Metrics), Trouble: c.board.Tell}
	conf, err := s.datastore()
	if err != nil {
		return o, err
	}
	o.SourcePerKind = conf.Type == open.TypeKubernetes
	o.PodsAreEndpoints = o.SourcePerKind
	if c.api.Config == nil {
		d.Log.Info("there is no way to a Kubernetes API, hence no Services, no pods and no policies of Kubernetes; a kubeconfig gives one")
	} else {
		d.Log.Info("following Services, EndpointSlices, pods, namespaces and cluster-wide network policies", "server", c.api.Config.Host)
		if o.Services, err = kube.NewServices(c.api); err != nil {
			return o, err
		}
		if o.Policies, err = kube.NewPolicies(c.api); err != nil {
			return o, err
		}
		// A typha outside, with etcd, may follow the Services of a cluster that does not run the nodes' pods; to wait for those
		// would close them all.
		if o.PodsAreEndpoints || inPod() {
			if o.Pods, err = kube.NewPods(c.api, o.PodsAreEndpoints); err != nil {
				return o, err
			}
		}
	}
	switch {
	case s.SecretsDir != "":
		o.Secrets = secretdir.New(s.SecretsDir, d.Log)
	case c.api.Config != nil:
		if o.Secrets, err = kube.NewSecrets(c.api, s.Namespace); err != nil {
			return o, err
		}
	}
	return o, nil
}
