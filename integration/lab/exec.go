package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// execIn runs a program in a space for a client, with the client's own files as its standard input and output, and
// returns its exit status. Signals from the client go to the program's whole process group; if the client goes away the
// group is killed.
func execIn(ctx context.Context, s *space, r request, env []string, files []*os.File, signals <-chan syscall.Signal) (int, error) {
	if len(r.Args) == 0 {
		return 0, problem("no command to run", "lab exec NODE-or-POD -- COMMAND")
	}
	if len(files) != 3 {
		return 0, fmt.Errorf("exec wants 3 files, got %d", len(files))
	}
	var cmd *exec.Cmd
	err := s.do(func() error {
		env = append(env, r.Env...)
		path, ok := findProgram(r.Args[0], env)
		if !ok {
			return problem(fmt.Sprintf("%s is not found on %s", r.Args[0], s.name), "give its full path")
		}
		cmd = exec.Command(path, r.Args[1:]...)
		cmd.Args[0] = r.Args[0]
		cmd.Env = env
		cmd.Dir = "/"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: r.TTY}
		return cmd.Start()
	})
	if err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		for {
			select {
			case sig := <-signals:
				_ = syscall.Kill(-cmd.Process.Pid, sig)
			case <-ctx.Done():
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				return
			case <-ended:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(ended)
	<-forwarded
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// findProgram looks a program up as a shell with that environment would, among the files that the calling thread sees.
func findProgram(name string, env []string) (string, bool) {
	if strings.Contains(name, "/") {
		return name, unix.Access(name, unix.X_OK) == nil
	}
	var dirs string
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			dirs = p // the last one counts
		}
	}
	for _, dir := range filepath.SplitList(dirs) {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil {
			return path, true
		}
	}
	return "", false
}
