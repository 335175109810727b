package etcd

import (
	"fmt"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// encode returns the value to store for an object.
func encode(kind api.Kind, o api.Object) ([]byte, error) {
	document, err := api.Encode(o)
	if err != nil {
		return nil, fmt.Errorf("encoding it: %w", err)
	}
	if isIPAM(kind.Name) {
		return ipamValue(kind.Name, document)
	}
	return document, nil
}

// decode returns the object stored under a key. Its name and namespace are those of the key, whatever the value says.
func decode(kind api.Kind, key api.Key, kv *mvccpb.KeyValue) (api.Object, error) {
	document := kv.Value
	if isIPAM(kind.Name) {
		var err error
		if document, err = ipamDocument(kind.Name, key.Name, kv.Value); err != nil {
			return nil, err
		}
	}
	o, err := api.DecodeStored(kind, document)
	if err != nil {
		return nil, err
	}
	o.SetName(key.Name)
	o.SetNamespace(key.Namespace)
	o.SetResourceVersion(strconv.FormatInt(kv.ModRevision, 10))
	return o, nil
}

// lastState returns the object of the last value known of a deleted key, or one that has nothing but its key.
func (c *Client) lastState(kind api.Kind, key api.Key, previous []*mvccpb.KeyValue) api.Object {
	if len(previous) > 0 {
		if o, err := decode(kind, key, previous[0]); err == nil {
			return o
		}
	}
	o := kind.New()
	o.SetName(key.Name)
	o.SetNamespace(key.Namespace)
	return o
}

// clearMeta empties what the IPAM kinds do not store, so that the object a write returns is the one that later reads do.
func clearMeta(o api.Object) {
	o.SetUID("")
	o.SetCreationTimestamp(metav1.Time{})
	o.SetDeletionTimestamp(nil)
	o.SetLabels(nil)
	o.SetAnnotations(nil)
	o.SetFinalizers(nil)
	o.SetOwnerReferences(nil)
	o.SetManagedFields(nil)
	o.SetGeneration(0)
}
