package kubernetes

import (
	"cmp"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// The groups that custom resources can be in.
var (
	nativeGroup  = schema.GroupVersion{Group: "projectcalico.org", Version: "v3"}
	classicGroup = schema.GroupVersion{Group: "crd.projectcalico.org", Version: "v1"}
)

// connect makes a client for each group. They share connections, and decode nothing but what is asked for.
func (c *Client) connect(conf *rest.Config) (err error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	metav1.AddToGroupVersion(scheme, networkingv1.SchemeGroupVersion)
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Node{}, &corev1.NodeList{}, &corev1.Pod{}, &corev1.PodList{},
		&corev1.Namespace{}, &corev1.NamespaceList{}, &corev1.ServiceAccount{}, &corev1.ServiceAccountList{})
	scheme.AddKnownTypes(networkingv1.SchemeGroupVersion, &networkingv1.NetworkPolicy{}, &networkingv1.NetworkPolicyList{})
	typed := serializer.NewCodecFactory(scheme).WithoutConversion()

	group := func(gv schema.GroupVersion, path string, s runtime.NegotiatedSerializer, compact bool) rest.Interface {
		if err != nil {
			return nil
		}
		own := rest.CopyConfig(conf)
		own.GroupVersion, own.APIPath, own.NegotiatedSerializer = &gv, path, s
		own.AcceptContentTypes, own.ContentType = runtime.ContentTypeJSON, runtime.ContentTypeJSON
		if compact { // the server has no such encoding for custom resources
			own.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		}
		var made *rest.RESTClient
		made, err = rest.RESTClientForConfigAndClient(own, c.http)
		return made
	}
	c.core = group(corev1.SchemeGroupVersion, "/api", typed, true)
	c.networking = group(networkingv1.SchemeGroupVersion, "/apis", typed, true)
	c.native = &layout{group: nativeGroup, client: group(nativeGroup, "/apis", documents{}, false)}
	c.classic = &layout{group: classicGroup, client: group(classicGroup, "/apis", documents{}, false), classic: true}
	if err != nil {
		return fmt.Errorf("settings of the Kubernetes API: %w", err)
	}
	return nil
}

// override is the layout that the settings demand; nil if they leave it to the cluster.
func (c *Client) override(group string) (*layout, error) {
	switch group {
	case "":
		return nil, nil
	case nativeGroup.String():
		return c.native, nil
	case classicGroup.String():
		return c.classic, nil
	}
	return nil, fmt.Errorf("CALICO_API_GROUP %q is not known; use %s or %s, or leave it out", group, nativeGroup, classicGroup)
}

// found returns the layout of the cluster's custom resources: the classic one if the server knows its group, else the native
// one. The answer is kept once there is one; a cluster without either will have the native one.
func (c *Client) found(ctx context.Context, op string, key api.Key) (*layout, error) {
	c.mu.Lock()
	known := c.layout
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	var groups metav1.APIGroupList
	err := c.do(ctx, op, key, func(ctx context.Context) error {
		if err := c.started(ctx); err != nil {
			return err
		}
		return c.native.client.Get().AbsPath("/apis").Do(ctx).Into(&groups)
	})
	if err != nil {
		return nil, err
	}
	served := map[string]bool{}
	for _, g := range groups.Groups {
		served[g.Name] = true
	}
	switch {
	case served[classicGroup.Group]:
		known = c.classic
	case served[nativeGroup.Group]:
		known = c.native
	default:
		return c.native, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.layout == nil {
		c.layout = known
		c.log.Info("objects are custom resources of Kubernetes", "server", c.host, "group", known.group.String())
	}
	return c.layout, nil
}

// started tells whether the server has come up: before that it may not know all groups. One that does not let us ask counts as
// up.
func (c *Client) started(ctx context.Context) error {
	err := c.native.client.Get().AbsPath("/readyz").Do(ctx).Error()
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsUnauthorized(err) {
		return nil
	}
	return err
}

// do runs one request with the time limit of requests, and explains its failure.
func (c *Client) do(ctx context.Context, op string, key api.Key, request func(context.Context) error) error {
	if err := cmp.Or(c.ctx.Err(), ctx.Err()); err != nil {
		return c.explain(ctx, op, key, err)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.OpTimeout)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	return c.explain(ctx, op, key, request(limited))
}

func failed(op string, key api.Key, err error) error {
	return &datastore.Error{Op: op, Key: key, Err: err}
}
