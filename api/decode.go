package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api/spelling"
)

// Decode reads the documents that users write: one JSON or YAML document or a stream of YAML documents, each an object,
// a list of objects, or an object of a List kind. It is strict: an unknown or misplaced field, a value of the wrong
// type, a field or object given twice, an unknown apiVersion or kind are errors. It returns all objects in order, or
// Errors with everything that is wrong, each entry naming its document. Nothing is defaulted or validated.
func Decode(data []byte) ([]Object, error) {
	d := decoder{seen: map[Key]string{}}
	for i, doc := range split(data) {
		d.document(fmt.Sprintf("document %d", i+1), doc)
	}
	if len(d.errs) > 0 {
		return nil, d.errs
	}
	return d.objects, nil
}

// decoder gathers what is in a stream.
//
// +kubebuilder:object:generate=false
type decoder struct {
	objects []Object
	seen    map[Key]string // where each object was met first
	errs    Errors
}

// document is one part of a YAML stream.
//
// +kubebuilder:object:generate=false
type document struct {
	line int // of its beginning, counted from 1
	text []byte
}

// split cuts a stream at the lines that begin with "---" (YAML 1.2, 9.1) and leaves out documents without content.
func split(data []byte) []document {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // a byte order mark
	var docs []document
	current := document{line: 1}
	line := 0
	flush := func() {
		if hasContent(current.text) {
			docs = append(docs, current)
		}
	}
	for text := range bytes.Lines(data) {
		line++
		if rest, ok := bytes.CutPrefix(text, []byte("---")); ok && (len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0]))) {
			flush()
			current = document{line: line, text: rest} // content may follow on the same line
			continue
		}
		current.text = append(current.text, text...)
	}
	flush()
	return docs
}

func hasContent(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return true
		}
	}
	return false
}

func (d *decoder) document(where string, doc document) {
	text := doc.text
	if !json.Valid(text) {
		converted, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			d.errs = append(d.errs, syntaxErrors(err, doc.line).at(where)...)
			return
		}
		text = converted
	}
	d.value(where, text)
}

// value decodes an object, or each of a list.
func (d *decoder) value(where string, text []byte) {
	text = bytes.TrimSpace(text)
	if bytes.Equal(text, []byte("null")) {
		return
	}
	if text[0] == '[' {
		d.items(where, text)
		return
	}
	fields, err := tree(text)
	if err != nil {
		var v any
		_ = json.Unmarshal(text, &v) // it is valid JSON, only no object
		d.fail(where, Error{Value: v, Reason: "is not an object", Fix: "write apiVersion, kind, metadata and spec"})
		return
	}
	kind, _ := fields["kind"].(string)
	if items, ok := fields["items"]; ok && strings.HasSuffix(kind, "List") {
		list, err := json.Marshal(items)
		if _, isList := items.([]any); err != nil || !isList {
			d.fail(where, Error{Field: "items", Value: items, Reason: "is not a list", Fix: "list the objects under items"})
			return
		}
		d.items(where, list)
		return
	}
	d.object(where, text, fields)
}

func (d *decoder) items(where string, text []byte) {
	var items []json.RawMessage
	if err := json.Unmarshal(text, &items); err != nil {
		d.fail(where, Error{Reason: err.Error()})
		return
	}
	for i, item := range items {
		d.value(fmt.Sprintf("%s, items[%d]", where, i), item)
	}
}

func (d *decoder) object(where string, text []byte, fields map[string]any) {
	kind, errs := header(fields)
	if errs != nil {
		d.errs = append(d.errs, errs.at(where)...)
		return
	}
	o := kind.empty()
	where += ", " + describe(kind, fields)
	var c checker
	c.checkShape(fields, reflect.TypeOf(o), "")
	strict, err := kjson.UnmarshalStrict(text, o)
	for _, e := range strict {
		if field, ok := duplicate(e); ok {
			c.bad(path(field), nil, "is given twice", "keep one of the two")
		}
	}
	if err != nil && len(c.errs) == 0 {
		c.bad("", nil, err.Error(), "correct the document")
	}
	if len(c.errs) > 0 {
		d.errs = append(d.errs, c.errs.at(where)...)
		return
	}
	key := KeyOf(o)
	if first, ok := d.seen[key]; ok && key.Name != "" {
		d.fail(where, Error{Field: "metadata.name", Value: key.Name, Reason: "the same object is also in " + first, Fix: "keep one of the two"})
		return
	}
	d.seen[key] = where
	d.objects = append(d.objects, o)
}

func (d *decoder) fail(where string, e Error) {
	e.Where = where
	d.errs = append(d.errs, e)
}

// header judges apiVersion and kind.
func header(fields map[string]any) (Kind, Errors) {
	var c checker
	name, _ := fields["kind"].(string)
	var kind Kind
	if name == "" {
		c.bad("kind", fields["kind"], "is missing", "name the kind of the object, such as kind: IPPool")
	} else if found, ok := LookupKind(name); !ok {
		c.bad("kind", name, "is not a known kind", nearestKind(name))
	} else if kind = found; kind.Name != name {
		c.bad("kind", name, "is not how the kind is written in documents", "write kind: "+kind.Name)
	}
	switch version := fields["apiVersion"]; version {
	case GroupVersion:
	case nil, "":
		c.bad("apiVersion", nil, "is missing", "write apiVersion: "+GroupVersion)
	default:
		c.bad("apiVersion", version, "is not an API version that is served here", "write apiVersion: "+GroupVersion)
	}
	return kind, c.errs
}

func nearestKind(name string) string {
	for _, kind := range kinds {
		if spelling.Distance(name, kind.Name) <= 2 {
			return fmt.Sprintf("did you mean %s?", kind.Name)
		}
	}
	return "use one of " + strings.Join(KindNames(), ", ")
}

// describe names an object that is not decoded yet.
func describe(kind Kind, fields map[string]any) string {
	key := Key{Kind: kind.Name}
	if meta, ok := fields["metadata"].(map[string]any); ok {
		key.Name, _ = meta["name"].(string)
		key.Namespace, _ = meta["namespace"].(string)
	}
	if key.Name == "" {
		return key.Kind
	}
	return key.String()
}

var duplicateField = regexp.MustCompile(`^duplicate field "(.*)"$`)

func duplicate(err error) (field string, ok bool) {
	m := duplicateField.FindStringSubmatch(err.Error())
	if m == nil {
		return "", false
	}
	return m[1], true
}

var (
	yamlLine = regexp.MustCompile(`line (\d+): `)
	yamlKey  = regexp.MustCompile(`key "(.*)" already set in map`)
)

// syntaxErrors turns what the YAML parser says into Errors, its line numbers into those of the stream.
func syntaxErrors(err error, firstLine int) Errors {
	var errs Errors
	for line := range strings.SplitSeq(err.Error(), "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "error converting YAML to JSON: ")
		line = strings.TrimPrefix(line, "yaml: ")
		if line == "" || line == "unmarshal errors:" {
			continue
		}
		line = yamlLine.ReplaceAllStringFunc(line, func(m string) string {
			n, _ := strconv.Atoi(yamlLine.FindStringSubmatch(m)[1])
			return fmt.Sprintf("line %d: ", firstLine-1+n)
		})
		if m := yamlKey.FindStringSubmatch(line); m != nil {
			errs = append(errs, Error{Field: m[1], Reason: strings.Replace(line, "key \""+m[1]+"\" already set in map", "is given twice", 1), Fix: "keep one of the two"})
			continue
		}
		errs = append(errs, Error{Reason: "is neither YAML nor JSON: " + line, Fix: "correct the document there; mind the indentation"})
	}
	if errs == nil {
		errs = Errors{{Reason: errors.Unwrap(err).Error()}}
	}
	return errs
}
