// Package image makes the container images: it reads the list of what is in each, builds the programs, and writes archives in
// the layout of OCI, which container runtimes import. It needs no daemon, no registry and no root. What it writes depends on its
// input alone, to the last bit: times and owners of files are fixed.
package image

import (
	_ "embed"
	"fmt"
	"path"

	"github.com/distribution/reference"
	"sigs.k8s.io/yaml"
)

//go:embed images.yaml
var list []byte

// Image is what an image is made of.
type Image struct {
	Name       string    `json:"name"` // without prefix and tag
	About      string    `json:"about"`
	User       string    `json:"user"` // UID:GID
	Entrypoint []string  `json:"entrypoint"`
	Contents   []Content `json:"contents"`
}

// Content is a file of an image, by exactly one of Program, File and Link.
type Content struct {
	Path    string `json:"path"`              // in the image, absolute
	Program string `json:"program,omitempty"` // Go package
	File    string `json:"file,omitempty"`    // path in the repository
	Link    string `json:"link,omitempty"`    // target of a symbolic link
}

// List is what images.yaml says.
func List() ([]Image, error) { return parse(list) }

func parse(text []byte) ([]Image, error) {
	var all struct {
		Images []Image `json:"images"`
	}
	if err := yaml.UnmarshalStrict(text, &all); err != nil {
		return nil, fmt.Errorf("images.yaml: %w", err)
	}
	names := map[string]bool{}
	for _, i := range all.Images {
		if i.Name == "" || names[i.Name] {
			return nil, fmt.Errorf("images.yaml: image %q: give each image a name of its own", i.Name)
		}
		names[i.Name] = true
		if len(i.Entrypoint) == 0 || i.User == "" {
			return nil, fmt.Errorf("images.yaml: image %s: user and entrypoint are missing", i.Name)
		}
		paths := map[string]bool{}
		for _, c := range i.Contents {
			sources := 0
			for _, s := range []string{c.Program, c.File, c.Link} {
				if s != "" {
					sources++
				}
			}
			switch {
			case !path.IsAbs(c.Path) || path.Clean(c.Path) != c.Path || c.Path == "/":
				return nil, fmt.Errorf("images.yaml: image %s: path %q is not an absolute path of a file", i.Name, c.Path)
			case paths[c.Path]:
				return nil, fmt.Errorf("images.yaml: image %s: %s is there twice", i.Name, c.Path)
			case sources != 1:
				return nil, fmt.Errorf("images.yaml: image %s: %s: give one of program, file and link", i.Name, c.Path)
			}
			paths[c.Path] = true
		}
		if !paths[i.Entrypoint[0]] {
			return nil, fmt.Errorf("images.yaml: image %s: its entrypoint %s is not among its contents", i.Name, i.Entrypoint[0])
		}
	}
	return all.Images, nil
}

// Reference is the name of an image for people and manifests.
func Reference(prefix, name, tag string) string { return prefix + "/" + name + ":" + tag }

// Canonical is that name as container runtimes store it: where it names no registry, with the one that is meant. A name that
// is none stays as it is.
func Canonical(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return named.String()
}
