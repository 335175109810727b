package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/datastore"
)

// nodes are the nodes of Kubernetes, of which only annotations are ours to write.
type nodes struct{ c *Client }

func (n nodes) create(ctx context.Context, key api.Key, _ api.Object) (api.Object, error) {
	if _, err := n.c.Get(ctx, key); err != nil {
		return nil, fmt.Errorf("nodes are made by kubelet, which has not registered this one; start it, or correct the node's name (NODENAME): %w", err)
	}
	return nil, &datastore.Error{Op: opCreate, Key: key, Reason: datastore.ErrExists}
}

func (n nodes) remove(context.Context, api.Key, datastore.Precondition) (api.Object, error) {
	return readOnly("nodes belong to Kubernetes; delete this one there, with kubectl delete node").refuse()
}

func (n nodes) update(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	p, err := n.c.place(ctx, opUpdate, kindNode, key)
	if err != nil {
		return nil, err
	}
	it, r, err := n.c.look(ctx, opUpdate, p, key)
	if err != nil {
		return nil, err
	}
	had := r.(*corev1.Node)
	if o.GetResourceVersion() != had.ResourceVersion {
		return nil, &datastore.Error{Op: opUpdate, Key: key, Reason: datastore.ErrConflict}
	}
	patch := different(kubernetes.NodeAnnotations(o.(*api.Node), had.Labels), had.Annotations, true)
	if len(patch) == 0 {
		return it.object, nil
	}
	now := &corev1.Node{}
	meta := map[string]any{"annotations": patch, "uid": had.UID, "resourceVersion": had.ResourceVersion}
	if err := n.c.annotate(ctx, opUpdate, key, p, had.Name, meta, now); err != nil {
		return nil, err
	}
	it, err = p.sources[0].read(now)
	return it.object, err
}

// pods are pods, of which only annotations are ours to write. What an endpoint's write compares is the pod's uid and not its
// revision: kubelet and others change pods all the time, and nobody else writes these annotations.
type pods struct{ c *Client }

func (w pods) create(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	return w.note(ctx, opCreate, key, o)
}

func (w pods) update(ctx context.Context, key api.Key, o api.Object) (api.Object, error) {
	return w.note(ctx, opUpdate, key, o)
}

// note notes on a pod how its endpoint is wired.
func (w pods) note(ctx context.Context, op string, key api.Key, o api.Object) (api.Object, error) {
	p, it, pod, err := w.look(ctx, op, key)
	switch {
	case err != nil:
		return nil, err
	case o.GetUID() != "" && o.GetUID() != it.object.GetUID():
		return nil, another(op, key, it.object)
	case op == opCreate && kubernetes.IsWired(pod):
		return nil, &datastore.Error{Op: op, Key: key, Reason: datastore.ErrExists}
	}
	return w.patch(ctx, op, key, p, it, pod, kubernetes.EndpointAnnotations(o.(*api.WorkloadEndpoint)))
}

// remove notes that a pod is no longer wired. One on which nothing is noted has no endpoint that could be removed. Of one that is known
// by its uid nothing has to be read.
func (w pods) remove(ctx context.Context, key api.Key, pre datastore.Precondition) (api.Object, error) {
	none := kubernetes.EndpointAnnotations(nil)
	if pre.UID != "" {
		return w.clear(ctx, key, types.UID(pre.UID), none)
	}
	p, it, pod, err := w.look(ctx, opDelete, key)
	switch {
	case err != nil:
		return nil, err
	case !kubernetes.IsWired(pod):
		return nil, &datastore.Error{Op: opDelete, Key: key, Reason: datastore.ErrNotFound}
	}
	_, err = w.patch(ctx, opDelete, key, p, it, pod, none)
	return it.object, err
}

// clear writes annotations of the pod whose endpoint has that uid.
func (w pods) clear(ctx context.Context, key api.Key, uid types.UID, annotations map[string]string) (api.Object, error) {
	p, err := w.c.place(ctx, opDelete, kindEndpoint, key)
	if err != nil {
		return nil, err
	}
	name, err := kubernetes.PodOf(key)
	if err != nil {
		return nil, err
	}
	now := &corev1.Pod{}
	meta := map[string]any{"annotations": annotations, "uid": kubernetes.ReversedUID(uid)}
	if err := w.c.annotate(ctx, opDelete, key, p, name, meta, now); err != nil {
		return nil, err
	}
	it, err := p.sources[0].read(now)
	return it.object, err
}

func (w pods) look(ctx context.Context, op string, key api.Key) (*place, item, *corev1.Pod, error) {
	p, err := w.c.place(ctx, op, kindEndpoint, key)
	if err != nil {
		return nil, item{}, nil, err
	}
	it, r, err := w.c.look(ctx, op, p, key)
	if err != nil {
		return nil, item{}, nil, err
	}
	return p, it, r.(*corev1.Pod), nil
}

func (w pods) patch(ctx context.Context, op string, key api.Key, p *place, it item, pod *corev1.Pod, want map[string]string) (api.Object, error) {
	patch := different(want, pod.Annotations, false)
	if len(patch) == 0 {
		return it.object, nil
	}
	now := &corev1.Pod{}
	if err := w.c.annotate(ctx, op, key, p, pod.Name, map[string]any{"annotations": patch, "uid": pod.UID}, now); err != nil {
		return nil, err
	}
	it, err := p.sources[0].read(now)
	return it.object, err
}

func another(op string, key api.Key, o api.Object) error {
	return &datastore.Error{
		Op: op, Key: key, Reason: datastore.ErrConflict,
		Err: fmt.Errorf("the uid of the pod's endpoint is %s: it is another pod of that name", o.GetUID()),
	}
}

// annotate patches a resource's metadata through its status, for which a smaller right is enough than for the whole.
func (c *Client) annotate(ctx context.Context, op string, key api.Key, p *place, name string, meta map[string]any, into runtime.Object) error {
	body, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return failed(op, key, err)
	}
	s := &p.sources[0]
	return c.do(ctx, op, key, func(ctx context.Context) error {
		return s.client.Patch(types.StrategicMergePatchType).NamespaceIfScoped(key.Namespace, p.kind.Namespaced).Resource(s.resource).
			Name(name).SubResource("status").Body(body).Do(ctx).Into(into)
	})
}

// different are the annotations that have to change. Empty ones go, if clear says so, or else are written empty.
func different(want, have map[string]string, clear bool) map[string]any {
	patch := map[string]any{}
	for k, v := range want {
		switch had, ok := have[k]; {
		case v == "" && clear && ok:
			patch[k] = nil
		case v == "" && clear:
		case !ok || had != v:
			patch[k] = v
		}
	}
	return patch
}
