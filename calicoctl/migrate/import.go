package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// Annotation is, on the target's ClusterInformation, how far an import has come.
const Annotation = "projectcalico.org/datastore-import"

// attempts is how often something is written again that somebody else changed meanwhile.
const attempts = 5

// Progress is what Annotation says, as JSON.
type Progress struct {
	Export string `json:"export"` // its ID
	Done   bool   `json:"done"`
}

// ProgressOf tells how far an import into a datastore has come; ok is false if there never was one.
func ProgressOf(info *api.ClusterInformation) (p Progress, ok bool, err error) {
	text, ok := info.Annotations[Annotation]
	if !ok {
		return Progress{}, false, nil
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return p, true, fmt.Errorf("%s: annotation %s: %w; import again, with --overwrite", information, Annotation, err)
	}
	return p, true, nil
}

// CheckFinished refuses a datastore in which an import has begun and not ended: what is there is a part of a cluster.
func CheckFinished(info *api.ClusterInformation) error {
	p, ok, err := ProgressOf(info)
	if err != nil || !ok || p.Done {
		return err
	}
	return errors.New("an import into this datastore has not finished, so that only a part of the objects is there; run 'calicoctl datastore migrate import' again with the same file")
}

// Result is what an import has done.
type Result struct {
	Written int
	Left    []string // what did not come along, and why
	Already bool     // the same export had been imported before, whole
}

// importer is one run of an import.
type importer struct {
	to   datastore.Client
	uids map[types.UID]types.UID // of objects: in the export, and in the target
}

// Import puts an export into an empty datastore, which is locked from then on. Run again with the same export it goes on where
// it ended. With overwrite it takes over from the unfinished import of another export, of which it leaves what this one does
// not have.
func Import(ctx context.Context, to datastore.Client, x *Export, overwrite bool) (Result, error) {
	p, err := newPlan(x)
	if err != nil {
		return Result{}, err
	}
	im := importer{to: to, uids: map[types.UID]types.UID{}}
	begun, err := im.mayBegin(ctx, x.ID, overwrite)
	if err != nil || begun == finished {
		return Result{Already: begun == finished}, err
	}
	if begun == untouched {
		if err := im.mustBeEmpty(ctx); err != nil {
			return Result{}, err
		}
	}
	if err := im.mustHave(ctx, p.nodes); err != nil {
		return Result{}, err
	}
	if err := im.mark(ctx, p.info, Progress{Export: x.ID}); err != nil {
		return Result{}, err
	}
	for _, o := range p.write {
		if err := im.put(ctx, o); err != nil {
			return Result{}, unfinished(err)
		}
	}
	for _, n := range p.nodes {
		if err := im.node(ctx, n); err != nil {
			return Result{}, unfinished(err)
		}
	}
	for _, o := range p.write {
		if err := im.owners(ctx, o); err != nil {
			return Result{}, unfinished(err)
		}
	}
	if err := im.mark(ctx, p.info, Progress{Export: x.ID, Done: true}); err != nil {
		return Result{}, unfinished(err)
	}
	return Result{Written: len(p.write) + len(p.nodes) + 1, Left: p.remarks()}, nil
}

func unfinished(err error) error {
	return fmt.Errorf("the import has stopped half-way: %w; the datastore stays locked; run the same command again to go on", err)
}

// state is how far imports into the target have come.
type state int

const (
	untouched state = iota // there was none
	begun
	finished
)

// mayBegin judges what earlier imports left.
func (im *importer) mayBegin(ctx context.Context, id string, overwrite bool) (state, error) {
	o, err := im.to.Get(ctx, information)
	if errors.Is(err, datastore.ErrNotFound) {
		return untouched, nil
	}
	if err != nil {
		return untouched, err
	}
	info := o.(*api.ClusterInformation)
	earlier, ok, err := ProgressOf(info)
	switch {
	case overwrite && ok && (err != nil || !earlier.Done):
		return begun, nil
	case err != nil:
		return untouched, err
	case !ok:
		return untouched, nil
	case earlier.Done && earlier.Export == id:
		return finished, nil
	case earlier.Done:
		return untouched, errors.New("another export has been imported into this datastore already; import into an empty one")
	case earlier.Export != id:
		return untouched, errors.New("the import of another export into this datastore has not finished; go on with its file, or give --overwrite to replace what it wrote by what this file says")
	case !info.Locked():
		return untouched, errors.New("the datastore was unlocked while an import was half-way; lock it with 'calicoctl datastore migrate lock' and import again")
	}
	return begun, nil
}

// kubernetesOwn are the kinds that Kubernetes has in objects of its own, or that no import writes.
var kubernetesOwn = []string{"Node", "WorkloadEndpoint", "Profile", "LiveMigration", "Lease"}

// mustBeEmpty refuses a datastore with objects that people, or a running cluster, put there.
func (im *importer) mustBeEmpty(ctx context.Context) error {
	const shownMost = 5
	var found []string
	for _, kind := range api.Kinds() {
		if slices.Contains(kubernetesOwn, kind.Name) {
			continue
		}
		list, err := im.to.List(ctx, kind.Name, datastore.ListOptions{})
		if err != nil {
			return err
		}
		for _, o := range list.Items {
			if leftOut(o) == "" && !systems(o) {
				found = append(found, api.KeyOf(o).String())
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	more := ""
	if len(found) > shownMost {
		more = fmt.Sprintf(" and %d more", len(found)-shownMost)
		found = found[:shownMost]
	}
	return fmt.Errorf("the datastore is not empty: it has %s%s; import before anything is set up, or delete these first", strings.Join(found, ", "), more)
}

// systems tells whether an object is one that every cluster has from its first start.
func systems(o api.Object) bool {
	switch o := o.(type) {
	case *api.ClusterInformation, *api.KubeControllersConfiguration:
		return true
	case *api.Tier:
		return api.IsBuiltinTier(o.Name)
	case *api.FelixConfiguration: // that nobody has set anything in
		return o.Name == api.DefaultName && reflect.DeepEqual(o.Spec, api.FelixConfigurationSpec{})
	}
	return false
}

// mustHave refuses an export with nodes that the target does not have: their blocks would be nobody's.
func (im *importer) mustHave(ctx context.Context, nodes []*api.Node) error {
	var missing []string
	for _, n := range nodes {
		_, err := im.to.Get(ctx, api.KeyOf(n))
		if errors.Is(err, datastore.ErrNotFound) {
			missing = append(missing, n.Name)
			continue
		}
		if err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the export has nodes that this Kubernetes cluster has not: %s; let them join, or delete them in the source (calicoctl delete node NAME, which frees their addresses) and export again", strings.Join(missing, ", "))
	}
	return nil
}

// mark writes how far the import is. The target is locked, and has the cluster's identity, from the first mark on.
func (im *importer) mark(ctx context.Context, from *api.ClusterInformation, p Progress) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return im.change(ctx, from, func(old api.Object) (api.Object, error) {
		info := from.DeepCopy()
		if old != nil {
			info.ObjectMeta = *old.(*api.ClusterInformation).ObjectMeta.DeepCopy()
		}
		if info.Annotations == nil {
			info.Annotations = map[string]string{}
		}
		info.Annotations[Annotation] = string(text)
		info.Spec.DatastoreReady = new(false)
		return info, nil
	})
}

// put creates an object, or replaces what an earlier run or the first start of the system left of it. Owners are told later,
// when all are there.
func (im *importer) put(ctx context.Context, o api.Object) error {
	return im.change(ctx, o, func(old api.Object) (api.Object, error) {
		next := o.DeepCopyObject().(api.Object)
		next.SetOwnerReferences(nil)
		if old != nil {
			api.KeepStatus(next, old)
			next.SetFinalizers(old.GetFinalizers())
		}
		return next, nil
	})
}

// node gives a node of Kubernetes what the export knows of it. Labels that Kubernetes gives stay Kubernetes'.
func (im *importer) node(ctx context.Context, n *api.Node) error {
	return im.change(ctx, n, func(old api.Object) (api.Object, error) {
		if old == nil {
			return nil, &datastore.Error{Op: "update", Key: api.KeyOf(n), Reason: datastore.ErrNotFound}
		}
		next := old.DeepCopyObject().(*api.Node)
		next.Spec = *n.Spec.DeepCopy()
		labels := maps.Clone(n.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, old.GetLabels())
		next.Labels = labels
		return next, nil
	})
}

// owners gives an object those of its owners that came along, by the identity that they have in the target.
func (im *importer) owners(ctx context.Context, o api.Object) error {
	var owners []metav1.OwnerReference
	for _, owner := range o.GetOwnerReferences() {
		if uid, ok := im.uids[owner.UID]; ok {
			owner.UID = uid
			owners = append(owners, owner)
		}
	}
	if len(owners) == 0 {
		return nil
	}
	return im.change(ctx, o, func(old api.Object) (api.Object, error) {
		if old == nil {
			return nil, &datastore.Error{Op: "update", Key: api.KeyOf(o), Reason: datastore.ErrNotFound}
		}
		next := old.DeepCopyObject().(api.Object)
		next.SetOwnerReferences(owners)
		return next, nil
	})
}

// change writes what make makes of the object that is there now, which is nil if there is none, and remembers the identity of
// what was written.
func (im *importer) change(ctx context.Context, o api.Object, make func(old api.Object) (api.Object, error)) error {
	key, err := api.KeyOf(o), error(nil)
	for range attempts {
		var old, next, written api.Object
		old, err = im.to.Get(ctx, key)
		if errors.Is(err, datastore.ErrNotFound) {
			old, err = nil, nil
		}
		if err != nil {
			return err
		}
		if next, err = make(old); err != nil {
			return err
		}
		if old == nil {
			next.SetResourceVersion("")
			next.SetUID("")
			next.SetGeneration(0)
			written, err = im.to.Create(ctx, next)
		} else {
			next.SetResourceVersion(old.GetResourceVersion())
			next.SetUID(old.GetUID())
			next.SetCreationTimestamp(old.GetCreationTimestamp())
			written, err = im.to.Update(ctx, next)
		}
		if err == nil {
			if uid := o.GetUID(); uid != "" {
				im.uids[uid] = written.GetUID()
			}
			return nil
		}
		if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) {
			return err
		}
	}
	return err
}
