package kubernetes

import (
	"encoding/json"
	"errors"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
)

// document is a custom resource as the server sent it: all of it is package api's to read, fields that are not known
// included, so the client leaves it the bytes it is and looks at nothing but the metadata.
type document struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	raw []byte // never changed
}

// DeepCopyObject makes a document a runtime.Object.
func (d *document) DeepCopyObject() runtime.Object {
	return &document{TypeMeta: d.TypeMeta, ObjectMeta: *d.DeepCopy(), raw: d.raw}
}

// documentList is a page of a list of custom resources.
type documentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []document `json:"items"`
}

// UnmarshalJSON keeps a document as it is.
func (d *document) UnmarshalJSON(data []byte) error {
	var head struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ObjectMeta `json:"metadata"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return err
	}
	d.TypeMeta, d.ObjectMeta, d.raw = head.TypeMeta, head.Metadata, append([]byte(nil), data...)
	return nil
}

// DeepCopyObject makes a list a runtime.Object.
func (l *documentList) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = append([]document(nil), l.Items...)
	return &c
}

// documents has client-go read custom resources as documents. It is a runtime.NegotiatedSerializer of JSON alone.
type documents struct{}

// SupportedMediaTypes is JSON.
func (documents) SupportedMediaTypes() []runtime.SerializerInfo {
	return []runtime.SerializerInfo{{
		MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true,
		Serializer: rawJSON{}, StreamSerializer: &runtime.StreamSerializerInfo{EncodesAsText: true, Serializer: rawJSON{}, Framer: kjson.Framer},
	}}
}

// EncoderForVersion converts nothing.
func (documents) EncoderForVersion(e runtime.Encoder, _ runtime.GroupVersioner) runtime.Encoder {
	return e
}

// DecoderToVersion converts nothing.
func (documents) DecoderToVersion(d runtime.Decoder, _ runtime.GroupVersioner) runtime.Decoder {
	return d
}

// rawJSON reads documents, and the few things of the server's own that come in their place.
type rawJSON struct{}

// Decode reads into what is given: a list, the envelope of a watch, a document. Into nothing it reads a Status, or else a
// document.
func (rawJSON) Decode(data []byte, _ *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if into == nil {
		d := &document{}
		if err := json.Unmarshal(data, d); err != nil {
			return nil, nil, err
		}
		if d.APIVersion != "v1" || d.Kind != "Status" {
			gvk := d.GroupVersionKind()
			return d, &gvk, nil
		}
		into = &metav1.Status{}
	}
	if err := json.Unmarshal(data, into); err != nil {
		return nil, nil, err
	}
	gvk := into.GetObjectKind().GroupVersionKind()
	return into, &gvk, nil
}

// Encode refuses: bodies are written as bytes.
func (rawJSON) Encode(runtime.Object, io.Writer) error {
	return errors.New("documents are written as bytes")
}

// Identifier names the encoding.
func (rawJSON) Identifier() runtime.Identifier { return "documents" }
