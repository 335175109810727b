package compute

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// resource makes the entry of a resource that nodes need as it is. What no node has a use for is taken off first, so
// that its changes are no changes of the view: all metadata but the name, unknown fields, and status by the caller.
func resource(o api.Object) *views.Entry {
	c := o.DeepCopyObject().(api.Object)
	bare(c)
	return views.NewEntry(view.Resource{Object: c})
}

// bare leaves nothing of the metadata but name, namespace and labels.
func bare(o api.Object) {
	kind := schema.FromAPIVersionAndKind(api.GroupVersion, api.KindOf(o).Name)
	o.GetObjectKind().SetGroupVersionKind(kind)
	o.SetGenerateName("")
	o.SetSelfLink("")
	o.SetUID("")
	o.SetResourceVersion("")
	o.SetGeneration(0)
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	o.SetDeletionGracePeriodSeconds(nil)
	o.SetAnnotations(nil)
	o.SetOwnerReferences(nil)
	o.SetFinalizers(nil)
	o.SetManagedFields(nil)
	o.Residue().Clear()
}

func resourceKey(kind, name string) view.Key {
	return view.Key{Kind: view.KindResource, ID: kind + "//" + name}
}

// bgpNode is what the BGP view needs of a node: its addresses and AS, and the labels that peerings select by.
func bgpNode(o *api.Node) *api.Node {
	n := &api.Node{}
	n.Name, n.Labels = o.Name, o.Labels
	n.Spec.BGP = o.Spec.BGP
	return n
}

// setPool takes in a pool, or with nil its end.
func (e *Engine) setPool(key api.Key, o *api.IPPool) {
	e.routes.setPool(key.Name, o)
	if o == nil {
		e.out.allDrop(views.NodeView, resourceKey(key.Kind, key.Name))
		e.out.allDrop(views.BGPView, resourceKey(key.Kind, key.Name))
		return
	}
	pool := &api.IPPool{Spec: *o.Spec.DeepCopy()}
	pool.Name = o.Name
	pool.Default()
	entry := resource(pool)
	e.out.all(views.NodeView, entry)
	e.out.all(views.BGPView, entry)
}

// setBGP takes in a resource that only the BGP view needs, or with nil its end. What configures one node goes to all: they
// dial its port.
func (e *Engine) setBGP(key api.Key, o api.Object) {
	switch key.Kind {
	case "BGPConfiguration":
		c, _ := o.(*api.BGPConfiguration)
		if key.Name == api.DefaultName {
			e.originations.setConfig(c)
		}
		e.setSpeaker(key.Name, c)
		e.secrets.setConfig(key.Name, c)
	case "BGPPeer":
		p, _ := o.(*api.BGPPeer)
		e.secrets.setPeer(key.Name, p)
		e.setPeering(key.Name, p)
	}
	k := resourceKey(key.Kind, key.Name)
	if o == nil {
		e.out.allDrop(views.BGPView, k)
		return
	}
	entry := resource(o)
	entry.Item().(view.Resource).Object.SetLabels(nil)
	e.out.all(views.BGPView, entry)
}
