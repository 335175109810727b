package kubernetes

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// What begins the names of profiles that are made from namespaces and service accounts, and the labels that pods have from
// them.
const (
	namespacePrefix      = "kns."
	accountPrefix        = "ksa."
	namespaceLabelPrefix = "pcns."
	accountLabelPrefix   = "pcsa."
	// nameLabel follows such a prefix in the label that has the name of the namespace or the service account.
	nameLabel = "projectcalico.org/name"
)

// NamespaceProfile is the profile of a namespace: it allows everything, and gives the namespace's labels to the pods.
func NamespaceProfile(n *corev1.Namespace) *api.Profile {
	p := profile(namespacePrefix+n.Name, &n.ObjectMeta)
	p.Spec.Ingress, p.Spec.Egress = []api.Rule{{Action: api.Allow}}, []api.Rule{{Action: api.Allow}}
	p.Spec.LabelsToApply = prefixed(namespaceLabelPrefix, n.Labels, n.Name)
	return p
}

// ServiceAccountProfile is the profile of a service account: it gives the account's labels to the pods that run as it.
func ServiceAccountProfile(a *corev1.ServiceAccount) *api.Profile {
	p := profile(accountPrefix+a.Namespace+"."+a.Name, &a.ObjectMeta)
	p.Spec.LabelsToApply = prefixed(accountLabelPrefix, a.Labels, a.Name)
	return p
}

// ProfileOf says which namespace or service account the profile of a name is made from; account is empty for a namespace.
func ProfileOf(name string) (namespace, account string, ok bool) {
	if namespace, ok = strings.CutPrefix(name, namespacePrefix); ok {
		return namespace, "", namespace != ""
	}
	name, ok = strings.CutPrefix(name, accountPrefix)
	namespace, account, two := strings.Cut(name, ".") // names of namespaces have no dots
	return namespace, account, ok && two && namespace != "" && account != ""
}

func profile(name string, of *metav1.ObjectMeta) *api.Profile {
	return &api.Profile{
		TypeMeta: typeMeta("Profile"),
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: ReversedUID(of.UID), ResourceVersion: of.ResourceVersion, CreationTimestamp: of.CreationTimestamp,
		},
	}
}

func typeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: api.GroupVersion, Kind: kind}
}

func prefixed(prefix string, labels map[string]string, name string) map[string]string {
	out := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		out[prefix+k] = v
	}
	out[prefix+nameLabel] = name
	return out
}
