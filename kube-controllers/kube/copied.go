package kube

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
)

// Namespaces are the namespaces, as profiles.
func (a *API) Namespaces() *Table[api.Profile] {
	return table(a, a.core, "namespaces", func() runtime.Object { return &corev1.NamespaceList{} },
		func(n *corev1.Namespace) *api.Profile { return a.sayable(kubernetes.NamespaceProfile(n)) })
}

// ServiceAccounts are the service accounts, as profiles.
func (a *API) ServiceAccounts() *Table[api.Profile] {
	return table(a, a.core, "serviceaccounts", func() runtime.Object { return &corev1.ServiceAccountList{} },
		func(s *corev1.ServiceAccount) *api.Profile {
			return a.sayable(kubernetes.ServiceAccountProfile(s))
		})
}

// sayable leaves out labels that are too long with their prefix. A profile that is not stored would close all its pods.
func (a *API) sayable(p *api.Profile) *api.Profile {
	maps.DeleteFunc(p.Spec.LabelsToApply, func(key, _ string) bool {
		wrong := validation.IsQualifiedName(key)
		if len(wrong) > 0 {
			a.log.Warn("leaving out a label that cannot be said with its prefix; choose a shorter key", "profile", p.Name, "label", key)
		}
		return len(wrong) > 0
	})
	return own(p)
}

// NetworkPolicies are the policies of Kubernetes, as ours.
func (a *API) NetworkPolicies() *Table[api.NetworkPolicy] {
	return table(a, a.networking, "networkpolicies", func() runtime.Object { return &networkingv1.NetworkPolicyList{} },
		func(p *networkingv1.NetworkPolicy) *api.NetworkPolicy {
			ours, err := kubernetes.Policy(p)
			if err != nil { // an empty one selects all pods of the namespace, and allows nothing
				a.log.Warn("a policy cannot be read; it denies everything to its namespace", "policy", p.Namespace+"/"+p.Name, "error", err)
				ours = kubernetes.NetworkPolicy(p.ObjectMeta, &api.StagedKubernetesNetworkPolicySpec{PolicyTypes: []api.PolicyType{api.Ingress, api.Egress}})
			}
			return own(ours)
		})
}

// own takes from an object all that the other datastore has given it but its name.
func own[T metav1.Object](o T) T {
	o.SetUID("")
	o.SetResourceVersion("")
	o.SetGeneration(0)
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	o.SetManagedFields(nil)
	o.SetOwnerReferences(nil)
	o.SetFinalizers(nil)
	o.SetLabels(nil)
	o.SetAnnotations(nil)
	return o
}

// Pods are the pods, each as the labels that its endpoint has; nil if it has none.
func (a *API) Pods() *Table[map[string]string] {
	return table(a, a.core, "pods", func() runtime.Object { return &corev1.PodList{} },
		func(p *corev1.Pod) *map[string]string {
			var labels map[string]string
			if e, _ := kubernetes.Endpoint(p); e != nil { // annotations that make no sense are not about labels
				labels = e.Labels
			}
			return &labels
		})
}
