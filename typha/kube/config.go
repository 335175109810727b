// Package kube brings to typha what only the API of Kubernetes has: Services and EndpointSlices, cluster-wide network policies,
// and the Secrets that passwords of BGP are in. Objects are cut down to what the computation uses as soon as they arrive, and
// policies become what package api/kubernetes makes of them.
//
// It refuses to interpret. Trouble with the API server it survives: what was told stays as it is, and is brought up to date
// when the server is back, retried with growing, jittered waits.
package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Config returns how to reach the API: as a kubeconfig file says or, without one, as a pod reaches its own cluster's. It
// returns nil if there is no file and this is no pod, or one that was given no service account.
func Config(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("setting kubeconfig: %w; give the path of a kubeconfig that is valid on this host", err)
		}
		return c, nil
	}
	c, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the service account of typha's pod: %w; correct it, or give a kubeconfig", err)
	}
	return c, nil
}

// client makes a client for one group of the API. It decodes nothing but the kinds that typha reads, and asks for them in the
// compact encoding.
func client(c *rest.Config, gv schema.GroupVersion, prefix string) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, gv)
	switch gv {
	case corev1.SchemeGroupVersion:
		scheme.AddKnownTypes(gv, &corev1.Service{}, &corev1.ServiceList{}, &corev1.Secret{}, &corev1.SecretList{})
	case discoveryv1.SchemeGroupVersion:
		scheme.AddKnownTypes(gv, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{})
	case schema.GroupVersion(v1alpha1.GroupVersion):
		scheme.AddKnownTypes(gv, &v1alpha1.AdminNetworkPolicy{}, &v1alpha1.AdminNetworkPolicyList{},
			&v1alpha1.BaselineAdminNetworkPolicy{}, &v1alpha1.BaselineAdminNetworkPolicyList{})
	case schema.GroupVersion(v1alpha2.GroupVersion):
		scheme.AddKnownTypes(gv, &v1alpha2.ClusterNetworkPolicy{}, &v1alpha2.ClusterNetworkPolicyList{})
	}
	own := rest.CopyConfig(c)
	own.GroupVersion, own.APIPath = &gv, prefix
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	own.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	own.ContentType = runtime.ContentTypeProtobuf
	own.QPS, own.Burst = -1, 0 // there are as many requests as kinds and secrets, and the server has limits of its own
	own.UserAgent = "typha"
	return rest.RESTClientFor(own)
}

const (
	// pageSize is how many objects are asked for at once.
	pageSize = 500
	// requestTimeout is how long a page may take.
	requestTimeout = 30 * time.Second
)
