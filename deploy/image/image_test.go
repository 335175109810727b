package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the Containerfiles")

// The Containerfiles are written from the list, so that there are no two truths.
func TestContainerfilesAreThoseOfTheList(t *testing.T) {
	all, err := List()
	require.NoError(t, err)
	var want []string
	for _, i := range all {
		file := "Containerfile." + i.Name
		if *update {
			require.NoError(t, os.WriteFile(file, Containerfile(i), 0o644))
		}
		have, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(Containerfile(i)), string(have), "go test ./deploy/image -run Containerfile -update writes %s", file)
		want = append(want, file)
	}
	there, err := filepath.Glob("Containerfile.*")
	require.NoError(t, err)
	require.ElementsMatch(t, want, there)
}

// Every program of the list is a command that this module can build.
func TestWhatIsListedIsThere(t *testing.T) {
	all, err := List()
	require.NoError(t, err)
	for _, i := range all {
		for _, c := range i.Contents {
			if own, ok := strings.CutPrefix(c.Program, "./"); ok {
				require.FileExists(t, filepath.Join("..", "..", own, "main.go"))
			}
			if c.File != "" {
				require.FileExists(t, filepath.Join("..", "..", c.File))
			}
		}
	}
}

func TestListsThatAreRefused(t *testing.T) {
	image := func(contents string) string {
		return "images: [{name: a, user: '1:1', entrypoint: [/bin/a], contents: [" + contents + "]}]"
	}
	for text, says := range map[string]string{
		"images: [{nom: a}]":                               `unknown field "nom"`,
		"images: [{name: ''}]":                             "give each image a name of its own",
		"images: [{name: a, entrypoint: [/a]}]":            "user and entrypoint are missing",
		image("{path: bin/a, program: ./a}"):               `path "bin/a" is not an absolute path`,
		image("{path: /bin/../a, program: ./a}"):           "is not an absolute path",
		image("{path: /bin/a}"):                            "give one of program, file and link",
		image("{path: /bin/a, program: ./a, link: /b}"):    "give one of program, file and link",
		image("{path: /bin/b, program: ./b}"):              "its entrypoint /bin/a is not among its contents",
		image("{path: /a, link: /b}, {path: /a, file: b}"): "/a is there twice",
	} {
		_, err := parse([]byte(text))
		require.ErrorContains(t, err, says, text)
	}
}

// sample writes an image of one program, one file and one link, whose files were made at some time.
func sample(t *testing.T, at time.Time, body string) (archive []byte, top string) {
	t.Helper()
	i := Image{Name: "node", About: "a sample", User: "7:7", Entrypoint: []string{"/opt/bin/one"}, Contents: []Content{
		{Path: "/opt/bin/one", Program: "./one"}, {Path: "/var/run", Link: "/run"}, {Path: "/LICENSE", File: "LICENSE"},
	}}
	dir := t.TempDir()
	m := Made{Prefix: "muslin", Tag: "v9", Arch: "arm64", Files: map[string]string{}}
	for path, text := range map[string]string{"/opt/bin/one": body, "/LICENSE": "free"} {
		file := filepath.Join(dir, filepath.Base(path))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, os.Chtimes(file, at, at))
		m.Files[path] = file
	}
	var out bytes.Buffer
	top, err := Write(&out, i, m)
	require.NoError(t, err)
	return out.Bytes(), top
}

func TestTheSameInputGivesTheSameArchive(t *testing.T) {
	one, first := sample(t, time.Unix(1, 0), "program")
	two, second := sample(t, time.Unix(2_000_000_000, 0), "program")
	require.Equal(t, first, second)
	require.True(t, bytes.Equal(one, two))
	_, other := sample(t, time.Unix(1, 0), "another")
	require.NotEqual(t, first, other)
}

// read lists the files of a tar.
func read(t *testing.T, r io.Reader) (names []string, bodies map[string][]byte, headers map[string]*tar.Header) {
	t.Helper()
	bodies, headers = map[string][]byte{}, map[string]*tar.Header{}
	for a := tar.NewReader(r); ; {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			return names, bodies, headers
		}
		require.NoError(t, err)
		body, err := io.ReadAll(a)
		require.NoError(t, err)
		names, headers[h.Name] = append(names, h.Name), h
		bodies[h.Name] = body
	}
}

// What refers to another thing by its digest refers to what is there: the rules of the OCI image layout.
func TestTheArchiveIsAnOCILayout(t *testing.T) {
	archive, top := sample(t, time.Now(), "program")
	_, files, _ := read(t, bytes.NewReader(archive))
	require.JSONEq(t, `{"imageLayoutVersion": "1.0.0"}`, string(files["oci-layout"]))
	var seen []string
	follow := func(d descriptor, into any) []byte {
		name := "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:")
		body, ok := files[name]
		require.True(t, ok, name)
		require.Equal(t, d.Digest, digest(body))
		require.Len(t, body, d.Size)
		if into != nil {
			require.NoError(t, json.Unmarshal(body, into))
		}
		seen = append(seen, name)
		return body
	}
	var x index
	require.NoError(t, json.Unmarshal(files["index.json"], &x))
	require.Len(t, x.Manifests, 1)
	require.Equal(t, top, x.Manifests[0].Digest)
	require.Equal(t, map[string]string{annotationTag: "v9", annotationName: Canonical("muslin/node:v9")}, x.Manifests[0].Annotations)
	var m manifest
	follow(x.Manifests[0], &m)
	var c config
	follow(m.Config, &c)
	require.Equal(t, platform{Architecture: "arm64", OS: "linux"}, c.platform)
	require.Equal(t, "7:7", c.Config.User)
	require.Equal(t, []string{"/opt/bin/one"}, c.Config.Entrypoint)
	require.Len(t, m.Layers, 3)
	var all []string
	for n, l := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(follow(l, nil)))
		require.NoError(t, err)
		inner, err := io.ReadAll(z)
		require.NoError(t, err)
		require.Equal(t, c.RootFS.DiffIDs[n], digest(inner))
		names, bodies, headers := read(t, bytes.NewReader(inner))
		all = append(all, names...)
		for name, h := range headers {
			require.Zero(t, h.ModTime.Unix(), name)
			require.Zero(t, h.Uid+h.Gid, name)
		}
		switch n {
		case 0:
			require.Equal(t, "program", string(bodies["opt/bin/one"]))
			require.EqualValues(t, 0o755, headers["opt/bin/one"].Mode)
		case 1:
			require.Equal(t, "/run", headers["var/run"].Linkname)
		}
	}
	require.Equal(t, []string{"opt/", "opt/bin/", "opt/bin/one", "var/", "var/run", "LICENSE"}, all)
	slices.Sort(seen)
	require.Len(t, slices.Compact(seen), len(files)-2, "there is nothing that nobody refers to")
}

func TestNamesAreWrittenAsRuntimesKeepThem(t *testing.T) {
	for given, want := range map[string]string{
		"registry.example/muslin/node:v1": "registry.example/muslin/node:v1",
		"localhost/node:v1":               "localhost/node:v1",
		"here:5000/node:v1":               "here:5000/node:v1",
	} {
		require.Equal(t, want, Canonical(given))
	}
	require.Regexp(t, `^[a-z.]+/muslin/node:v1$`, Canonical("muslin/node:v1"))
}
