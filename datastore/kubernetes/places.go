package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	selectors "k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/datastore"
)

// place is where objects of a kind are: one or two resources that they are made of, and what can be written.
type place struct {
	kind    api.Kind
	sources []source
	// find says in which source an object would be, and what it may be called there.
	find   func(api.Key) (where, error)
	writer writer
}

// where is where an object would be.
type where struct {
	source    *source
	namespace string
	names     []string // the usual one first
}

// source is a resource that objects are made of.
type source struct {
	client   rest.Interface
	resource string
	list     func() runtime.Object // an empty list of them
	one      func() runtime.Object // an empty one
	read     func(runtime.Object) (item, error)
	// narrow says which of them a list needs to look at.
	narrow func(datastore.ListOptions) (labels, fields string)
	// look, where one object may be stored under several names, reads the one that counts, as Get does. Somebody who renames one
	// makes the new before he deletes the old.
	look func(context.Context, api.Key) (item, error)
}

// item is what a resource is to us.
type item struct {
	key    api.Key
	object api.Object // nil if it is no object of ours
	ended  bool       // marked as deleted, and as good as gone
}

// writer changes objects of a kind. The objects given are its own.
type writer interface {
	create(ctx context.Context, key api.Key, o api.Object) (api.Object, error)
	update(ctx context.Context, key api.Key, o api.Object) (api.Object, error)
	remove(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error)
}

// place returns where objects of a kind are. key is for errors.
func (c *Client) place(ctx context.Context, op, kind string, key api.Key) (*place, error) {
	k, ok := api.LookupKind(kind)
	if !ok {
		return nil, failed(op, key, fmt.Errorf("kind %q is not known to this version", kind))
	}
	p := &place{kind: k}
	switch k.Name {
	case kindNode:
		p.sources = []source{c.nodes()}
		p.writer = nodes{c}
		p.find = p.only(func(key api.Key) (string, error) { return key.Name, nil })
		return p, nil
	case kindEndpoint:
		p.sources = []source{c.pods()}
		p.writer = pods{c}
		p.find = p.only(kubernetes.PodOf)
		return p, nil
	case kindProfile:
		p.sources = []source{c.namespaces(), c.serviceAccounts()}
		p.writer = readOnly("profiles are made from namespaces and service accounts; label those instead")
		p.find = p.profile
		return p, nil
	case "LiveMigration":
		return nil, failed(op, key, errors.New("objects of this kind are not kept in Kubernetes; those of the system that migrates stand for them"))
	}
	l, err := c.found(ctx, op, key)
	if err != nil {
		return nil, err
	}
	p.sources = []source{c.resources(k, l)}
	p.writer = resources{c: c, kind: k, layout: l}
	p.find = p.custom(l)
	if l.classic && isPolicy(k.Name) {
		p.sources[0].look = func(ctx context.Context, key api.Key) (item, error) {
			it, _, err := c.look(ctx, opWatch, p, key)
			return it, err
		}
	}
	if k.Name == kindPolicy {
		p.sources = append(p.sources, c.policies())
		p.writer = policies{writer: resources{c: c, kind: k, layout: l}}
		p.find = p.policy(p.find)
	}
	return p, nil
}

// only finds objects in the one source.
func (p *place) only(name func(api.Key) (string, error)) func(api.Key) (where, error) {
	return func(key api.Key) (where, error) {
		n, err := name(key)
		return where{&p.sources[0], key.Namespace, []string{n}}, err
	}
}

func (p *place) custom(l *layout) func(api.Key) (where, error) {
	return func(key api.Key) (where, error) {
		names, err := l.names(p.kind, key)
		return where{&p.sources[0], key.Namespace, names}, err
	}
}

func (p *place) profile(key api.Key) (where, error) {
	namespace, account, ok := kubernetes.ProfileOf(key.Name)
	switch {
	case !ok:
		return where{}, datastore.ErrNotFound
	case account != "":
		return where{&p.sources[1], namespace, []string{account}}, nil
	}
	return where{&p.sources[0], "", []string{namespace}}, nil
}

func (p *place) policy(custom func(api.Key) (where, error)) func(api.Key) (where, error) {
	return func(key api.Key) (where, error) {
		if name, ok := strings.CutPrefix(key.Name, kubernetes.NamePrefix); ok {
			return where{&p.sources[1], key.Namespace, []string{name}}, nil
		}
		return custom(key)
	}
}

func (c *Client) resources(kind api.Kind, l *layout) source {
	return source{
		client: l.client, resource: l.resource(kind),
		list: func() runtime.Object { return &documentList{} },
		one:  func() runtime.Object { return &document{} },
		read: func(o runtime.Object) (item, error) {
			it, err := l.decode(kind, o.(*document))
			if err == nil && kind.Name == kindPolicy && strings.HasPrefix(it.key.Name, kubernetes.NamePrefix) {
				it.object = nil // the name belongs to a policy of Kubernetes, if anything has it
			}
			return it, err
		},
		narrow: func(opts datastore.ListOptions) (string, string) {
			// Affinities that older versions wrote have no labels.
			if parts := strings.SplitN(opts.NamePrefix, "/", 3); kind.Name == kindAffinity && len(parts) == 3 && !l.classic {
				return labels.SelectorFromSet(labels.Set{labelHostHash: hostHash(parts[1])}).String(), ""
			}
			return "", ""
		},
	}
}

func (c *Client) nodes() source {
	return source{
		client: c.core, resource: "nodes",
		list: func() runtime.Object { return &corev1.NodeList{} },
		one:  func() runtime.Object { return &corev1.Node{} },
		read: func(o runtime.Object) (item, error) {
			n, wrong := kubernetes.Node(o.(*corev1.Node), c.cfg.UsePodCIDR)
			return c.translated(n, wrong), nil
		},
	}
}

func (c *Client) pods() source {
	return source{
		client: c.core, resource: "pods",
		list: func() runtime.Object { return &corev1.PodList{} },
		one:  func() runtime.Object { return &corev1.Pod{} },
		read: func(o runtime.Object) (item, error) {
			e, wrong := kubernetes.Endpoint(o.(*corev1.Pod))
			if e == nil {
				return item{}, nil
			}
			return c.translated(e, wrong), nil
		},
		narrow: func(opts datastore.ListOptions) (string, string) {
			// The server then tells of a pod when it is bound to a node, as one that is new.
			selector := selectors.OneTermNotEqualSelector("spec.nodeName", "")
			if opts.Node != "" {
				selector = selectors.OneTermEqualSelector("spec.nodeName", opts.Node)
			}
			return "", selector.String()
		},
	}
}

func (c *Client) namespaces() source {
	return source{
		client: c.core, resource: "namespaces",
		list: func() runtime.Object { return &corev1.NamespaceList{} },
		one:  func() runtime.Object { return &corev1.Namespace{} },
		read: func(o runtime.Object) (item, error) {
			return c.translated(kubernetes.NamespaceProfile(o.(*corev1.Namespace)), nil), nil
		},
	}
}

func (c *Client) serviceAccounts() source {
	return source{
		client: c.core, resource: "serviceaccounts",
		list: func() runtime.Object { return &corev1.ServiceAccountList{} },
		one:  func() runtime.Object { return &corev1.ServiceAccount{} },
		read: func(o runtime.Object) (item, error) {
			return c.translated(kubernetes.ServiceAccountProfile(o.(*corev1.ServiceAccount)), nil), nil
		},
	}
}

func (c *Client) policies() source {
	return source{
		client: c.networking, resource: "networkpolicies",
		list: func() runtime.Object { return &networkingv1.NetworkPolicyList{} },
		one:  func() runtime.Object { return &networkingv1.NetworkPolicy{} },
		read: func(o runtime.Object) (item, error) {
			p, err := kubernetes.Policy(o.(*networkingv1.NetworkPolicy))
			if err != nil {
				return item{key: kubernetes.PolicyKey(o.(*networkingv1.NetworkPolicy))}, err
			}
			return c.translated(p, nil), nil
		},
	}
}

// translated is an object made of a resource; what is wrong with that is told to the log.
func (c *Client) translated(o api.Object, wrong error) item {
	key := api.KeyOf(o)
	c.tell(key, wrong)
	return item{key: key, object: o}
}

// tell tells the log what is wrong with a resource, once for each thing.
func (c *Client) tell(key api.Key, wrong error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case wrong == nil:
		delete(c.ill, key)
	case c.ill[key] != wrong.Error():
		c.ill[key] = wrong.Error()
		c.log.Warn("a resource says what cannot be understood, which is ignored; correct it", "object", key.String(), "error", wrong)
	}
}
