package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// layer is one layer of an image: one file with the directories above it, so that images that have a program in common share
// it, and a new version fetches only what changed.
type layer struct {
	blob   blob
	diffID string // digest of the tar inside
}

// blob is content that is addressed by its digest.
type blob struct {
	digest string // sha256:…
	body   []byte
}

func newBlob(body []byte) blob { return blob{digest: digest(body), body: body} }

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// newLayer makes the layer of a content. from is the file on this machine that it is a copy of; none for links.
func newLayer(c Content, from string) (layer, error) {
	var inner bytes.Buffer
	t := tar.NewWriter(&inner)
	for _, dir := range parents(c.Path) {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return layer{}, err
		}
	}
	if err := writeContent(t, c, from); err != nil {
		return layer{}, fmt.Errorf("%s: %w", c.Path, err)
	}
	if err := t.Close(); err != nil {
		return layer{}, err
	}
	var outer bytes.Buffer
	z := gzip.NewWriter(&outer)
	_, err := z.Write(inner.Bytes())
	if err = errors.Join(err, z.Close()); err != nil {
		return layer{}, err
	}
	return layer{blob: newBlob(outer.Bytes()), diffID: digest(inner.Bytes())}, nil
}

func writeContent(t *tar.Writer, c Content, from string) (err error) {
	h := tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(c.Path, "/"), Mode: 0o644}
	if c.Link != "" {
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, c.Link, 0o777
		return t.WriteHeader(&h)
	}
	if c.Program != "" {
		h.Mode = 0o755
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size = info.Size()
	if err := t.WriteHeader(&h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// parents are the directories above a path, the highest first, without their leading slash.
func parents(name string) (out []string) {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		out = append([]string{strings.TrimPrefix(dir, "/")}, out...)
	}
	return out
}
