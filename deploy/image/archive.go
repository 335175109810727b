package image

import (
	"archive/tar"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Media types and annotations of the OCI image specification 1.1, and the annotation by which containerd names what it imports.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"

	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// epoch is when everything was made: a real time would make two equal images differ.
const epoch = "1970-01-01T00:00:00Z"

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type config struct {
	Created string `json:"created"`
	platform
	Config struct {
		User       string            `json:"User"`
		Env        []string          `json:"Env"`
		Entrypoint []string          `json:"Entrypoint"`
		Labels     map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type history struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

// Made says what an image was made as.
type Made struct {
	Prefix, Tag string
	Arch        string // as Go names it
	// Files are where on this machine the contents are that are programs or files, by their path in the image.
	Files map[string]string
}

// Write writes an image as a tar in the OCI layout, and returns the digest of its manifest.
func Write(w io.Writer, image Image, m Made) (string, error) {
	conf := config{Created: epoch, platform: platform{Architecture: m.Arch, OS: "linux"}}
	conf.Config.User, conf.Config.Entrypoint = image.User, image.Entrypoint
	conf.Config.Env = []string{"PATH=/bin:/usr/sbin:/usr/bin:/sbin"}
	conf.Config.Labels = map[string]string{
		"org.opencontainers.image.title": image.Name, "org.opencontainers.image.description": image.About,
		"org.opencontainers.image.version": m.Tag, "org.opencontainers.image.licenses": "Apache-2.0",
	}
	conf.RootFS.Type = "layers"
	man := manifest{SchemaVersion: 2, MediaType: typeManifest}
	blobs := map[string][]byte{}
	add := func(mediaType string, b blob) descriptor {
		blobs[b.digest] = b.body
		return descriptor{MediaType: mediaType, Digest: b.digest, Size: len(b.body)}
	}
	for _, c := range image.Contents {
		l, err := newLayer(c, m.Files[c.Path])
		if err != nil {
			return "", fmt.Errorf("image %s: %w", image.Name, err)
		}
		man.Layers = append(man.Layers, add(typeLayer, l.blob))
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, l.diffID)
		conf.History = append(conf.History, history{Created: epoch, CreatedBy: c.Path + " from " + cmp.Or(c.Program, c.File, c.Link)})
	}
	body, err := json.Marshal(conf)
	if err != nil {
		return "", err
	}
	man.Config = add(typeConfig, newBlob(body))
	if body, err = json.Marshal(man); err != nil {
		return "", err
	}
	top := add(typeManifest, newBlob(body))
	top.Annotations = map[string]string{annotationTag: m.Tag, annotationName: Canonical(Reference(m.Prefix, image.Name, m.Tag))}
	top.Platform = &conf.platform
	if body, err = json.Marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{top}}); err != nil {
		return "", err
	}
	return top.Digest, layout(w, body, blobs)
}

// layout writes the files of an OCI layout, always in the same order.
func layout(w io.Writer, index []byte, blobs map[string][]byte) error {
	t := tar.NewWriter(w)
	put := func(name string, body []byte) error {
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
		if err == nil {
			_, err = t.Write(body)
		}
		return err
	}
	err := errors.Join(put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), put("index.json", index))
	for _, digest := range slices.Sorted(maps.Keys(blobs)) {
		err = errors.Join(err, put("blobs/"+strings.Replace(digest, ":", "/", 1), blobs[digest]))
	}
	return errors.Join(err, t.Close())
}
