// Package client is what others need to know of the CSI node driver: where on the node it keeps the directories that it
// mounts into pods, and which pod each of them is of. The driver writes this, felix's policy sync follows it. The layout and
// the form of a record are those of Calico's driver, so that pods which it served go on being served.
package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// DefaultHome is where the driver keeps what it has, on the node.
const DefaultHome = "/var/run/nodeagent"

// SocketName is the name of the policy-sync socket in a pod's directory.
const SocketName = "socket"

// suffix ends the names of records.
const suffix = ".json"

// maxID bounds a volume's id, in bytes, as the CSI specification does.
const maxID = 128

// Home is where the driver keeps what it has.
type Home struct {
	Mounts  string // holds one directory for each volume, named by its id, which is mounted into the pod
	Records string // holds one record for each volume that is mounted: whose it is
}

// HomeAt is the usual layout below a directory.
func HomeAt(dir string) Home {
	return Home{Mounts: filepath.Join(dir, "mount"), Records: filepath.Join(dir, "creds")}
}

// Pod is whom a volume belongs to. The names in JSON are Calico's.
type Pod struct {
	UID            string
	Name           string `json:"Workload"`
	Namespace      string
	ServiceAccount string
}

// Check tells what of a pod cannot be: its name and namespace become parts of names and paths.
func (p Pod) Check() error {
	for _, f := range []struct{ what, value string }{{"name", p.Name}, {"namespace", p.Namespace}, {"uid", p.UID}} {
		if f.value == "" || strings.ContainsAny(f.value, "/\x00") || f.value == "." || f.value == ".." {
			return fmt.Errorf("%q is not the %s of a pod", f.value, f.what)
		}
	}
	return nil
}

// CheckID tells whether something can be a volume's id: it becomes the name of a file, and must not lead anywhere else.
func CheckID(id string) error {
	switch {
	case id == "":
		return errors.New("the volume id is missing")
	case len(id) > maxID:
		return fmt.Errorf("the volume id has %d bytes; at most %d can be", len(id), maxID)
	case strings.ContainsAny(id, "/\x00"), strings.HasPrefix(id, "."):
		return fmt.Errorf("the volume id %q cannot be the name of a directory: it must not hold a slash, nor begin with a dot", id)
	}
	return nil
}

// Prepare makes the directories of the home.
func (h Home) Prepare() error {
	return errors.Join(os.MkdirAll(h.Mounts, 0o755), os.MkdirAll(h.Records, 0o755))
}

// Directory is the path of what is mounted into the pod of a volume.
func (h Home) Directory(id string) string { return filepath.Join(h.Mounts, id) }

// Save records whose a volume is. Whoever reads the record sees all of it, or none.
func (h Home) Save(id string, p Pod) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(h.unfinished(id), body, 0o644); err != nil {
		return err
	}
	return os.Rename(h.unfinished(id), h.record(id))
}

// Load tells whose a volume is. The error is fs.ErrNotExist's if there is no record.
func (h Home) Load(id string) (p Pod, err error) {
	body, err := os.ReadFile(h.record(id))
	if err != nil {
		return Pod{}, err
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return Pod{}, fmt.Errorf("record %s: %w", h.record(id), err)
	}
	if err := p.Check(); err != nil {
		return Pod{}, fmt.Errorf("record %s: %w", h.record(id), err)
	}
	return p, nil
}

// Forget removes the record of a volume; one that is not there is no error.
func (h Home) Forget(id string) error {
	return errors.Join(remove(h.record(id)), remove(h.unfinished(id)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Volumes are the ids of the volumes that have a record, in order.
func (h Home) Volumes() ([]string, error) {
	entries, err := os.ReadDir(h.Records)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), suffix); ok && CheckID(id) == nil && e.Type().IsRegular() {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (h Home) record(id string) string { return filepath.Join(h.Records, id+suffix) }

// unfinished is the name of a record that is being written. Followers do not see what begins with a dot.
func (h Home) unfinished(id string) string { return filepath.Join(h.Records, "."+id) }
