package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Audience is whom the tokens must be for with which nodes enrol. A token for the API server proves nothing here, and one for
// typha opens nothing there.
const Audience = "typha"

// What Kubernetes says of a token beside its user.
const (
	extraNode   = "authentication.kubernetes.io/node-name" // since 1.30
	extraPod    = "authentication.kubernetes.io/pod-name"
	extraPodUID = "authentication.kubernetes.io/pod-uid"
)

// Tokens finds out to which node the service-account token of a pod is bound, by asking the API server.
type Tokens struct {
	review, core rest.Interface
	user         string
	api          API
}

// NewTokens returns a Tokens that believes the tokens of one account, given as namespace/name.
func NewTokens(a API, account string) (*Tokens, error) {
	namespace, name, ok := strings.Cut(account, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return nil, fmt.Errorf("setting node-account: %q is not namespace/name; write the service account of the nodes' pods, such as kube-system/calico-node", account)
	}
	review, err := a.client(authenticationv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Tokens{review: review, core: core, user: "system:serviceaccount:" + namespace + ":" + name, api: a}, nil
}

// Node is the node of the pod that a token is bound to. refused says why the token proves nothing; the error why that cannot be
// told at present.
func (t *Tokens) Node(ctx context.Context, token string) (node, refused string, err error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}}}
	err = t.review.Post().Resource("tokenreviews").Body(review).Timeout(requestTimeout).Do(ctx).Into(review)
	if ctx.Err() == nil {
		t.api.tell("tokenreviews", err)
	}
	if err != nil {
		return "", "", fmt.Errorf("TokenReview: %w", err)
	}
	found, refused := judgeToken(review.Status, t.user)
	if refused != "" || found.node != "" {
		return found.node, refused, nil
	}
	// An older Kubernetes names the pod, and the pod its node.
	var pod corev1.Pod
	err = t.core.Get().Namespace(found.namespace).Resource("pods").Name(found.pod).VersionedParams(&metav1.GetOptions{}, metav1.ParameterCodec).
		Timeout(requestTimeout).Do(ctx).Into(&pod)
	switch {
	case apierrors.IsNotFound(err) || err == nil && string(pod.UID) != found.uid:
		return "", fmt.Sprintf("the service-account token is of pod %s/%s, which is gone", found.namespace, found.pod), nil
	case err != nil:
		return "", "", fmt.Errorf("pod of the service-account token: %w", err)
	case pod.Spec.NodeName == "":
		return "", fmt.Sprintf("the service-account token is of pod %s/%s, which is on no node", found.namespace, found.pod), nil
	}
	return pod.Spec.NodeName, "", nil
}

// bound is what a token is bound to: a node, or a pod that is on one.
type bound struct{ node, namespace, pod, uid string }

// judgeToken says what a reviewed token is bound to, or why it proves nothing.
func judgeToken(s authenticationv1.TokenReviewStatus, user string) (of bound, refused string) {
	extra := func(key string) string {
		if values := s.User.Extra[key]; len(values) == 1 {
			return values[0]
		}
		return ""
	}
	switch {
	case !s.Authenticated:
		why := s.Error
		if why == "" {
			why = "it is expired, for another audience, or of a pod that is gone"
		}
		return bound{}, fmt.Sprintf("the API server does not accept the service-account token for audience %q: %s", Audience, why)
	case !slices.Contains(s.Audiences, Audience): // a server that knows no audiences has judged it for its own
		return bound{}, fmt.Sprintf("the service-account token is not for audience %q; project one with that audience into the pod", Audience)
	case s.User.Username != user:
		return bound{}, fmt.Sprintf("the service-account token is that of %s, and nodes are %s (setting node-account)", s.User.Username, user)
	}
	if node := extra(extraNode); node != "" {
		return bound{node: node}, ""
	}
	of = bound{pod: extra(extraPod), uid: extra(extraPodUID)}
	if of.pod == "" || of.uid == "" {
		return bound{}, "the service-account token is not bound to a pod; use the one that is projected into calico-node's pod"
	}
	of.namespace, _, _ = strings.Cut(strings.TrimPrefix(user, "system:serviceaccount:"), ":")
	return of, ""
}
