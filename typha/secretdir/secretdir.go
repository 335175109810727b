// Package secretdir finds secrets in a directory of typha's host: <directory>/<name of the secret>/<key>, one value a file,
// which is how Kubernetes mounts them too. It serves clusters without Kubernetes.
//
// Files are looked at every second rather than watched: passwords are few, and a look finds every change on every file
// system, however the file was replaced (editors, links of mounted volumes, directories that come later).
package secretdir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

const (
	// interval is how often files are looked at.
	interval = time.Second
	// maxSize is how large a file may be. TCP MD5 takes 80 bytes.
	maxSize = 4096
)

// Dir is a directory with secrets. It is an intake.SecretSource.
type Dir struct {
	*intake.Wanted
	path string
	log  *slog.Logger
}

// New returns the secrets of a directory, which need not be there yet.
func New(path string, log *slog.Logger) *Dir {
	return &Dir{Wanted: intake.NewWanted(), path: path, log: log}
}

// answer is what was told of a value.
type answer struct {
	value   []byte // nil: missing
	trouble string // why, as far as it is not that there is no file
}

// Run tells what is wanted, and each change, until ctx ends or tell fails. A file that cannot be read is missing.
func (d *Dir) Run(ctx context.Context, tell func(compute.SecretRef, []byte) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	told := map[compute.SecretRef]answer{}
	for {
		wanted, fresh := d.Take()
		maps.DeleteFunc(told, func(ref compute.SecretRef, _ answer) bool {
			return !slices.Contains(wanted, ref) || slices.Contains(fresh, ref)
		})
		for _, ref := range wanted {
			now := d.read(ref)
			was, already := told[ref]
			if already && bytes.Equal(was.value, now.value) && (was.value == nil) == (now.value == nil) && was.trouble == now.trouble {
				continue
			}
			if now.value == nil {
				d.log.Warn("a password is missing: sessions that use it wait until it is there",
					"file", filepath.Join(d.path, ref.Name, ref.Key), "reason", now.trouble)
			}
			told[ref] = now
			if err := tell(ref, now.value); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.Changed():
		case <-tick.C:
		}
	}
}

// read reads a value. Names come from whoever may write a BGPPeer, so they must not lead out of the directory. One newline at
// the end, which editors and echo add, is no part of the value.
func (d *Dir) read(ref compute.SecretRef) answer {
	for _, name := range []string{ref.Name, ref.Key} {
		if filepath.Base(name) != name || !filepath.IsLocal(name) || name == "." {
			return answer{trouble: fmt.Sprintf("%q is not the name of a file", name)}
		}
	}
	value, err := d.readFile(filepath.Join(ref.Name, ref.Key))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return answer{trouble: "there is no such file"}
	case err != nil:
		return answer{trouble: err.Error()}
	}
	value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	if len(value) == 0 {
		return answer{trouble: "the file is empty"}
	}
	return answer{value: value}
}

func (d *Dir) readFile(name string) (_ []byte, err error) {
	root, err := os.OpenRoot(d.path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name) // opening a pipe would wait
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	value, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(value) > maxSize {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxSize)
	}
	return value, err
}
