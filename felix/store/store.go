// Package store keeps felix's records of endpoints that are wired, one file for each. They are for the next process: what they
// are about ends with the host's boot, so that Save does not wait for the disk, which would be a good part of a pod's start.
// A record is written whole or not at all; one that the host's sudden end spoilt is of an endpoint that ended with it.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const suffix = ".json"

// Dir is a directory of records of one type. Its methods may be called from several goroutines, but not for one name at
// the same time.
type Dir[T any] struct{ path string }

// Open makes the directory if need be. Only root may read it.
func Open[T any](path string) (*Dir[T], error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("records in %s: %w", path, err)
	}
	return &Dir[T]{path}, nil
}

// Save writes a record. The name may hold any character but "/" and NUL.
func (d *Dir[T]) Save(name string, record T) error {
	body, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	if err := replace(d.file(name), body, 0o600, false); err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

// Delete removes a record; one that is not there is no error.
func (d *Dir[T]) Delete(name string) error {
	if err := os.Remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", name, err)
	}
	return nil
}

// Load reads all records by name. What cannot be read is left out, set aside under another name, and reported in the
// error; the rest is good.
func (d *Dir[T]) Load() (map[string]T, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("records in %s: %w", d.path, err)
	}
	out := map[string]T{}
	var errs []error
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		var record T
		body, err := os.ReadFile(d.file(name))
		if err == nil {
			err = json.Unmarshal(body, &record)
		}
		if err != nil {
			aside := filepath.Join(d.path, name+".damaged")
			errs = append(errs, fmt.Errorf("record %s is damaged and was set aside as %s: %w", d.file(name), aside, err),
				os.Rename(d.file(name), aside))
			continue
		}
		out[name] = record
	}
	return out, errors.Join(errs...)
}

func (d *Dir[T]) file(name string) string { return filepath.Join(d.path, name+suffix) }

// WriteFile replaces a file: whoever reads it, also after a crash of the host, sees the old or the new content.
func WriteFile(path string, body []byte, mode fs.FileMode) error {
	return replace(path, body, mode, true)
}

// replace replaces a file; durable waits until it is on the disk.
func replace(path string, body []byte, mode fs.FileMode, durable bool) error {
	fresh := path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if durable {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	if err := os.Rename(fresh, path); err != nil || !durable {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
