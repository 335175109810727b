package kubernetes

import (
	"encoding/json"
	"fmt"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/muslin-net/muslin/api"
)

// Policy is a NetworkPolicy, as its API has it, as one of ours.
func Policy(k *networkingv1.NetworkPolicy) (*api.NetworkPolicy, error) {
	// The two types have the same JSON.
	text, err := json.Marshal(k.Spec)
	if err != nil {
		return nil, err
	}
	var spec api.StagedKubernetesNetworkPolicySpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	p := NetworkPolicy(k.ObjectMeta, &spec)
	p.TypeMeta = typeMeta("NetworkPolicy")
	p.UID, p.ManagedFields, p.OwnerReferences, p.Finalizers = ReversedUID(k.UID), nil, nil, nil
	delete(p.Annotations, lastApplied)
	return p, nil
}

// lastApplied is where kubectl keeps the whole policy once more.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// PolicyKey is the key that a NetworkPolicy has among ours.
func PolicyKey(k *networkingv1.NetworkPolicy) api.Key {
	return api.Key{Kind: "NetworkPolicy", Namespace: k.Namespace, Name: NamePrefix + k.Name}
}

// IsTranslated tells whether a name is that of a policy of Kubernetes.
func IsTranslated(name string) bool { return strings.HasPrefix(name, NamePrefix) }
