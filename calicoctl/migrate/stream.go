// Package migrate moves all that a cluster knows from one datastore to another, which is from etcd to Kubernetes: an export
// is a stream that says when it is whole, an import puts it into an empty datastore, and can be taken up where it ended.
//
// It owns the form of the stream and the order of the steps. What an object means is api's business, and how it is stored
// the datastore's. Both ends are locked while it works (see Lock in package verb): nobody gives addresses out meanwhile.
package migrate

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/muslin-net/muslin/api"
)

// The kinds of the two documents around the objects. A stream has one JSON document a line, so that it can be looked at, and
// kept under version control, with the usual tools.
const (
	headerKind = "DatastoreExport"
	endKind    = "DatastoreExportEnd"
)

// form is the version of the form of the stream.
const form = 1

// Header is the first line of a stream.
type Header struct {
	APIVersion  string `json:"apiVersion"`
	Kind        string `json:"kind"`
	Form        int    `json:"form"`
	ClusterGUID string `json:"clusterGUID"`
	Version     string `json:"version"` // of the calicoctl that wrote it
}

// end is the last line. Without it the stream was cut off.
type end struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Objects    int    `json:"objects"`
	SHA256     string `json:"sha256"` // of all lines before, with their line ends
}

// writer writes a stream.
type writer struct {
	to      io.Writer
	sum     hash.Hash
	objects int
}

func newWriter(to io.Writer, h Header) (*writer, error) {
	h.APIVersion, h.Kind, h.Form = api.GroupVersion, headerKind, form
	w := &writer{to: to, sum: sha256.New()}
	return w, w.line(h)
}

func (w *writer) line(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	text = append(text, '\n')
	w.sum.Write(text)
	_, err = w.to.Write(text)
	return err
}

func (w *writer) object(o api.Object) error {
	text, err := api.Encode(o)
	if err != nil {
		return err
	}
	w.objects++
	return w.line(json.RawMessage(text))
}

func (w *writer) close() error {
	return w.line(end{APIVersion: api.GroupVersion, Kind: endKind, Objects: w.objects, SHA256: hex.EncodeToString(w.sum.Sum(nil))})
}

// Export is a stream that was read whole.
type Export struct {
	Header  Header
	Objects []api.Object // in the order of api.Kinds
	ID      string       // the hash of the stream, by which an import knows its own again
}

// longest is how long a line may be: etcd takes values of 1.5 MiB, and JSON within JSON does not occur.
const longest = 16 << 20

// Read reads a stream, and refuses one that was cut off or changed.
func Read(from io.Reader) (*Export, error) {
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 0, 64<<10), longest)
	x, sum := &Export{}, sha256.New()
	for number := 1; lines.Scan(); number++ {
		line := lines.Bytes()
		var kind struct {
			Kind string `json:"kind"`
		}
		if err := json.Unmarshal(line, &kind); err != nil {
			return nil, fmt.Errorf("line %d: %w; the file is not what 'calicoctl datastore migrate export' wrote", number, err)
		}
		switch {
		case number == 1:
			if err := x.begin(line, kind.Kind); err != nil {
				return nil, err
			}
		case kind.Kind == endKind:
			return x, x.finish(line, hex.EncodeToString(sum.Sum(nil)), lines)
		default:
			o, err := decode(kind.Kind, line)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", number, err)
			}
			x.Objects = append(x.Objects, o)
		}
		sum.Write(line)
		sum.Write([]byte{'\n'})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if x.Header.Kind == "" {
		return nil, errors.New("the file is empty; write it with 'calicoctl datastore migrate export'")
	}
	return nil, fmt.Errorf("the file was cut off after %d objects: its last line is missing; export again", len(x.Objects))
}

func (x *Export) begin(line []byte, kind string) error {
	if err := json.Unmarshal(line, &x.Header); err != nil || kind != headerKind {
		return fmt.Errorf("the first line is a %q, not a %s; the file is not what 'calicoctl datastore migrate export' wrote", kind, headerKind)
	}
	if x.Header.Form != form {
		return fmt.Errorf("the file has form %d, this calicoctl reads form %d; use the calicoctl that exported it (%s)", x.Header.Form, form, x.Header.Version)
	}
	return nil
}

func (x *Export) finish(line []byte, sum string, lines *bufio.Scanner) error {
	var e end
	if err := json.Unmarshal(line, &e); err != nil {
		return err
	}
	if e.Objects != len(x.Objects) || e.SHA256 != sum {
		return errors.New("the file was changed since it was exported: its checksum is another; export again, and change objects after the import")
	}
	if lines.Scan() && len(bytes.TrimSpace(lines.Bytes())) > 0 {
		return errors.New("there is something after the end of the export; give one export, whole and alone")
	}
	x.ID = sum
	return lines.Err()
}

func decode(name string, line []byte) (api.Object, error) {
	kind, ok := api.LookupKind(name)
	if !ok {
		return nil, fmt.Errorf("kind %q is unknown to this calicoctl; use the one that exported the file", name)
	}
	return api.DecodeStored(kind, line)
}
