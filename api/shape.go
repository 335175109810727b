package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/spelling"
)

// checkShape compares decoded JSON with a Go type: every key must be a field of the type, and every value of the kind
// that the field takes. Unlike a decoder it finds all faults, with their exact place.
func (c *checker) checkShape(v any, t reflect.Type, at path) {
	s := shape{checker: c, root: t}
	s.check(v, t, at)
}

// shape is one walk of checkShape.
//
// +kubebuilder:object:generate=false
type shape struct {
	*checker
	root reflect.Type
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func (s shape) check(v any, t reflect.Type, at path) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil {
		return // null is the same as leaving the field out
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		s.checkCustom(v, t, at)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		m, ok := v.(map[string]any)
		if !ok {
			s.mismatch(at, v, "an object (fields with values)")
			return
		}
		known := fieldsOf(t)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if ft, ok := known[key]; ok {
				s.check(m[key], ft, at.at(key))
			} else {
				s.unknown(at.at(key), key, m[key], known)
			}
		}
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			s.mismatch(at, v, "a map (keys with values)")
			return
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			s.check(m[key], t.Elem(), at.key(key))
		}
	case reflect.Slice:
		l, ok := v.([]any)
		if !ok {
			s.mismatch(at, v, "a list")
			return
		}
		for i := range l {
			s.check(l[i], t.Elem(), at.index(i))
		}
	case reflect.Interface:
	default:
		s.checkScalar(v, t, at)
	}
}

// checkCustom has a type that reads its own JSON try.
func (s shape) checkCustom(v any, t reflect.Type, at path) {
	text, err := json.Marshal(v)
	if err == nil {
		err = reflect.New(t).Interface().(json.Unmarshaler).UnmarshalJSON(text)
	}
	if err != nil {
		what, fix := custom(t)
		if what == "" {
			what, fix = strings.TrimPrefix(err.Error(), "json: "), "correct the value"
		}
		s.bad(at, v, what, fix)
	}
}

func (s shape) checkScalar(v any, t reflect.Type, at path) {
	switch t.Kind() {
	case reflect.String:
		if _, ok := v.(string); !ok {
			s.bad(at, v, fmt.Sprintf("is %s where a string is expected", article(v)), fmt.Sprintf("put it in quotes: %q", fmt.Sprint(v)))
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			s.mismatch(at, v, "true or false, without quotes,")
		}
	default: // numbers: the decoder itself knows their ranges
		n, ok := v.(json.Number)
		if !ok {
			s.mismatch(at, v, "a number, without quotes,")
			return
		}
		if err := json.Unmarshal([]byte(n), reflect.New(t).Interface()); err != nil {
			s.bad(at, n, fmt.Sprintf("does not fit: the field takes %s", numbers(t)), "write a number in that range")
		}
	}
}

func (s shape) mismatch(at path, v any, want string) {
	s.bad(at, v, fmt.Sprintf("is %s where %s is expected", article(v), want), "correct the value, or check the indentation around it")
}

func (s shape) unknown(at path, key string, v any, siblings map[string]reflect.Type) {
	s.bad(at, v, "field in document is not recognized or is in the wrong location: "+key, s.place(key, siblings))
}

// place proposes what an unknown field was meant to be: one with almost this name here, or one of this name elsewhere.
func (s shape) place(key string, siblings map[string]reflect.Type) string {
	for _, name := range slices.Sorted(maps.Keys(siblings)) {
		if spelling.Distance(key, name) <= 2 && len(key) > 2 {
			return fmt.Sprintf("did you mean %s?", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(siblings)) {
		if where := find(siblings[name], key, path(name), 1); where != "" {
			return "it belongs at " + string(where) + " here"
		}
	}
	if where := find(s.root, key, "", 0); where != "" {
		return "it belongs at " + string(where)
	}
	if len(siblings) > 24 {
		return "remove it or correct its spelling"
	}
	return "remove it; the fields here are " + strings.Join(slices.Sorted(maps.Keys(siblings)), ", ")
}

// find is where in a type a field of that name is, at most a few levels deep.
func find(t reflect.Type, key string, at path, depth int) path {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || depth > 3 || reflect.PointerTo(t).Implements(unmarshaler) {
		return ""
	}
	known := fieldsOf(t)
	if _, ok := known[key]; ok {
		return at.at(key)
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		ft, sub := known[name], at.at(name)
		if ft.Kind() == reflect.Slice {
			ft, sub = ft.Elem(), sub+"[]"
		}
		if where := find(ft, key, sub, depth+1); where != "" {
			return where
		}
	}
	return ""
}

// fieldsOf maps the JSON names of a struct's fields, embedded ones included, to their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous:
			maps.Copy(fields, fieldsOf(f.Type))
		case f.IsExported() && name != "":
			fields[name] = f.Type
		}
	}
	return fields
}

// article names the JSON type of a value.
func article(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case []any:
		return "a list"
	default:
		return "an object"
	}
}

// custom describes the types that read their own JSON.
func custom(t reflect.Type) (what, fix string) {
	switch t.Name() {
	case "ASNumber":
		return "is not an AS number", "write 1 to 4294967295, or two 16-bit halves such as \"1.10\""
	case "Port":
		return "is not a port", "write 1 to 65535, a range such as \"8000:8080\" with the lower port first, or a name"
	case "Protocol":
		return "is not a protocol", "write a name such as TCP, or a number from 1 to 255"
	case "DSCP":
		return "is not a DSCP", "write 0 to 63, or a name such as EF"
	case "Duration":
		return "is not a duration", "write one like 90s or 1m30s"
	case "Time", "MicroTime":
		return "is not a time", "write one like 2026-01-02T15:04:05Z"
	case "IntOrString":
		return "is neither a number nor a string", "write one of the two"
	}
	return "", ""
}

func numbers(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Float32, reflect.Float64:
		return "numbers"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return fmt.Sprintf("whole numbers from 0 to %d", ^uint64(0)>>(64-t.Bits()))
	default:
		return fmt.Sprintf("whole numbers up to %d", int64(^uint64(0)>>1)>>(64-t.Bits()))
	}
}
