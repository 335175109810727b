// Package diags packs what somebody who was not there needs to know of a node, or of a cluster, into one archive.
//
// It owns the archive: that each thing asked for is in it or is named with the reason why it is not, that nothing is waited for
// without end, that no file is without bound, and that what looks like a secret does not leave the machine. What is asked for,
// its callers say.
package diags

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Item is one file of the archive.
type Item struct {
	Name    string // its path there
	Title   string // what people call it
	Collect func(context.Context, io.Writer) error
}

// Options say how to collect.
type Options struct {
	Archive  string    // path of the archive; its name without endings is the directory that everything in it is in
	Scratch  string    // empty directory for what is collected until it is packed
	Progress io.Writer // a line for each item that is begun, and for each that there is nothing of
	Parallel int       // how many items at a time; 0 is one
	Timeout  time.Duration
	Limit    int64 // bytes of one file; what is longer loses its end
}

// Defaults of Options.
const (
	defaultTimeout = 30 * time.Second
	defaultLimit   = 64 << 20
)

// Index is the file of the archive which says what is in it, and what is not and why.
const Index = "index.txt"

// Outcome is what became of an Item.
type Outcome struct {
	Item
	Bytes int64
	Took  time.Duration
	Err   error // why there is nothing of it, or less than all
}

// Collect makes the archive, readable by its owner alone. What cannot be collected is no error: the index has it, and so have the
// outcomes, which are in the order of the items.
func Collect(ctx context.Context, items []Item, o Options) ([]Outcome, error) {
	o.Timeout, o.Limit = cmp.Or(o.Timeout, defaultTimeout), cmp.Or(o.Limit, defaultLimit)
	outcomes := make([]Outcome, len(items))
	progress := &lines{to: o.Progress}
	var g errgroup.Group
	g.SetLimit(max(o.Parallel, 1))
	for i, item := range items {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			progress.say("Dumping %s", item.Title)
			var err error
			if outcomes[i], err = collect(ctx, item, scratch(o.Scratch, i), o); err != nil {
				return err
			}
			if why := outcomes[i].Err; why != nil {
				progress.say("  %s: %s", item.Title, why)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // what failed because of that says nothing
		return nil, context.Cause(ctx)
	}
	if err := pack(o, outcomes); err != nil {
		return nil, errors.Join(err, os.Remove(o.Archive))
	}
	return outcomes, nil
}

func scratch(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("item-%d", i)) }

// collect fills one file. The error is that of the file; what the item's own source says is in the outcome.
func collect(ctx context.Context, item Item, file string, o Options) (Outcome, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return Outcome{}, fmt.Errorf("scratch file: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("no end after %s", o.Timeout))
	defer cancel()
	began, bound := time.Now(), &bounded{to: f, left: o.Limit}
	clean := NewCleaner(bound)
	why := item.Collect(ctx, clean)
	flushed := clean.Close()
	switch {
	case errors.Is(flushed, errLong) || errors.Is(why, errLong):
		why = fmt.Errorf("longer than %d bytes; the rest is left out", o.Limit)
	case flushed != nil:
		return Outcome{}, errors.Join(fmt.Errorf("scratch file: %w", flushed), f.Close())
	case why != nil && ctx.Err() != nil:
		why = context.Cause(ctx)
	}
	return Outcome{Item: item, Bytes: o.Limit - bound.left, Took: time.Since(began), Err: oneLine(why)}, f.Close()
}

// oneLine is an error that fits the index: programs and servers say several lines, with what the archive must not have.
func oneLine(err error) error {
	if err == nil {
		return nil
	}
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	return errors.New(Clean(strings.Join(lines, "; ")))
}

// pack writes the archive.
func pack(o Options, outcomes []Outcome) error {
	f, err := os.OpenFile(o.Archive, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	zipped := gzip.NewWriter(f)
	a := archive{Writer: tar.NewWriter(zipped), dir: strings.TrimSuffix(filepath.Base(o.Archive), ".tar.gz"), now: time.Now()}
	index := indexOf(outcomes)
	err = a.add(Index, int64(len(index)), strings.NewReader(index))
	for i, out := range outcomes {
		if err == nil && out.Bytes > 0 {
			err = a.addFile(out.Name, scratch(o.Scratch, i))
		}
	}
	if err := errors.Join(err, a.Close(), zipped.Close(), f.Close()); err != nil {
		return fmt.Errorf("archive %s: %w", o.Archive, err)
	}
	return nil
}

// indexOf lists the outcomes.
func indexOf(outcomes []Outcome) string {
	var b strings.Builder
	for _, out := range outcomes {
		state := "whole"
		switch {
		case out.Err != nil && out.Bytes > 0:
			state = "part"
		case out.Err != nil:
			state = "none"
		}
		fmt.Fprintf(&b, "%-5s %10d bytes %6d ms  %s", state, out.Bytes, out.Took.Milliseconds(), out.Name)
		if out.Err != nil {
			fmt.Fprintf(&b, "  (%s: %s)", out.Title, out.Err)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// archive is a tar file with one directory.
type archive struct {
	*tar.Writer
	dir string
	now time.Time
}

func (a archive) add(name string, size int64, from io.Reader) error {
	err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: a.dir + "/" + name, Size: size, Mode: 0o600, ModTime: a.now})
	if err == nil {
		_, err = io.Copy(a, from)
	}
	return err
}

func (a archive) addFile(name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return a.add(name, info.Size(), f)
}

// errLong says that a file has reached its limit.
var errLong = errors.New("too long")

// bounded writes so much and no more.
type bounded struct {
	to   io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) <= b.left {
		b.left -= int64(len(p))
		return b.to.Write(p)
	}
	n, err := b.to.Write(p[:b.left])
	b.left = 0
	return n, cmp.Or(err, errLong)
}
