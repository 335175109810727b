package kubefollow

import (
	"errors"
	"fmt"
	"io/fs"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
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
		return nil, fmt.Errorf("reading the service account of this pod: %w; correct it, or give a kubeconfig", err)
	}
	return c, nil
}

// Client makes a client for one version of a group of the API. It decodes nothing but the given types, objects and lists, and
// asks for them in the compact encoding. agent is who asks, for the server's logs.
func Client(c *rest.Config, agent string, gv schema.GroupVersion, types ...runtime.Object) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, gv)
	scheme.AddKnownTypes(gv, types...)
	own := rest.CopyConfig(c)
	own.GroupVersion, own.APIPath = &gv, "/apis"
	if gv.Group == "" {
		own.APIPath = "/api"
	}
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	own.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	own.ContentType = runtime.ContentTypeProtobuf
	own.QPS, own.Burst = -1, 0 // who follows makes few requests, and the server has limits of its own
	own.UserAgent = agent
	return rest.RESTClientFor(own)
}
