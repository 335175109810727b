package render

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/muslin-net/muslin/api/spelling"
)

// errAlias refuses what could make a short text a long one.
var errAlias = errors.New("anchors and aliases are not read here; write the value out")

// field is a place in a description: its value there, and its name for people. The value is nil where there is none.
type field struct {
	file string
	path string // spec.calicoNetwork.mtu
	node *yaml.Node
}

// documents splits a text into its YAML documents.
func documents(file string, text []byte) (out []field, err error) {
	// The parser panics on some texts that are not YAML.
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("%s: it is not YAML: %v", file, r)
		}
	}()
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var n yaml.Node
		switch err := d.Decode(&n); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("%s: it is not YAML: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
			out = append(out, field{file: file, node: n.Content[0]})
		}
	}
}

// there tells whether the field has a value. One that is null counts as left out, as Kubernetes has it.
func (f field) there() bool { return f.node != nil && f.node.Tag != "!!null" }

// wrong is an error about the field; it begins with file and line.
func (f field) wrong(format string, a ...any) error {
	line := ""
	if f.node != nil {
		line = fmt.Sprintf("%d:", f.node.Line)
	}
	path := f.path
	if path != "" {
		path += ": "
	}
	return fmt.Errorf("%s:%s %s%w", f.file, line, path, fmt.Errorf(format, a...))
}

// child is a field of the field. It is not there if the field itself is not.
func (f field) child(name string) (field, error) {
	c := field{file: f.file, path: strings.TrimPrefix(f.path+"."+name, ".")}
	if !f.there() {
		return c, nil
	}
	if f.node.Kind == yaml.AliasNode {
		return c, f.wrong("%w", errAlias)
	}
	if f.node.Kind != yaml.MappingNode {
		return c, f.wrong("a map is wanted, with %s in it", name)
	}
	for i := 0; i+1 < len(f.node.Content); i += 2 {
		if f.node.Content[i].Value != name {
			continue
		}
		if c.node != nil {
			return c, field{file: f.file, path: c.path, node: f.node.Content[i]}.wrong("it is there twice; leave one of them")
		}
		c.node = f.node.Content[i+1]
	}
	return c, nil
}

// at is a field further down.
func (f field) at(names ...string) (field, error) {
	for _, n := range names {
		var err error
		if f, err = f.child(n); err != nil {
			return f, err
		}
	}
	return f, nil
}

// only refuses fields of a map other than these.
func (f field) only(names ...string) error {
	if !f.there() {
		return nil
	}
	if f.node.Kind == yaml.AliasNode {
		return f.wrong("%w", errAlias)
	}
	if f.node.Kind != yaml.MappingNode {
		return f.wrong("a map is wanted; it may have %s", strings.Join(names, ", "))
	}
	for i := 0; i+1 < len(f.node.Content); i += 2 {
		key := f.node.Content[i]
		if slices.Contains(names, key.Value) {
			continue
		}
		hint := "it may have " + strings.Join(names, ", ")
		if n := alike(key.Value, names); n != "" {
			hint = "did you mean " + n + "?"
		}
		return field{file: f.file, path: f.path, node: key}.wrong("%s is not supported here; %s", key.Value, hint)
	}
	return nil
}

// noneLike refuses fields of a map that are almost named like these, and leaves others to those who read them.
func (f field) noneLike(names ...string) error {
	if !f.there() {
		return nil
	}
	for i := 0; i+1 < len(f.node.Content); i += 2 {
		key := f.node.Content[i]
		if n := alike(key.Value, names); n != "" && !slices.Contains(names, key.Value) {
			return field{file: f.file, path: f.path, node: key}.wrong("%s is not known; did you mean %s?", key.Value, n)
		}
	}
	return nil
}

// alike is which of some names another almost is, empty if it is none: in no more than two letters, and fewer than half of them.
func alike(name string, names []string) string {
	for _, n := range names {
		if d := spelling.Distance(name, n); d <= 2 && 2*d < len(n) {
			return n
		}
	}
	return ""
}

// items are those of a list.
func (f field) items() ([]field, error) {
	if !f.there() {
		return nil, nil
	}
	if f.node.Kind == yaml.AliasNode {
		return nil, f.wrong("%w", errAlias)
	}
	if f.node.Kind != yaml.SequenceNode {
		return nil, f.wrong("a list is wanted")
	}
	out := make([]field, len(f.node.Content))
	for i, n := range f.node.Content {
		out[i] = field{file: f.file, path: fmt.Sprintf("%s[%d]", f.path, i), node: n}
	}
	return out, nil
}

// text is the field's text, or otherwise where it is not there.
func (f field) text(otherwise string) (string, error) {
	if !f.there() {
		return otherwise, nil
	}
	if f.node.Kind == yaml.AliasNode {
		return "", f.wrong("%w", errAlias)
	}
	if f.node.Kind != yaml.ScalarNode {
		return "", f.wrong("a text is wanted")
	}
	return f.node.Value, nil
}

// oneOf is the field's text, which must be one of these.
func (f field) oneOf(otherwise string, allowed ...string) (string, error) {
	text, err := f.text(otherwise)
	if err != nil {
		return "", err
	}
	if f.there() && !slices.Contains(allowed, text) {
		return "", f.wrong("%q is not allowed; use %s", text, either(allowed))
	}
	return text, nil
}

// number is the field's number, from low to high.
func (f field) number(otherwise, low, high int) (int, error) {
	text, err := f.text(strconv.Itoa(otherwise))
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if f.there() && (err != nil || f.node.Tag != "!!int" || n < low || n > high) {
		return 0, f.wrong("%q is not allowed; use a number from %d to %d", text, low, high)
	}
	return n, nil
}

// truth is the field's truth value.
func (f field) truth(otherwise bool) (bool, error) {
	text, err := f.text(strconv.FormatBool(otherwise))
	if err != nil {
		return false, err
	}
	if f.there() && f.node.Tag != "!!bool" {
		return false, f.wrong("%q is not allowed; use true or false", text)
	}
	return strings.EqualFold(text, "true"), nil
}

// either lists what may be chosen: "a, b or c".
func either(options []string) string {
	if len(options) == 1 {
		return options[0]
	}
	last := len(options) - 1
	return strings.Join(options[:last], ", ") + " or " + options[last]
}
