package api

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// GroupVersion is the apiVersion of every kind in this package.
const GroupVersion = "projectcalico.org/v3"

// Object is any resource of the projectcalico.org/v3 group. All kinds implement it with pointer receivers.
//
// metadata.resourceVersion is the datastore's revision of the object, opaque to everyone but the datastore.
//
// +kubebuilder:object:generate=false
type Object interface {
	metav1.Object
	runtime.Object

	// Default fills unset fields with their documented defaults. It is idempotent.
	Default()
	// Validate judges this object alone (no other object is looked at). It returns nil or an Errors value with one
	// entry for each bad field. It does not change the object.
	Validate() error
	// Residue holds the fields of the stored JSON that this version does not know, so that a read-modify-write
	// loses nothing. The codec fills it on Decode and merges it on Encode.
	Residue() *Residue
}

// Kind describes one resource kind. The registry (Kinds) is the only list of kinds in the project: the datastore,
// calicoctl, typha's intake and the CRD generator all read it.
//
// +kubebuilder:object:generate=false
type Kind struct {
	Name       string   // as in the kind field: "IPPool"
	Plural     string   // as in storage paths and CRD names: "ippools"
	Aliases    []string // further names calicoctl takes, lower case: "ipp", "pool"
	Namespaced bool
	Internal   bool // kept by the system (IPAM objects, live migrations); calicoctl does not offer it
	New        func() Object
}

// Key identifies an object within the datastore.
type Key struct {
	Kind      string // Kind.Name
	Namespace string // empty for cluster-scoped kinds
	Name      string
}

// KeyOf returns the key of an object, its kind taken from the registry by Go type (TypeMeta may be empty).
func KeyOf(o Object) Key {
	return Key{Kind: KindOf(o).Name, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// String prints the key as users write it: Kind(namespace/name).
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + "(" + k.Name + ")"
	}
	return k.Kind + "(" + k.Namespace + "/" + k.Name + ")"
}
