// Package kube reaches the API of Kubernetes for controllers: tables of what they decide by, and the few writes that they do.
// Objects are cut down as soon as they arrive, and in our terms where we have any.
//
// Writes are refused while this process does not lead, and are compare-and-swaps, like those to the datastore (see package
// leader).
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/internal/kubefollow"
	"github.com/muslin-net/muslin/kube-controllers/leader"
	"github.com/muslin-net/muslin/kube-controllers/nodes"
)

// requestTimeout is how long a request may take.
const requestTimeout = 30 * time.Second

// API reaches the API of one cluster.
type API struct {
	core, networking rest.Interface
	held             func() bool
	trouble          func(resource string, err error)
	log              *slog.Logger
}

// New returns an API; nothing is asked yet. held tells whether this process may write. trouble is told each failure to follow a
// resource, and nil when that is over, or when nobody follows it any more.
func New(c *rest.Config, held func() bool, trouble func(resource string, err error), log *slog.Logger) (*API, error) {
	core, err := kubefollow.Client(c, agent, corev1.SchemeGroupVersion,
		&corev1.Namespace{}, &corev1.NamespaceList{}, &corev1.ServiceAccount{}, &corev1.ServiceAccountList{}, &corev1.Pod{}, &corev1.PodList{},
		&corev1.Node{}, &corev1.NodeList{}, &corev1.Service{}, &corev1.ServiceList{})
	if err != nil {
		return nil, err
	}
	networking, err := kubefollow.Client(c, agent, networkingv1.SchemeGroupVersion, &networkingv1.NetworkPolicy{}, &networkingv1.NetworkPolicyList{})
	if err != nil {
		return nil, err
	}
	return &API{core: core, networking: networking, held: held, trouble: trouble, log: log}, nil
}

// agent is who asks, in the server's logs.
const agent = "calico-kube-controllers"

// table makes a table of a kind.
func table[T any, O metav1.Object](a *API, c rest.Interface, resource string, list func() runtime.Object, slim func(O) *T) *Table[T] {
	return &Table[T]{client: c, resource: resource, list: list, trouble: a.trouble, log: a.log, slim: func(o runtime.Object) (string, *T) {
		m := o.(O)
		name := m.GetName()
		if ns := m.GetNamespace(); ns != "" {
			name = ns + "/" + name
		}
		return name, slim(m)
	}}
}

// Nodes are the nodes.
func (a *API) Nodes() *Table[nodes.Node] {
	return table(a, a.core, "nodes", func() runtime.Object { return &corev1.NodeList{} },
		func(n *corev1.Node) *nodes.Node { return &nodes.Node{Labels: n.Labels} })
}

// HasNode asks the API server itself whether there is a node of that name.
func (a *API) HasNode(ctx context.Context, name string) (bool, error) {
	err := a.core.Get().Resource("nodes").Name(name).Timeout(requestTimeout).Do(ctx).Into(&corev1.Node{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("node %s of Kubernetes: %w", name, err)
	}
	return true, nil
}

// mayWrite says why nothing may be written now.
func (a *API) mayWrite(what string) error {
	if !a.held() {
		return fmt.Errorf("%s: %w", what, leader.ErrNotLeader)
	}
	return nil
}
