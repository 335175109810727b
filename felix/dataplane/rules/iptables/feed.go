package iptables

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// feed is a run of iptables-restore that commits one transaction after the other, as it is fed with them. To start the program
// takes longer than to commit a small change, and the kernel keeps back the end of one of the nft variant until nobody can be
// in the rules that it has replaced.
type feed struct {
	in      io.WriteCloser
	marks   <-chan string // comments that it has come to, and so has done what was before them; closed when it has ended
	kill    func()
	written int    // bytes
	serial  int    // of the last mark
	said    string // once it has ended: of what it complained
	err     error  // once it has ended: how
}

const (
	// enough is how many bytes a run is fed with: it keeps its memory until its end.
	enough = 1 << 20
	// unheard is how long a program may take to start and say its first mark. Some versions of the nft variant read all of
	// their input before they do anything: they are run for each transaction.
	unheard = 5 * time.Second
	// mark begins a comment in the input. With -v the program repeats comments when it comes to them.
	mark = "# muslin "
)

// errUnheard says that a run does not do what it is fed with while more may come.
var errUnheard = errors.New("it does not commit while there may be more input")

// newFeed starts a run.
func newFeed(name string, in func(func() error) error, args ...string) (*feed, error) {
	cmd := exec.Command(name, append(args, "-v")...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := in(cmd.Start); err != nil {
		return nil, err
	}
	marks := make(chan string, 1) // nobody waits for more than one
	f := &feed{in: stdin, marks: marks, kill: func() {
		_ = cmd.Process.Kill()
		_ = stdin.Close() // for what it may have started itself
	}}
	go func() {
		for lines := bufio.NewReader(stdout); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			if strings.HasPrefix(line, mark) {
				marks <- line
			}
		}
		f.err = cmd.Wait()
		f.said = strings.TrimSpace(complaints.String())
		close(marks)
	}()
	if err := f.first(); err != nil {
		f.end()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// first is the first mark.
func (f *feed) first() error {
	late := time.AfterFunc(unheard, f.kill)
	err := f.commit(context.Background(), "")
	if !late.Stop() {
		return errUnheard
	}
	return err
}

// commit has the run do some input. If that fails the run ends.
func (f *feed) commit(ctx context.Context, text string) error {
	f.serial++
	f.written += len(text)
	now := fmt.Sprintf("%s%d\n", mark, f.serial)
	stop := context.AfterFunc(ctx, f.kill)
	defer stop()
	if _, err := io.WriteString(f.in, text+now); err == nil {
		if said := <-f.marks; said == now {
			return nil
		}
	}
	f.end() // why it has ended is what counts
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f.err == nil {
		return io.ErrUnexpectedEOF
	}
	return f.err
}

// end waits for the end of the run.
func (f *feed) end() {
	_ = f.in.Close()
	for range f.marks {
		continue // of what was committed before it ended
	}
}
