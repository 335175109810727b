package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What a Config means where it says nothing.
const (
	DefaultMemory  = 4096 // MiB
	DefaultTimeout = 20 * time.Minute
)

// bootTimeout bounds the time until the job begins. It takes seconds; a busy machine may need ten times as long.
const bootTimeout = 3 * time.Minute

// Config says what the guest is like and what its command gets. The zero value is good for most.
type Config struct {
	// Memory is the guest's memory in MiB, default DefaultMemory. What it does not use costs nothing.
	Memory int
	// CPUs is the number of the guest's processors, default 1: with two, emulated as threads on a busy machine, a guest was
	// seen to lock up, both processors waiting for each other.
	CPUs int
	// Timeout bounds the whole run, default DefaultTimeout.
	Timeout time.Duration
	// Modules are loaded before the command starts. All others are loaded when the kernel or modprobe wants them.
	Modules []string
	// Without names modules that this kernel refuses to load, as if it had been built without them.
	Without []string
	// Cmdline is added to the kernel's command line.
	Cmdline []string
	// Env is the command's whole environment as "NAME=value", default this process's.
	Env []string
	// Dir is the command's directory, default this process's. It cannot be below /run, which is the guest's own.
	Dir string
	// Writable are directories, absolute, in which the command's writes go to the machine. Elsewhere they go to the guest's
	// memory and end with it.
	Writable []string
	// Stdin is the command's standard input, default empty.
	Stdin io.Reader
	// Stdout and Stderr get the command's output as it comes, default nowhere. Stderr also gets a line when the kernel must
	// be fetched first, and what the guest's kernel said if the command failed.
	Stdout, Stderr io.Writer
}

// Run boots the second kernel, runs the command in it and returns the command's exit code: 128 plus the signal's number
// if a signal ended it, 127 if there is no such program. All other troubles are an error, and the code is -1: something is
// missing on this machine (the error says what to install), the guest did not boot, its kernel panicked, time is over
// (context.DeadlineExceeded) or ctx ended. The error then holds the end of the guest's console.
//
// When Run returns, and also when this process is killed, nothing of the guest is left.
func Run(ctx context.Context, c Config, argv ...string) (exitCode int, err error) {
	if err := c.complete(argv); err != nil {
		return -1, err
	}
	if err := present("qemu-system-x86_64", "modprobe"); err != nil {
		return -1, err
	}
	k, err := cachedKernel(ctx, c.Stderr)
	if err != nil {
		return -1, err
	}
	first, err := initrd(ctx, k, c, argv)
	if err != nil {
		return -1, fmt.Errorf("the second kernel's first files: %w", err)
	}
	defer first.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("it did not end within %v: %w", c.Timeout, context.DeadlineExceeded))
	defer cancel()
	g := guest{kernel: k, config: c, initrd: first}
	code, err := g.run(ctx)
	switch {
	case err != nil:
		return -1, fmt.Errorf("second kernel %s, %s: %w%s", k.release, filepath.Base(argv[0]), err, g.console.quoted("its console:"))
	case code != 0:
		_, _ = io.WriteString(c.Stderr, strings.TrimPrefix(g.console.quoted("vm: the guest's kernel said:")+"\n", "\n"))
	}
	return code, nil
}

// complete puts in the defaults and refuses what cannot work.
func (c *Config) complete(argv []string) error {
	if len(argv) == 0 {
		return errors.New("second kernel: no command")
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Stdout == nil {
		c.Stdout = io.Discard
	}
	if c.Stderr == nil {
		c.Stderr = io.Discard
	}
	if c.Dir == "" {
		dir, err := os.Getwd()
		if err != nil {
			return err
		}
		c.Dir = dir
	}
	c.Writable = slices.Clone(c.Writable)
	for i, dir := range c.Writable {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return err
		}
		if fi, err := os.Stat(abs); err != nil || !fi.IsDir() {
			return fmt.Errorf("second kernel: writable directory %s: no such directory", dir)
		}
		c.Writable[i] = abs
	}
	return nil
}

// Inside tells whether this process runs in the second kernel.
func Inside() bool {
	cmdline, err := os.ReadFile("/proc/cmdline")
	return err == nil && bytes.Contains(cmdline, []byte(mark))
}

// mark is the word on the kernel's command line that Inside looks for.
const mark = "muslin.vm=1"

// outcome follows what the guest writes about its job.
type outcome struct {
	up   chan struct{} // closed at the guest's first word, which is that the job begins
	code int           // the exit code, -1 until known
	err  error
}

// started tells whether the job has begun.
func (o *outcome) started() bool {
	select {
	case <-o.up:
		return true
	default:
		return false
	}
}

// read follows the guest's lines until it is off.
func (o *outcome) read(r io.Reader) {
	all, _ := io.ReadAll(io.TeeReader(r, onFirst(func() { close(o.up) })))
	o.code = -1
	for line := range strings.Lines(string(all)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "exit":
			if code, err := strconv.Atoi(rest); err == nil {
				o.code = code
			}
		case "error":
			o.err = errors.New(rest)
		}
	}
}

// onFirst calls itself for the first bytes that are written to it.
func onFirst(f func()) io.Writer {
	done := false
	return writer(func(p []byte) (int, error) {
		if !done && len(p) > 0 {
			done = true
			f()
		}
		return len(p), nil
	})
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
