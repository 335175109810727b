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
	Cgroup string   // directory of the cgroup, of version 2, that it runs in; empty: this process's

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
	if p.Cgroup != "" {
		group, err := os.Open(p.Cgroup)
		if err != nil {
			return err
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
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
	members, addresses, err := EtcdMembers(dir, 1, more...)
	if err != nil {
		return nil, "", err
	}
	return members[0], addresses[0], nil
}

// EtcdMembers is the same with so many members.
func EtcdMembers(dir string, n int, more ...string) (members []*Process, addresses []string, err error) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, nil, errors.New("there is no etcd program; install the package etcd-server")
	}
	var peers, cluster []string
	for i := range n {
		peers = append(peers, "http://"+loopback.Address())
		cluster = append(cluster, fmt.Sprintf("etcd%d=%s", i, peers[i]))
	}
	for i, peer := range peers {
		name, address := fmt.Sprintf("etcd%d", i), loopback.Address()
		members = append(members, &Process{Name: name, Path: binary, Log: filepath.Join(dir, name+".log"), Args: append([]string{
			"--name", name, "--data-dir", filepath.Join(dir, name), "--logger", "zap", "--log-level", "warn",
			"--listen-client-urls", "http://" + address, "--advertise-client-urls", "http://" + address,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(cluster, ","),
		}, more...)})
		addresses = append(addresses, address)
	}
	return members, addresses, nil
}
