package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Command is a program to run on a node or pod.
type Command struct {
	Args []string
	Env  []string // added to that of the place, as KEY=value

	// Standard input and outputs; nil is /dev/null. Files are handed over as they are, other readers and writers are
	// copied through pipes.
	Stdin io.Reader
	// Standard output and standard error may be the same pointer, which then is written to by one goroutine at a time.
	Stdout, Stderr io.Writer

	// TTY makes Stdin, which must then be a terminal's file, the controlling terminal of the program.
	TTY bool
	// Signals are forwarded to the program's process group; it may be nil.
	Signals <-chan os.Signal
}

// Exec runs a program on a node, pod, the router or the fabric and returns its exit status (128 + n if signal n ended
// it). An error means that it could not be run. When ctx ends, the program and its process group are killed.
func (l *Lab) Exec(ctx context.Context, where string, c Command) (int, error) {
	w, err := l.dial()
	if err != nil {
		return 0, err
	}
	defer w.close()

	var pipes plumbing
	defer pipes.close()
	files := []*os.File{pipes.in(c.Stdin), pipes.out(c.Stdout)}
	if c.Stderr == c.Stdout { // one writer, which then needs no lock, and sees the lines in their order
		files = append(files, files[1])
	} else {
		files = append(files, pipes.out(c.Stderr))
	}
	if pipes.err != nil {
		return 0, pipes.err
	}
	for _, f := range pipes.theirs {
		f.Fd() // makes it block, as programs expect of their standard files
	}
	if err := w.send(request{Verb: verbExec, Where: where, Args: c.Args, Env: c.Env, TTY: c.TTY}, files...); err != nil {
		return 0, err
	}
	pipes.handedOver()

	finished := make(chan struct{})
	defer close(finished)
	go func() {
		for {
			select {
			case sig := <-c.Signals:
				if n, ok := sig.(syscall.Signal); ok {
					_ = w.send(interrupt{Signal: int(n)})
				}
			case <-finished:
				return
			}
		}
	}()
	var code int
	_, err = w.await(ctx, &code)
	if err != nil {
		return 0, err
	}
	return code, pipes.drain()
}

// Run runs a program and returns what it wrote to its standard output. A failing program is an error with the last line
// of its standard error.
func (l *Lab) Run(ctx context.Context, where string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	code, err := l.Exec(ctx, where, Command{Args: args, Stdout: &out, Stderr: &errOut})
	if err != nil {
		return "", err
	}
	if code != 0 {
		said := lastOf(errOut.String())
		if said == "" {
			said = lastOf(out.String())
		}
		return out.String(), fmt.Errorf("%s on %s: exit status %d: %s", strings.Join(args, " "), where, code, said)
	}
	return out.String(), nil
}

// plumbing turns readers and writers into files, as os/exec does for its children.
type plumbing struct {
	theirs  []*os.File // ends to close once they are handed over
	ours    []*os.File // ends to close at last
	copying errgroup.Group
	err     error
}

func (p *plumbing) in(r io.Reader) *os.File {
	switch f := r.(type) {
	case nil:
		return p.null()
	case *os.File:
		return f
	}
	theirs, ours := p.pipe()
	if p.err != nil {
		return nil
	}
	go func() { // ends with the program's interest, or with the reader; nobody waits for a reader that has no end
		_, _ = io.Copy(ours, r)
		ours.Close()
	}()
	return theirs
}

func (p *plumbing) out(w io.Writer) *os.File {
	switch f := w.(type) {
	case nil:
		return p.null()
	case *os.File:
		return f
	}
	ours, theirs := p.pipe()
	if p.err != nil {
		return nil
	}
	p.theirs[len(p.theirs)-1], p.ours[len(p.ours)-1] = theirs, ours
	p.copying.Go(func() error {
		_, err := io.Copy(w, ours)
		return err
	})
	return theirs
}

// pipe returns a pipe's read end as theirs and its write end as ours.
func (p *plumbing) pipe() (read, write *os.File) {
	read, write, err := os.Pipe()
	if err != nil {
		p.err = err
		return nil, nil
	}
	p.theirs, p.ours = append(p.theirs, read), append(p.ours, write)
	return read, write
}

func (p *plumbing) null() *os.File {
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		p.err = err
		return nil
	}
	p.theirs = append(p.theirs, f)
	return f
}

func (p *plumbing) handedOver() {
	closeAll(p.theirs)
	p.theirs = nil
}

// drain waits until all output of the ended program is copied.
func (p *plumbing) drain() error { return p.copying.Wait() }

func (p *plumbing) close() {
	closeAll(p.theirs)
	closeAll(p.ours)
}
