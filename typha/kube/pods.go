package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

// Pods follows the pods and namespaces of a cluster. It is an intake.PodSource.
type Pods struct {
	core  rest.Interface
	wired bool
	api   API
}

// NewPods returns a Pods; nothing is asked before its methods are called. wired has it tell how pods are wired too: where pods are
// the datastore's endpoints, and not only what these are of.
func NewPods(a API, wired bool) (*Pods, error) {
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Pods{core: core, wired: wired, api: a}, nil
}

// Pods follows the pods of all namespaces that are on a node.
func (p *Pods) Pods(ctx context.Context, tell func(intake.Told[api.WorkloadEndpoint]) error) error {
	return (&follower[api.WorkloadEndpoint]{
		client: p.core, resource: "pods", fields: fields.OneTermNotEqualSelector("spec.nodeName", "").String(), api: p.api, tell: tell,
		list: func() runtime.Object { return &corev1.PodList{} },
		slim: func(o runtime.Object) (string, *api.WorkloadEndpoint) {
			pod := o.(*corev1.Pod)
			return pod.Namespace + "/" + pod.Name, slimPod(pod, p.wired)
		},
	}).run(ctx)
}

// Namespaces follows the namespaces that ask something for their pods.
func (p *Pods) Namespaces(ctx context.Context, tell func(intake.Told[api.Profile]) error) error {
	return (&follower[api.Profile]{
		client: p.core, resource: "namespaces", api: p.api, tell: tell,
		list: func() runtime.Object { return &corev1.NamespaceList{} },
		slim: func(o runtime.Object) (string, *api.Profile) {
			n := o.(*corev1.Namespace)
			asked := compute.PodAnnotations(n.Annotations)
			if asked == nil {
				return n.Name, nil
			}
			out := &api.Profile{}
			out.Name, out.Annotations = n.Name, asked
			return n.Name, out
		},
	}).run(ctx)
}

// slimPod is a pod as an endpoint; nil if it is none, or has ended. What of it makes no sense is told where it is wired.
func slimPod(pod *corev1.Pod, wired bool) *api.WorkloadEndpoint {
	out, _ := kubernetes.Endpoint(pod)
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if out == nil || ended || wired && pod.DeletionTimestamp != nil && len(out.Spec.IPNetworks) == 0 {
		return nil
	}
	out.Annotations = compute.PodAnnotations(pod.Annotations)
	if !wired {
		out.Spec.IPNetworks, out.Spec.IPNATs, out.Spec.ContainerID = nil, nil, ""
	}
	return out
}
