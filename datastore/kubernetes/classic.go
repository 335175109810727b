package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
)

// In the classic layout an object's metadata is the JSON of an annotation; the resource's own metadata has only what the
// server needs. The two functions here translate on the JSON, so that fields unknown to this version pass through in both
// directions.

const (
	// annotationMetadata holds an object's metadata.
	annotationMetadata = "projectcalico.org/metadata"
	// ownDomain begins the labels and annotations that the resource has too.
	ownDomain = "projectcalico.org/"
	// defaultTierPrefix began the names of the policies of tier default in older versions.
	defaultTierPrefix = api.TierDefault + "."
)

// isPolicy tells whether objects of a kind belong to tiers.
func isPolicy(kind string) bool {
	switch kind {
	case kindPolicy, "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy":
		return true
	}
	return false
}

// fields is a JSON object whose values stay as they were written.
type fields map[string]json.RawMessage

func (f fields) set(name string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // metadata and words are JSON
	}
	f[name] = data
}

// within is the object under a name, an empty one if there is none.
func (f fields) within(name string) (fields, error) {
	if text := f[name]; len(text) > 0 && string(text) != "null" {
		return parse(text)
	}
	return fields{}, nil
}

func parse(data []byte) (f fields, err error) {
	if err = json.Unmarshal(data, &f); err == nil && f == nil {
		err = errors.New("it is not an object")
	}
	return f, err
}

// toClassic makes a document classic. kind is what the layout calls it, and name the object's own.
func toClassic(kind, name string, data []byte) ([]byte, error) {
	doc, err := parse(data)
	if err != nil {
		return nil, err
	}
	var meta metav1.ObjectMeta
	if err := json.Unmarshal(doc["metadata"], &meta); err != nil {
		return nil, err
	}
	for i, owner := range meta.OwnerReferences {
		if owner.APIVersion == api.GroupVersion {
			meta.OwnerReferences[i].APIVersion, meta.OwnerReferences[i].UID = classicGroup.String(), kubernetes.ReversedUID(owner.UID)
		}
	}
	hidden := meta
	hidden.Name, hidden.Namespace, hidden.ResourceVersion, hidden.Generation = "", "", "", 0
	if isPolicy(kind) {
		hidden.Name = name
	}
	text, err := json.Marshal(hidden)
	if err != nil {
		return nil, err
	}
	own := metav1.ObjectMeta{
		Name: meta.Name, Namespace: meta.Namespace, ResourceVersion: meta.ResourceVersion,
		Labels: ofOwnDomain(meta.Labels), Annotations: ofOwnDomain(meta.Annotations),
		OwnerReferences: meta.OwnerReferences, Finalizers: meta.Finalizers,
	}
	own.Annotations[annotationMetadata] = string(text)
	doc.set("metadata", own)
	doc.set("apiVersion", classicGroup.String())
	doc.set("kind", kind)
	if kind == kindAffinity || kind == kindBlock {
		spec, err := doc.within("spec")
		if err != nil {
			return nil, err
		}
		if kind == kindAffinity { // a word there
			spec.set("deleted", string(orFalse(spec["deleted"])))
		} else if _, given := spec["strictAffinity"]; !given { // means nothing, and must be there
			spec.set("strictAffinity", false)
		}
		doc.set("spec", spec)
	}
	return json.Marshal(doc)
}

// fromClassic makes a classic document one of the API, and says the object's name.
func fromClassic(kind api.Kind, d *document) (name string, data []byte, err error) {
	doc, err := parse(d.raw)
	if err != nil {
		return d.Name, nil, err
	}
	meta := d.ObjectMeta
	text, hidden := d.Annotations[annotationMetadata]
	if hidden {
		meta = metav1.ObjectMeta{}
		if err := json.Unmarshal([]byte(text), &meta); err != nil {
			return d.Name, nil, fmt.Errorf("annotation %s: %w; correct or remove it", annotationMetadata, err)
		}
	}
	switch {
	case !isPolicy(kind.Name):
		meta.Name = d.Name
	case !hidden || meta.Name == "":
		if meta.Name = d.Name; ofDefaultTier(doc) {
			meta.Name = strings.TrimPrefix(d.Name, defaultTierPrefix)
		}
	}
	if meta.CreationTimestamp.IsZero() {
		meta.CreationTimestamp = d.CreationTimestamp
	}
	meta.Namespace, meta.ResourceVersion, meta.Generation = d.Namespace, d.ResourceVersion, d.Generation
	meta.UID = kubernetes.ReversedUID(d.UID)
	meta.DeletionTimestamp, meta.DeletionGracePeriodSeconds, meta.Finalizers = d.DeletionTimestamp, d.DeletionGracePeriodSeconds, d.Finalizers
	meta.OwnerReferences, meta.ManagedFields = slices.Clone(d.OwnerReferences), nil
	for i, owner := range meta.OwnerReferences {
		if owner.APIVersion == classicGroup.String() {
			meta.OwnerReferences[i].APIVersion, meta.OwnerReferences[i].UID = api.GroupVersion, kubernetes.ReversedUID(owner.UID)
		}
	}
	doc.set("metadata", meta)
	doc.set("apiVersion", api.GroupVersion)
	doc.set("kind", kind.Name)
	if kind.Name == kindAffinity {
		spec, err := doc.within("spec")
		if err != nil {
			return meta.Name, nil, err
		}
		var word string
		if json.Unmarshal(spec["deleted"], &word) == nil {
			spec.set("deleted", word == "true")
		}
		doc.set("spec", spec)
	}
	data, err = json.Marshal(doc)
	return meta.Name, data, err
}

// ofDefaultTier tells whether a stored policy is of tier default.
func ofDefaultTier(doc fields) bool {
	var spec struct {
		Tier string `json:"tier"`
	}
	if len(doc["spec"]) > 0 && json.Unmarshal(doc["spec"], &spec) != nil {
		return false
	}
	return spec.Tier == "" || spec.Tier == api.TierDefault
}

// ofOwnDomain are the entries whose keys are of our domain.
func ofOwnDomain(all map[string]string) map[string]string {
	own := map[string]string{}
	for k, v := range all {
		if strings.HasPrefix(k, ownDomain) {
			own[k] = v
		}
	}
	return own
}

func orFalse(value json.RawMessage) json.RawMessage {
	if len(value) == 0 || string(value) == "null" {
		return json.RawMessage("false")
	}
	return value
}
