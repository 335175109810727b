// Package kube brings to typha what only the API of Kubernetes has: Services and EndpointSlices, cluster-wide network policies,
// and the Secrets that passwords of BGP are in. Objects are cut down to what the computation uses as soon as they arrive, and
// policies become what package api/kubernetes makes of them.
//
// It refuses to interpret. Trouble with the API server it survives: what was told stays as it is, and is brought up to date
// when the server is back, retried with growing, jittered waits.
package kube

import (
	"log/slog"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/muslin-net/muslin/internal/kubefollow"
)

// API is how the Kubernetes API is reached, and who is told when it cannot be.
type API struct {
	Config *rest.Config
	Log    *slog.Logger
	// Trouble is told what fails, by what is asked for, and nil once it no longer does. Without it each failure is logged where
	// it happens.
	Trouble func(what string, err error)
}

// troubleOf is who is told of trouble with one thing, nil if nobody asks.
func (a API) troubleOf(what string) func(error) {
	if a.Trouble == nil {
		return nil
	}
	return func(err error) { a.Trouble(what, err) }
}

// about has the log say what it is about.
func (a API) about(key, value string) API {
	a.Log = a.Log.With(key, value)
	return a
}

// tell tells that something fails, or with nil that it does not.
func (a API) tell(what string, err error) {
	switch {
	case a.Trouble != nil:
		a.Trouble(what, err)
	case err != nil:
		a.Log.Warn("the Kubernetes API does not do what it is asked for, trying again", "what", what, "error", err)
	}
}

// Config returns how to reach the API: as a kubeconfig file says or, without one, as a pod reaches its own cluster's. It
// returns nil if there is no file and this is no pod, or one that was given no service account.
func Config(kubeconfig string) (*rest.Config, error) { return kubefollow.Config(kubeconfig) }

// client makes a client for one group of the API, which decodes nothing but the kinds that typha reads.
func (a API) client(gv schema.GroupVersion) (rest.Interface, error) {
	var kinds []runtime.Object
	switch gv {
	case corev1.SchemeGroupVersion:
		kinds = []runtime.Object{
			&corev1.Service{}, &corev1.ServiceList{}, &corev1.Secret{}, &corev1.SecretList{}, &corev1.ConfigMap{},
			&corev1.Pod{}, &corev1.PodList{}, &corev1.Namespace{}, &corev1.NamespaceList{}, &corev1.Node{},
		}
	case discoveryv1.SchemeGroupVersion:
		kinds = []runtime.Object{&discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{}}
	case authenticationv1.SchemeGroupVersion:
		kinds = []runtime.Object{&authenticationv1.TokenReview{}}
	case schema.GroupVersion(v1alpha1.GroupVersion):
		kinds = []runtime.Object{
			&v1alpha1.AdminNetworkPolicy{}, &v1alpha1.AdminNetworkPolicyList{},
			&v1alpha1.BaselineAdminNetworkPolicy{}, &v1alpha1.BaselineAdminNetworkPolicyList{},
		}
	case schema.GroupVersion(v1alpha2.GroupVersion):
		kinds = []runtime.Object{&v1alpha2.ClusterNetworkPolicy{}, &v1alpha2.ClusterNetworkPolicyList{}}
	}
	return kubefollow.Client(a.Config, "typha", gv, kinds...)
}

// requestTimeout is how long a request may take.
const requestTimeout = 30 * time.Second
