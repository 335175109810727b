// Package process runs programs as child processes of a load or of a storm: they are frozen, killed and started again, what they say
// goes to files, and what they tell of themselves over HTTP is read.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/muslin-net/muslin/internal/loopback"
)

// Process is a program that can be run, again and again. Its methods may be called from any goroutine; its fields are not to be
// changed while it runs.
type Process struct {
	Name   string
	Path   string
	Args   []string
	Env    []string // beside this process's
	Dir    string   // that it runs in; empty: this process's
	Log    string   // file that all it says is added to
	Stdin  *os.File // nil: nothing
	Stdout *os.File // nil: the log

	mu    sync.Mutex // guards all below
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// Start starts it. It dies with the one that starts it.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("%s runs already", p.Name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = p.Dir, log, log, append(os.Environ(), p.Env...)
	if p.Stdin != nil {
		cmd.Stdin = p.Stdin
	}
	if p.Stdout != nil {
		cmd.Stdout = p.Stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // killed as a rule
		close(ended)
	}()
	return nil
}

// patience is how long a process may take to end once it was asked to.
const patience = 10 * time.Second

// End ends it by a signal, also if it is frozen, and waits for it. One that takes too long is killed.
func (p *Process) End(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(s) // it may have ended
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	p.cmd = nil
}

// Signal sends a signal; false if it does not run.
func (p *Process) Signal(s syscall.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil && p.cmd.Process.Signal(s) == nil
}

// PID is the process's id, 0 if it was not started.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Ended is closed when the process ends that was started last.
func (p *Process) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// Tail is the end of what it said.
func (p *Process) Tail() string {
	b, _ := os.ReadFile(p.Log) // there may be none yet
	return string(b[max(0, len(b)-4000):])
}

// Err is the error of a process that ended by itself: the last line that it said.
func (p *Process) Err() error {
	said := strings.TrimSpace(p.Tail())
	return fmt.Errorf("%s ended: %s", p.Name, said[strings.LastIndexByte(said, '\n')+1:])
}

// Etcd is the etcd of the distribution, with one member on loopback and its data in dir, and where it is reached.
func Etcd(dir string, more ...string) (p *Process, address string, err error) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, "", errors.New("there is no etcd program; install the package etcd-server")
	}
	address = loopback.Address()
	url, peer := "http://"+address, "http://"+loopback.Address()
	return &Process{Name: "etcd", Path: binary, Log: filepath.Join(dir, "etcd.log"), Args: append([]string{
		"--name", "one", "--data-dir", filepath.Join(dir, "etcd"), "--logger", "zap", "--log-level", "warn",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer,
	}, more...)}, address, nil
}
