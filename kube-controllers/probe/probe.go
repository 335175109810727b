// Package probe tells exec probes how the process is, by a file: the process writes it, and check-status, which is the same
// binary, reads it. The file and the command are Calico's, so that its probes work as they are.
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// Command is the name under which the binary answers a probe: as a first argument, or as its own name.
	Command = "check-status"
	// File is where the status is.
	File = "/status/status.json"

	every = 5 * time.Second  // it is written
	stale = 60 * time.Second // it says nothing any more
	part  = "kube-controllers"
)

// Status is what the file has.
type Status struct {
	Liveness, Readiness map[string]Condition
}

// Condition is how one part is.
type Condition struct {
	Ready  bool
	Reason string
}

// Health is what is told.
type Health interface {
	State() (live, ready bool, lines []string)
}

// Write keeps the file up to date until ctx ends, and removes it then. Where its folder is missing nobody reads it.
func Write(ctx context.Context, file string, health Health, log *slog.Logger) error {
	if _, err := os.Stat(filepath.Dir(file)); errors.Is(err, fs.ErrNotExist) {
		log.Debug("no folder for the status file, so none is written", "file", file)
		<-ctx.Done()
		return ctx.Err()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := false
	for {
		err := write(file, health)
		if err != nil && !failing {
			log.Warn("the status file cannot be written, so probes fail; make its folder writable", "file", file, "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				log.Debug("the status file stays", "file", file, "error", err)
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func write(file string, health Health) error {
	live, ready, lines := health.State()
	reason := strings.Join(lines, "; ")
	text, err := json.Marshal(Status{
		Liveness: map[string]Condition{part: {live, reason}}, Readiness: map[string]Condition{part: {ready, reason}},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o644); err != nil { //nolint:gosec // probes of other users read it
		return err
	}
	return os.Rename(file+".new", file)
}

// Asked tells whether the binary was called for a probe, and with which arguments.
func Asked(args []string) (rest []string, is bool) {
	switch {
	case len(args) > 0 && filepath.Base(args[0]) == Command:
		return args[1:], true
	case len(args) > 1 && args[1] == Command:
		return args[2:], true
	}
	return nil, false
}

// Check answers a probe: -l asks whether the process lives, -r whether it is ready. It returns the exit code.
func Check(args []string, out io.Writer) int {
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	flags.SetOutput(out)
	live, ready := flags.Bool("l", false, "ask whether the process lives"), flags.Bool("r", false, "ask whether it is ready")
	file := flags.String("f", File, "file with the status")
	if flags.Parse(args) != nil {
		return 2
	}
	if !*live && !*ready || flags.NArg() > 0 {
		fmt.Fprintf(out, "%s: give -l, -r or both\n", Command)
		return 2
	}
	if err := check(*file, *live, *ready, time.Now()); err != nil {
		fmt.Fprintln(out, err)
		return 1
	}
	fmt.Fprintln(out, "Ready")
	return 0
}

func check(file string, live, ready bool, now time.Time) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("no status: %w", err)
	}
	if age := now.Sub(info.ModTime()); age > stale {
		return fmt.Errorf("no status since %s: the process hangs, or its folder %s is full", age.Round(time.Second), filepath.Dir(file))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("no status: %w", err)
	}
	var s Status
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("status in %s cannot be read: %w", file, err)
	}
	return errors.Join(judge("not live", live, s.Liveness), judge("not ready", ready, s.Readiness))
}

func judge(what string, asked bool, parts map[string]Condition) error {
	if !asked {
		return nil
	}
	var errs []error
	for name, c := range parts {
		if !c.Ready {
			errs = append(errs, fmt.Errorf("%s is %s: %s", name, what, c.Reason))
		}
	}
	return errors.Join(errs...)
}
