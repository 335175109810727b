package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// supervisor is the one process that owns a lab: it holds the namespaces open, keeps the processes running, and answers
// on the control socket. It runs inside the lab's own process, mount and network (and, rootless, user) namespaces.
type supervisor struct {
	config   config
	topology Topology
	ctx      context.Context // ends when the lab does
	log      *slog.Logger

	fabric    *fabric
	router    *space
	machines  map[string]*machine // fixed once built, under mu until then
	processes []*process

	running sync.WaitGroup // the process loops

	switching sync.Mutex // one change of backend at a time

	mu   sync.Mutex
	pods map[string]*pod
	// sandboxes counts those that were made, so that each has an id of its own
	sandboxes int
	backend   Backend // the topology's until it is changed
}

// config is what the launcher tells the supervisor, in config.json of the state directory.
type config struct {
	Name     string `json:"name"`
	StateDir string `json:"stateDir"`
	BinDir   string `json:"binDir"`
	Rootless bool   `json:"rootless"`
	// Attached: the lab ends when the process that launched it does.
	Attached bool `json:"attached"`
}

func runSupervisor(stateDir string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	launch, err := wireOf(os.NewFile(launchFD, "launch"))
	if err != nil {
		log.Error("no launcher", "error", err)
		return 1
	}
	unix.CloseOnExec(parentFD)
	ctx, cancel := context.WithCancel(context.Background())
	s := &supervisor{ctx: ctx, log: log, machines: map[string]*machine{}, pods: map[string]*pod{}}

	ended := make(chan struct{}) // the launcher is gone and the lab with it
	ready := make(chan struct{})
	go s.watchLauncher(launch, ready, ended)

	built := make(chan error, 1)
	go func() { built <- s.build(ctx, stateDir, func(p Progress) { _ = launch.send(reply{Progress: &p}) }) }()
	select {
	case err = <-built:
	case <-ended:
		err = errors.New("the launcher went away")
	}
	if err == nil {
		close(ready)
		_ = launch.send(final(s.status(), nil))
		<-ended
		log.Info("the launcher ended, and the lab with it")
	} else {
		log.Error("the lab cannot come up", "error", err)
		_ = launch.send(final(nil, err))
	}
	cancel()
	s.running.Wait()
	_ = syscall.Kill(-1, syscall.SIGKILL) // all of the lab's processes but this one and init
	removeState(stateDir)
	return 1
}

// watchLauncher closes ended when the launcher goes away while the lab depends on it: until it is ready, and if it is
// attached as long as it lives.
func (s *supervisor) watchLauncher(launch *wire, ready, ended chan struct{}) {
	attached := true
	for {
		var r request
		_, err := launch.receive(&r)
		if err == nil && r.Verb == verbDetach {
			attached = false
			continue
		}
		select {
		case <-ready:
			if attached && s.config.Attached {
				close(ended)
			}
		default:
			close(ended)
		}
		return
	}
}

// removeState removes the state directory through the machine's view of it: inside the lab it may be a mount point.
func removeState(stateDir string) {
	if err := os.RemoveAll(stateDir); err != nil {
		_ = unix.Unlinkat(parentFD, filepath.Base(stateDir), unix.AT_REMOVEDIR)
	}
}

// serve answers on the control socket until ctx ends.
func (s *supervisor) serve(l *net.UnixListener) {
	go func() {
		<-s.ctx.Done()
		_ = l.Close()
	}()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if s.ctx.Err() == nil {
				s.log.Error("the control socket failed", "error", err)
			}
			return
		}
		go s.handle(&wire{c: c})
	}
}

// handle answers one request.
func (s *supervisor) handle(w *wire) {
	defer w.close()
	var r request
	files, err := w.receive(&r)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			s.log.Error("a request cannot be read", "error", err)
		}
		return
	}
	defer closeAll(files)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	signals := make(chan syscall.Signal)
	go func() {
		defer cancel() // the client is gone: so is its wish
		for {
			var i interrupt
			if _, err := w.receive(&i); err != nil {
				return
			}
			select {
			case signals <- syscall.Signal(i.Signal):
			case <-ctx.Done():
				return
			}
		}
	}()
	result, sent, err := s.answer(ctx, r, files, signals)
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Info("refused", "verb", r.Verb, "where", r.Where, "error", err)
	}
	if err := w.send(final(result, err), sent...); err != nil {
		s.log.Warn("an answer did not reach who asked", "verb", r.Verb, "where", r.Where, "error", err)
	}
	closeAll(sent)
}

// answer does what a request asks. The files it returns go with the reply.
func (s *supervisor) answer(ctx context.Context, r request, files []*os.File, signals <-chan syscall.Signal) (any, []*os.File, error) {
	switch r.Verb {
	case verbStatus:
		return s.status(), nil, nil
	case verbExec:
		at, env, err := s.find(r.Where)
		if err != nil {
			return nil, nil, err
		}
		code, err := execIn(ctx, at, r, env, files, signals)
		return code, nil, err
	case verbSocket:
		at, _, err := s.find(r.Where)
		if err != nil {
			return nil, nil, err
		}
		f, err := openSocket(at, r.Socket)
		if err != nil {
			return nil, nil, err
		}
		return nil, []*os.File{f}, nil
	case verbPodAdd:
		if r.Pod == nil {
			return nil, nil, errors.New("pod-add without a pod")
		}
		st, err := s.addPod(ctx, *r.Pod)
		return st, nil, err
	case verbPodDel:
		st, err := s.delPod(ctx, r.Where)
		return st, nil, err
	case verbPodCNI:
		return nil, nil, s.cniCall(ctx, r.Where, r.Call)
	case verbFabric:
		st, err := s.fabricStatus()
		return st, nil, err
	case verbCheck:
		return nil, nil, s.checkSourceDest(r.On, r.Nodes)
	case verbBackend:
		return nil, nil, s.setBackend(ctx, r.Backend)
	case verbKill, verbStart:
		p, err := s.findProcess(r.Where, r.Process)
		if err != nil {
			return nil, nil, err
		}
		return nil, nil, s.control(ctx, p, r)
	}
	return nil, nil, problem(fmt.Sprintf("the lab does not know %q", r.Verb), "it was started by another version of bin/lab: lab down, then lab up")
}

// control kills, signals or starts a process, and waits until that is so.
func (s *supervisor) control(ctx context.Context, p *process, r request) error {
	if r.Verb == verbStart {
		p.start()
		return p.await(ctx, func(st ProcessStatus) bool { return st.State == StateRunning || st.State == StateDone })
	}
	if r.Signal != 0 {
		return p.signal(syscall.Signal(r.Signal), false)
	}
	if err := p.signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	return p.await(ctx, func(st ProcessStatus) bool { return st.State == StateKilled })
}

// find returns the space of a node, pod, the router or the fabric, and the environment of programs there.
func (s *supervisor) find(where string) (*space, []string, error) {
	switch where {
	case fabricName:
		return s.fabric.space, s.baseEnv(), nil
	case routerName:
		return s.router, s.baseEnv(), nil
	}
	if m, ok := s.machines[where]; ok {
		return m.space, s.shellEnv(m.node), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.pods[where]; ok && p.space != nil {
		return p.space, s.baseEnv(), nil
	}
	return nil, nil, problem(fmt.Sprintf("there is no node or pod %q in lab %s", where, s.config.Name), "see: lab status --name "+s.config.Name)
}

func (s *supervisor) findProcess(node, name string) (*process, error) {
	if _, ok := s.machines[node]; !ok {
		return nil, problem(fmt.Sprintf("there is no node %q in lab %s", node, s.config.Name), "see: lab status --name "+s.config.Name)
	}
	var known []string
	for _, p := range s.processes {
		if p.node == node {
			if p.cmd.name == name {
				return p, nil
			}
			known = append(known, p.cmd.name)
		}
	}
	return nil, problem(fmt.Sprintf("node %s runs no %q", node, name), fmt.Sprintf("it runs %v", known))
}

// status is a snapshot of the whole lab.
func (s *supervisor) status() Status {
	st := Status{Name: s.config.Name, StateDir: s.config.StateDir, Rootless: s.config.Rootless, Datastore: s.topology.Datastore, Backend: s.currentBackend()}
	for _, n := range s.topology.Nodes {
		st.Nodes = append(st.Nodes, NodeStatus{Name: n.Name, Addresses: n.Addresses, Interface: n.Interface, Zone: n.Zone})
	}
	for _, p := range s.processes {
		now := p.snapshot()
		if now.PID != 0 {
			now.CPU = cpuTime(now.PID)
		}
		st.Processes = append(st.Processes, now)
	}
	var ended unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &ended); err == nil {
		st.Ended = time.Duration(ended.Utime.Nano() + ended.Stime.Nano())
	}
	s.mu.Lock()
	for _, p := range s.pods {
		if p.space != nil {
			st.Pods = append(st.Pods, p.status())
		}
	}
	s.mu.Unlock()
	sort.Slice(st.Pods, func(i, j int) bool { return st.Pods[i].ID < st.Pods[j].ID })
	return st
}

// each calls fn for each node at the same time, and returns the first error.
func (s *supervisor) each(ctx context.Context, fn func(context.Context, *machine) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range s.topology.Nodes {
		m := s.machines[n.Name]
		g.Go(func() error { return fn(ctx, m) })
	}
	return g.Wait()
}

// timed reports a step before and after it.
func timed(progress func(Progress), step string, fn func() error) error {
	progress(Progress{Step: step})
	began := time.Now()
	if err := fn(); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	progress(Progress{Step: step, Done: true, Took: time.Since(began)})
	return nil
}

// openSocket makes a socket in a space. It belongs to the space's network whoever uses it later.
func openSocket(at *space, kind [3]int) (*os.File, error) {
	var fd int
	err := at.do(func() (err error) {
		fd, err = unix.Socket(kind[0], kind[1]|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, kind[2])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket in %s: %w", at.name, err)
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

func readConfig(stateDir string) (config, error) {
	var c config
	data, err := os.ReadFile(filepath.Join(stateDir, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	return c, err
}
