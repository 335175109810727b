// Package deploy holds the files by which Muslin is installed: the chart, whose templates are the one place where manifests are
// written, and the CRDs.
package deploy

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
)

//go:embed chart/values.yaml chart/templates/*.yaml chart/crds/*.yaml
var files embed.FS

// File is one of them.
type File struct {
	Name string // without a directory
	Text []byte
}

// Values are the values of the chart, with their comments.
func Values() []byte {
	text, err := files.ReadFile("chart/values.yaml")
	if err != nil {
		panic(err) // it is part of the program
	}
	return text
}

// Templates are the templates of the chart, by name.
func Templates() []File { return dir("chart/templates") }

// CRDs are the definitions of the resources, by name.
func CRDs() []File { return dir("chart/crds") }

func dir(name string) (out []File) {
	entries, err := files.ReadDir(name)
	if err != nil {
		panic(fmt.Sprintf("deploy: %v", err)) // it is part of the program
	}
	for _, e := range entries {
		text, err := files.ReadFile(path.Join(name, e.Name()))
		if err != nil {
			panic(fmt.Sprintf("deploy: %v", err))
		}
		out = append(out, File{Name: e.Name(), Text: text})
	}
	slices.SortFunc(out, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return out
}
