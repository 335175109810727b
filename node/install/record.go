package install

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// recordFile is in the directory of plugins: what was installed there by us, as sha256sum writes it. A program that is not on it
// is somebody else's, who may have a newer one.
const recordFile = ".calico-plugins"

// record is what was installed, by name of the file: the hashes of all versions that may be there.
type record struct {
	path  string
	lines map[string]bool
}

func readRecord(dir string) (record, error) {
	r := record{path: filepath.Join(dir, recordFile), lines: map[string]bool{}}
	body, err := os.ReadFile(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("record of plugins: %w", err)
	}
	for line := range strings.Lines(string(body)) {
		r.lines[strings.TrimSuffix(line, "\n")] = true
	}
	return r, nil
}

func entry(name string, body []byte) string { return fmt.Sprintf("%x  %s", sha256.Sum256(body), name) }

func (r record) has(name string, body []byte) bool { return r.lines[entry(name, body)] }

// add puts a version on the record.
func (r record) add(name string, body []byte) error {
	if r.has(name, body) {
		return nil
	}
	r.lines[entry(name, body)] = true
	var all strings.Builder
	for _, line := range slices.Sorted(maps.Keys(r.lines)) {
		all.WriteString(line + "\n")
	}
	return replace(r.path, []byte(all.String()), 0o644)
}
