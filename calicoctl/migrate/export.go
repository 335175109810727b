package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// information is what the system says of itself.
var information = api.Key{Kind: "ClusterInformation", Name: api.DefaultName}

// errNotLocked says what comes first.
var errNotLocked = errors.New("the datastore is not locked; lock it first with 'calicoctl datastore migrate lock', so that nobody gives addresses out meanwhile")

// WriteExport writes all that is in a locked datastore, and returns how many objects that was. Nodes are given the names that
// Kubernetes has for them, wherever they are named.
func WriteExport(ctx context.Context, c datastore.Reader, version string, to io.Writer) (int, error) {
	before, err := locked(ctx, c)
	if err != nil {
		return 0, err
	}
	var all []api.Object
	for _, kind := range api.Kinds() {
		list, err := c.List(ctx, kind.Name, datastore.ListOptions{})
		if err != nil {
			return 0, err
		}
		all = append(all, list.Items...)
	}
	names, err := kubernetesNames(all)
	if err != nil {
		return 0, err
	}
	w, err := newWriter(to, Header{ClusterGUID: before.Spec.ClusterGUID, Version: version})
	if err != nil {
		return 0, err
	}
	for _, o := range all {
		if err := w.object(names.rename(o)); err != nil {
			return 0, err
		}
	}
	after, err := locked(ctx, c)
	if err != nil {
		return 0, err
	}
	if after.ResourceVersion != before.ResourceVersion {
		return 0, errors.New("the datastore was unlocked meanwhile: the export is not of one moment; lock it and export again")
	}
	return w.objects, w.close()
}

// locked is the ClusterInformation of a datastore that is locked.
func locked(ctx context.Context, c datastore.Reader) (*api.ClusterInformation, error) {
	o, err := c.Get(ctx, information)
	if err != nil {
		return nil, err
	}
	if info := o.(*api.ClusterInformation); info.Locked() {
		return info, nil
	}
	return nil, errNotLocked
}

// nodeNames maps names of nodes in the datastore to those in Kubernetes, where they differ.
type nodeNames map[string]string

// kubernetesNames reads what nodes say they are in Kubernetes.
func kubernetesNames(all []api.Object) (nodeNames, error) {
	names, taken := nodeNames{}, map[string]string{}
	for _, o := range all {
		n, ok := o.(*api.Node)
		if !ok {
			continue
		}
		name := n.Name
		if at := slices.IndexFunc(n.Spec.OrchRefs, func(r api.OrchRef) bool { return r.Orchestrator == "k8s" && r.NodeName != "" }); at >= 0 {
			name = n.Spec.OrchRefs[at].NodeName
		}
		if other, ok := taken[name]; ok {
			return nil, fmt.Errorf("nodes %s and %s both say that they are node %s of Kubernetes (spec.orchRefs); delete the one that is not", other, n.Name, name)
		}
		taken[name] = n.Name
		if name != n.Name {
			names[n.Name] = name
		}
	}
	return names, nil
}
