package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/muslin-net/muslin/integration/lab"
)

func execCmd(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE-or-POD -- COMMAND [ARG...]",
		Short: "Run a command on a node or in a pod (or on router and fabric)",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := f.open()
			if err != nil {
				return err
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
			defer signal.Stop(signals)
			c := lab.Command{Args: args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Signals: signals}
			ctx := context.WithoutCancel(cmd.Context()) // signals are the command's to handle
			code, err := 0, error(nil)
			if term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd())) {
				code, err = onTerminal(ctx, l, args[0], c)
			} else {
				code, err = l.Exec(ctx, args[0], c)
			}
			if err == nil && code != 0 {
				err = exitStatus(code)
			}
			return err
		},
	}
}

// onTerminal runs a command on a fresh pseudo-terminal, joined to ours: a program in the lab is in another session, so
// our own terminal cannot control it, and a shell would lack job control.
func onTerminal(ctx context.Context, l *lab.Lab, where string, c lab.Command) (int, error) {
	master, slave, err := openPTY()
	if err != nil {
		return 0, err
	}
	defer master.Close()
	defer slave.Close()

	resize := func() {
		if ws, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil {
			_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, ws)
		}
	}
	resize()
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	defer signal.Stop(winch)
	go func() {
		for range winch {
			resize()
		}
	}()

	old, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return 0, err
	}
	defer func() { _ = term.Restore(int(os.Stdin.Fd()), old) }()

	go func() { _, _ = io.Copy(master, os.Stdin) }() // ends with this program
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(os.Stdout, master) // ends when nobody has the slave open any more
		close(copied)
	}()
	c.Stdin, c.Stdout, c.Stderr, c.TTY = slave, slave, slave, true
	code, err := l.Exec(ctx, where, c)
	slave.Close()
	<-copied
	return code, err
}

func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		var n int
		if n, err = unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN); err == nil {
			slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return master, slave, nil
}
