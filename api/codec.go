package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	kjson "sigs.k8s.io/json"
)

// DecodeStored reads the JSON of one object of a kind, as a datastore holds it. It is lenient: what the type does not
// know is kept in the object's Residue, so that Encode gives it back. It fails only where a known field holds what
// cannot be read. Defaults are not applied and nothing is validated.
func DecodeStored(kind Kind, data []byte) (Object, error) {
	o := kind.empty()
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, o); err != nil {
		return nil, fmt.Errorf("stored %s cannot be read: %w", kind.Name, err)
	}
	if got := o.GetObjectKind().GroupVersionKind(); got.Kind != kind.Name {
		return nil, fmt.Errorf("stored object is a %q where a %s was expected", got.Kind, kind.Name)
	}
	o.GetObjectKind().SetGroupVersionKind(groupVersion.WithKind(kind.Name))
	known, err := marshal(o)
	if err != nil {
		return nil, fmt.Errorf("stored %s cannot be read: %w", kind.Name, err)
	}
	if bytes.Equal(known, bytes.TrimSpace(data)) {
		return o, nil
	}
	storedTree, err := tree(data)
	if err != nil {
		return nil, fmt.Errorf("stored %s cannot be read: %w", kind.Name, err)
	}
	knownTree, err := tree(known)
	if err != nil {
		return nil, fmt.Errorf("stored %s cannot be read: %w", kind.Name, err)
	}
	// What a group of another name was stored under is the backend's matter, not the object's.
	delete(storedTree, "apiVersion")
	o.Residue().fill(storedTree, knownTree)
	return o, nil
}

// Encode gives an object's canonical JSON, with apiVersion, kind and its Residue: equal objects give equal bytes.
// Fields are in the order of their declaration, or sorted if there is a residue to merge.
func Encode(o Object) ([]byte, error) {
	o = withType(o)
	known, err := marshal(o)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be written as JSON: %w", KeyOf(o), err)
	}
	if o.Residue().IsEmpty() {
		return known, nil
	}
	knownTree, err := tree(known)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be written as JSON: %w", KeyOf(o), err)
	}
	data, err := marshal(o.Residue().merge(knownTree))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be written as JSON: %w", KeyOf(o), err)
	}
	return data, nil
}

// withType returns the object, or a copy if apiVersion and kind have to be filled in.
func withType(o Object) Object {
	want := groupVersion.WithKind(KindOf(o).Name)
	if o.GetObjectKind().GroupVersionKind() == want {
		return o
	}
	o = o.DeepCopyObject().(Object)
	o.GetObjectKind().SetGroupVersionKind(want)
	return o
}

// marshal is JSON without the escapes that are for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// tree decodes a JSON object with its numbers as they are written.
func tree(data []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("there is more after the object")
	}
	if m == nil {
		return nil, fmt.Errorf("it is not an object")
	}
	return m, nil
}
