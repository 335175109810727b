package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// saver keeps the saved view's file.
type saver struct {
	path  string
	delay time.Duration // how long to gather changes after a write
	log   *slog.Logger
	dirty chan struct{} // has room for one
	hurry chan struct{} // the same
}

func newSaver(path string, delay time.Duration, log *slog.Logger) *saver {
	return &saver{path: path, delay: delay, log: log, dirty: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
}

// changed says that there is something to save.
func (s *saver) changed() { signal(s.dirty) }

// hasten says that what there is to save must not wait for more.
func (s *saver) hasten() { signal(s.hurry) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// retrySave is how long to wait after a write that failed: a full disk does not empty itself in a second.
const retrySave = 10 * time.Second

// share bounds what saving costs: after a write that took t, the next begins t*share later at the earliest.
const share = 20

// run saves what current returns after each change, at once if there was none lately, and once more at the end, and calls done
// with it. A write that fails is logged and repeated.
func (s *saver) run(ctx context.Context, current func() savedView, done func(savedView)) error {
	var wait, rest time.Duration // after the last write: for more changes to gather, and at least
	var last time.Time           // when it ended
	for {
		ended := false
		select {
		case <-ctx.Done():
			select {
			case <-s.dirty: // changed after the last write
				ended = true
			default:
				return nil
			}
		case <-s.dirty:
			select {
			case <-ctx.Done():
				ended = true
			case <-time.After(wait - time.Since(last)):
			case <-s.hurry:
				select {
				case <-ctx.Done():
					ended = true
				case <-time.After(rest - time.Since(last)):
				}
			}
		}
		begin := time.Now()
		v := current()
		err := s.save(v)
		if err == nil {
			done(v)
		}
		switch {
		case err != nil && ended:
			return fmt.Errorf("saved view %s: %w", s.path, err)
		case err != nil:
			s.log.Warn("the view cannot be saved; a restart without typha would start from an older one", "file", s.path, "error", err)
			s.changed()
			wait, rest = retrySave, retrySave
		default:
			rest = share * time.Since(begin)
			wait = max(s.delay, rest)
		}
		last = time.Now()
		if ended {
			return nil
		}
	}
}

// save replaces the file. A view that never was whole is not saved.
func (s *saver) save(v savedView) error {
	if !v.inSync {
		return nil
	}
	b, err := v.encode()
	if err != nil {
		return err
	}
	return replaceFile(s.path, b)
}

// replaceFile writes a file that only its owner can read. At every moment, also after a crash, there is the old content
// or the new one.
func replaceFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load reads the file; nil without an error if there is none.
func (s *saver) load(node string, which View) (*savedView, error) {
	s.sweep()
	b, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := decodeSaved(b, node, which)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return v, nil
}

// sweep removes what a process that was killed while writing has left.
func (s *saver) sweep() {
	left, _ := filepath.Glob(s.path + ".new-*") // the pattern is well formed
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			s.log.Warn("cannot remove what is left of an unfinished write", "file", f, "error", err)
		}
	}
}
