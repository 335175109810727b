package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/confd/bird2"
	"github.com/muslin-net/muslin/confd/render"
)

// BIRD2 is BIRD 2 as a target. BIRD reads a file when it starts and when it is told to; the file is replaced only by what
// BIRD itself has parsed.
type BIRD2 struct {
	File    string // of BIRD's configuration; it holds passwords, and is for root alone
	Socket  string // BIRD's control socket
	Program string // BIRD, to parse with

	mu     sync.Mutex // guards the following, the file, and that BIRD is told what is in it
	loaded bool       // the running BIRD has read the file
	config *render.Config
	drain  bird2.Drain
}

// Apply writes the file and has BIRD read it, unless it has. Sessions stay up unless their own parameters change.
func (b *BIRD2) Apply(ctx context.Context, c render.Config, generation uint64) (bird.Applied, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.apply(ctx, c, b.drain)
	if err == nil {
		b.config = &c
	}
	return bird.Applied{Generation: generation}, err
}

// errNoConfig says that what BIRD runs was written by an earlier confd, and this one knows nothing of it.
var errNoConfig = errors.New("confd has not heard from typha since it started")

// Drain takes a step out of the service, or back into it. What runs is otherwise the configuration that was applied last.
func (b *BIRD2) Drain(ctx context.Context, d bird2.Drain) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.config == nil {
		return errNoConfig
	}
	err := b.apply(ctx, *b.config, d)
	if err == nil {
		b.drain = d
	}
	return err
}

// running is the configuration that was applied last, nil if none was, and how far the node has left the service.
func (b *BIRD2) running() (*render.Config, bird2.Drain) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config, b.drain
}

func (b *BIRD2) apply(ctx context.Context, c render.Config, d bird2.Drain) error {
	text := bird2.Text(c, d)
	now, err := os.ReadFile(b.File)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if changed := !bytes.Equal(now, text); changed {
		b.loaded = false
	}
	before, err := replace(b.File, text, 0o640, func(path string) error { return b.parse(ctx, path, c) })
	if err != nil {
		return err
	}
	command := "configure"
	if b.loaded {
		command = "show status" // a BIRD that was started anew has read the file by itself
	}
	if err := b.ask(ctx, command, nil); err != nil {
		if errors.Is(err, ErrRefused) && before != nil { // a BIRD of another version than the one that parsed it
			_, undo := replace(b.File, before, 0o640, func(string) error { return nil })
			err = errors.Join(err, undo)
		}
		return err
	}
	b.loaded = true
	return nil
}

// parse has BIRD read a file without doing anything.
func (b *BIRD2) parse(ctx context.Context, path string, c render.Config) error {
	out, err := exec.CommandContext(ctx, b.Program, "-p", "-c", path).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.Exited():
		return fmt.Errorf("%w: %s does not accept the configuration: %s", ErrRefused, b.Program, withoutPasswords(string(out), c))
	default:
		return fmt.Errorf("asking %s: %w", b.Program, err)
	}
}

// ask sends a command over BIRD's control socket, and gives each line of the answer to take, which may be nil. A line begins with a
// number of four digits, or with a space if it is the same as before; a space after the number ends the answer, and numbers
// from 8000 are errors.
func (b *BIRD2) ask(ctx context.Context, command string, take func(line string)) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", b.Socket)
	if err != nil {
		return fmt.Errorf("BIRD does not run: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	in := bufio.NewScanner(conn)
	in.Buffer(nil, 1<<20)                                  // a path may have many communities
	if _, err := answer(in, func(string) {}); err != nil { // its welcome
		return err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return fmt.Errorf("telling BIRD to %s: %w", command, err)
	}
	if take == nil {
		take = func(string) {}
	}
	last, err := answer(in, take)
	if err != nil {
		return fmt.Errorf("telling BIRD to %s: %w", command, errors.Join(err, ctx.Err()))
	}
	if code := last[:1]; code == "8" || code == "9" {
		return fmt.Errorf("%w: BIRD does not %s: %s", ErrRefused, command, last)
	}
	return nil
}

// answer reads one answer; its last line, with its number, is the result, and at least five characters long.
func answer(in *bufio.Scanner, take func(line string)) (last string, err error) {
	for in.Scan() {
		line := in.Text()
		numbered := len(line) >= 5 && strings.Trim(line[:4], "0123456789") == ""
		switch {
		case numbered && line[4] == ' ':
			take(line[5:])
			return line, nil
		case numbered:
			take(line[5:])
		case line != "":
			take(line[1:])
		}
	}
	return "", errors.Join(errors.New("BIRD closed the connection"), in.Err())
}

// withoutPasswords is text of BIRD's with every password of the configuration blotted out.
func withoutPasswords(text string, c render.Config) string {
	for _, p := range c.Peers {
		if p.Password != "" {
			text = strings.ReplaceAll(text, p.Password, "(redacted)")
		}
	}
	return strings.TrimSpace(text)
}
