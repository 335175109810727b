package lab

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Hidden first arguments with which a lab binary runs itself.
const (
	argInit      = "__init"
	argSupervise = "__supervise"
)

// envState marks each process of a lab with the lab's state directory.
const envState = "MUSLIN_LAB"

// Open files that a lab's first processes inherit.
const (
	launchFD = 3 // connection to the process that brings the lab up
	parentFD = 4 // the directory that holds the state directory, as the machine sees it (supervisor only)
)

// Hidden runs the lab's own processes: a main (or TestMain) that launches labs with its own binary calls it first. It
// returns only if the arguments are none of the lab's hidden ones.
func Hidden() {
	if len(os.Args) != 3 {
		return
	}
	switch os.Args[1] {
	case argInit:
		os.Exit(runInit(os.Args[2]))
	case argSupervise:
		os.Exit(runSupervisor(os.Args[2]))
	}
}

// runInit is process 1 of a lab. It prepares the mounts, starts the supervisor, and reaps what loses its parent. When
// it ends, for whatever reason, the kernel ends every process of the lab, and with them go its namespaces, links and
// mounts: that is the lab's undo stack.
func runInit(stateDir string) int {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	launch := os.NewFile(launchFD, "launch")
	pid, err := startSupervisor(stateDir)
	if err != nil {
		if w, e := wireOf(launch); e == nil {
			_ = w.send(final(nil, err))
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	launch.Close() // the launcher must see its end when the supervisor dies
	go func() {
		<-terminate
		os.Exit(0)
	}()
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if got == pid || err != nil && !errors.Is(err, syscall.EINTR) {
			return ws.ExitStatus()
		}
	}
}

func startSupervisor(stateDir string) (int, error) {
	parent, err := os.Open(filepath.Dir(stateDir))
	if err != nil {
		return 0, err
	}
	defer parent.Close()
	if err := mountLab(stateDir); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], argSupervise, stateDir}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, launchFD, parent.Fd()},
	})
	if err != nil {
		return 0, fmt.Errorf("start the supervisor: %w", err)
	}
	return pid, nil
}
