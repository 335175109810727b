package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/api/kubernetes"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
)

// podOf is the pod of a reported endpoint, as Kubernetes has it; nil if it has none, or there is no Kubernetes.
func (s *Server) podOf(m *typhav1.LocalEndpoint) *cache.Endpoint {
	if !s.cfg.Pods || m.GetOrchestrator() != api.OrchestratorKubernetes {
		return nil
	}
	namespace, name, _ := strings.Cut(m.GetWorkload(), "/")
	pod, _ := s.cfg.Cache.Snapshot().Get(api.Key{Kind: kubernetes.KindPod, Namespace: namespace, Name: name}).(*cache.Endpoint)
	return pod
}

// identify has an endpoint that a node reports be what its pod says: where there is a Kubernetes, no node says which labels and
// which account a pod has. An endpoint of a pod that is not known, or is another one of that name, has no labels but those that
// tell where it is. own are addresses that the pod may have although IPAM did not give them. It fails if the pod is elsewhere.
func (s *Server) identify(o *api.WorkloadEndpoint, pod *cache.Endpoint, addresses []netip.Addr, uid string) (own []netip.Addr, err error) {
	if !s.cfg.Pods || o.Spec.Orchestrator != api.OrchestratorKubernetes {
		return nil, nil
	}
	if pod != nil && (uid == "" || uid == compute.PodUID(pod)) && pod.Node != o.Spec.Node {
		return nil, fmt.Errorf("pod %s/%s is on node %q", o.Namespace, o.Spec.Pod, pod.Node)
	}
	if pod == nil || uid != "" && uid != compute.PodUID(pod) {
		o.Labels = map[string]string{labelNamespace: o.Namespace, labelOrchestrator: api.OrchestratorKubernetes}
		o.Spec.Profiles, o.Spec.ServiceAccountName, o.Spec.Ports = []string{"kns." + o.Namespace}, "", nil
		o.Spec.AllowSpoofedSourcePrefixes, o.Spec.IPNATs = nil, nil
		if s.cfg.Kubernetes {
			o.UID = kubernetes.ReversedUID(types.UID(uid))
		}
		return nil, nil
	}
	o.Labels = pod.Labels
	o.Spec.ServiceAccountName, o.Spec.Profiles, o.Spec.Ports = pod.ServiceAccount, pod.Profiles, pod.Ports
	o.Spec.AllowSpoofedSourcePrefixes, o.Spec.QoSControls = pod.Spoofed, pod.QoS
	if s.cfg.Kubernetes {
		o.UID = types.UID(pod.UID) // so that it is written to this pod, and not to one that has its name by then
	}
	if asked, err := annotation.Pod(pod.Annotations); err == nil {
		own = asked.Unmanaged
		o.Spec.IPNATs = kubernetes.NATs(addresses, asked.Floating)
	}
	return own, nil
}

// storable are the endpoints that the datastore can hold: Kubernetes has only those of pods, with their first interface. The others
// count while their node reports them.
func (s *Server) storable(endpoints []*api.WorkloadEndpoint) []*api.WorkloadEndpoint {
	if !s.cfg.Kubernetes {
		return endpoints
	}
	return slices.DeleteFunc(slices.Clone(endpoints), func(o *api.WorkloadEndpoint) bool {
		_, err := kubernetes.PodOf(api.KeyOf(o))
		return err != nil
	})
}

func singles(addresses []netip.Addr) (out []netip.Prefix) {
	for _, a := range addresses {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}
