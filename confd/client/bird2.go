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

	loaded bool // the running BIRD has read the file
}

// Apply writes the file and has BIRD read it, unless it has. Sessions stay up unless their own parameters change.
func (b *BIRD2) Apply(ctx context.Context, c render.Config, generation uint64) (bird.Applied, error) {
	done := bird.Applied{Generation: generation}
	text := bird2.Text(c)
	now, err := os.ReadFile(b.File)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return done, err
	}
	if changed := !bytes.Equal(now, text); changed {
		b.loaded = false
	}
	before, err := replace(b.File, text, 0o640, func(path string) error { return b.parse(ctx, path, c) })
	if err != nil {
		return done, err
	}
	command := "configure"
	if b.loaded {
		command = "show status" // a BIRD that was started anew has read the file by itself
	}
	if err := b.ask(ctx, command); err != nil {
		if errors.Is(err, ErrRefused) && before != nil { // a BIRD of another version than the one that parsed it
			_, undo := replace(b.File, before, 0o640, func(string) error { return nil })
			err = errors.Join(err, undo)
		}
		return done, err
	}
	b.loaded = true
	return done, nil
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

// ask sends a command over BIRD's control socket. Each line of an answer begins with a number of four digits or belongs to
// the line before; a space after the number ends the answer, and numbers from 8000 are errors.
func (b *BIRD2) ask(ctx context.Context, command string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", b.Socket)
	if err != nil {
		return fmt.Errorf("BIRD does not run: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	in := bufio.NewScanner(conn)
	if _, err := answer(in); err != nil { // its welcome
		return err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return fmt.Errorf("telling BIRD to %s: %w", command, err)
	}
	text, err := answer(in)
	if err != nil {
		return fmt.Errorf("telling BIRD to %s: %w", command, err)
	}
	if code := text[:1]; code == "8" || code == "9" {
		return fmt.Errorf("%w: BIRD does not %s: %s", ErrRefused, command, text)
	}
	return nil
}

// answer reads one answer; its last line is the result, and at least five characters long.
func answer(in *bufio.Scanner) (last string, err error) {
	for in.Scan() {
		line := in.Text()
		if len(line) >= 5 && line[4] == ' ' && strings.Trim(line[:4], "0123456789") == "" {
			return line, nil
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

// errNoView answers operators' questions on nodes with BIRD.
var errNoView = errors.New("this node runs BIRD in the place of bird; ask it with birdc on the node")

// NoView answers that the speaker is one that cannot be asked from afar.
type NoView struct{}

// RelayPeers answers with an error.
func (NoView) RelayPeers(context.Context, []byte) ([]byte, error) { return nil, errNoView }

// RelayShow answers with an error.
func (NoView) RelayShow(context.Context, []byte, func([]byte) error) error { return errNoView }

// RelayDrain answers with an error.
func (NoView) RelayDrain(context.Context, []byte) ([]byte, error) { return nil, errNoView }
