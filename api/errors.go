package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Error says what is wrong with one field and what to write instead.
//
// +kubebuilder:object:generate=false
type Error struct {
	Where  string // the document or object, when more than one is looked at: "document 2, IPPool(pool-a)"
	Field  string // JSON path: "spec.ingress[0].source.nets[1]"
	Value  any    // what the field holds; nil if the field is missing or its value does not matter
	Reason string // what is wrong with it
	Fix    string // what to do about it
}

// Error is one line: [where: ]field: value: reason; fix.
func (e Error) Error() string {
	var b strings.Builder
	if e.Where != "" {
		b.WriteString(e.Where + ": ")
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	if e.Value != nil {
		b.WriteString(shown(e.Value) + ": ")
	}
	b.WriteString(e.Reason)
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// shown is a value on one line, long ones cut.
func shown(v any) string {
	const most = 120
	s := fmt.Sprint(v)
	switch kind := reflect.TypeOf(v).Kind(); kind {
	case reflect.String:
		if _, number := v.(json.Number); !number {
			s = fmt.Sprintf("%q", v)
		}
	case reflect.Map, reflect.Slice, reflect.Pointer:
		if text, err := marshal(v); err == nil {
			s = string(text)
		}
	}
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Errors lists all that is wrong, in the order of the fields. It is never empty when used as an error.
//
// +kubebuilder:object:generate=false
type Errors []Error

// Error has one line for each entry.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find a single Error.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i := range e {
		out[i] = e[i]
	}
	return out
}

// at returns the entries marked with where they were found.
func (e Errors) at(where string) Errors {
	out := make(Errors, len(e))
	for i := range e {
		out[i] = e[i]
		out[i].Where = where
	}
	return out
}

// checker collects what a Validate finds.
//
// +kubebuilder:object:generate=false
type checker struct {
	errs Errors
}

func (c *checker) bad(field path, value any, reason, fix string) {
	c.errs = append(c.errs, Error{Field: string(field), Value: value, Reason: reason, Fix: fix})
}

// err is nil if nothing was found.
func (c *checker) err() error {
	if len(c.errs) == 0 {
		return nil
	}
	return c.errs
}

// path is the JSON path of a field.
type path string

func (p path) at(name string) path {
	if p == "" {
		return path(name)
	}
	return p + "." + path(name)
}

func (p path) index(i int) path { return path(fmt.Sprintf("%s[%d]", p, i)) }

func (p path) key(k string) path { return path(fmt.Sprintf("%s[%s]", p, k)) }
