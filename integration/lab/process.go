package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// ProcessState says what a supervised process is doing.
type ProcessState string

// The states of a supervised process.
const (
	StateWaiting ProcessState = "waiting" // not started yet
	StateRunning ProcessState = "running"
	StateDone    ProcessState = "done"    // ran once and succeeded, as it should
	StateBackoff ProcessState = "backoff" // it exited, and is started again soon
	StateKilled  ProcessState = "killed"  // stays down until it is started
)

// ProcessStatus is a snapshot of a supervised process.
type ProcessStatus struct {
	Node     string       `json:"node"`
	Name     string       `json:"name"`
	State    ProcessState `json:"state"`
	PID      int          `json:"pid,omitempty"`      // inside the lab's process namespace
	Starts   int          `json:"starts"`             // how often it was started
	Since    time.Time    `json:"since"`              // when the state began
	LastExit string       `json:"lastExit,omitempty"` // how it last ended
	Log      string       `json:"log"`                // file with its output
	// CPU is what it has used of a processor since it was started.
	CPU time.Duration `json:"cpu,omitempty"`
}

// command is what to run.
type command struct {
	name string
	path string
	args []string
	env  []string
	// once: the program does its work and exits with 0; it is repeated only if it fails.
	once bool
}

const (
	backoffFirst = 100 * time.Millisecond
	backoffMax   = 5 * time.Second
	backoffReset = 10 * time.Second // running this long clears the backoff
	stopGrace    = 5 * time.Second  // what a program may take to end when it is asked to
)

// process keeps one program running in a space.
type process struct {
	node  string
	cmd   command
	space *space
	log   string

	wake chan struct{} // "look at want again", capacity 1

	mu      sync.Mutex
	want    bool
	status  ProcessStatus
	running *os.Process   // nil while not running
	changed chan struct{} // closed and replaced at each change of status
}

func newProcess(node string, c command, s *space, log string) *process {
	return &process{
		node: node, cmd: c, space: s, log: log,
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
		status:  ProcessStatus{Node: node, Name: c.name, State: StateWaiting, Since: time.Now(), Log: log},
	}
}

// run supervises until ctx ends, then kills the program and waits for it.
func (p *process) run(ctx context.Context) {
	backoff := backoffFirst
	for {
		if !p.wanted() {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
				backoff = backoffFirst
				continue
			}
		}
		began := time.Now()
		done := p.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if done || !p.wanted() {
			continue
		}
		if time.Since(began) > backoffReset {
			backoff = backoffFirst
		}
		p.set(func(s *ProcessStatus) { s.State, s.PID = StateBackoff, 0 })
		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.wake:
			backoff = backoffFirst
		case <-timer.C:
			backoff = min(2*backoff, backoffMax)
		}
		timer.Stop()
	}
}

// runOnce starts the program and waits for its end. It returns true if the program is not wanted any more, because its
// work is done.
func (p *process) runOnce(ctx context.Context) bool {
	cmd, err := p.spawn()
	if err != nil {
		p.set(func(s *ProcessStatus) { s.Starts, s.LastExit = s.Starts+1, err.Error() })
		return false
	}
	if cmd == nil {
		return true
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			_ = cmd.Process.Kill()
		case <-ended:
		}
	}()
	err = cmd.Wait()
	close(ended)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = nil
	p.update(func(s *ProcessStatus) {
		s.PID = 0
		s.LastExit = exitText(err)
		switch {
		case !p.want:
			s.State = StateKilled
		case p.cmd.once && err == nil:
			s.State = StateDone
			p.want = false
		}
	})
	return !p.want
}

// spawn starts the program, unless it was killed meanwhile.
func (p *process) spawn() (*exec.Cmd, error) {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.want {
		return nil, nil
	}
	cmd := exec.Command(p.cmd.path, p.cmd.args...)
	cmd.Env = p.cmd.env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.space.do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", p.cmd.name, p.node, err)
	}
	p.running = cmd.Process
	p.update(func(s *ProcessStatus) { s.State, s.PID, s.Starts = StateRunning, cmd.Process.Pid, s.Starts+1 })
	return cmd, nil
}

// start makes the program wanted. A process that is up stays as it is.
func (p *process) start() {
	p.mu.Lock()
	p.want = true
	p.mu.Unlock()
	p.poke()
}

// signal sends a signal. With stayDown the program is not started again by itself.
func (p *process) signal(sig syscall.Signal, stayDown bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil && !stayDown {
		return problem(fmt.Sprintf("%s on %s is not running (%s)", p.cmd.name, p.node, p.status.State), "see: lab status")
	}
	if stayDown {
		p.want = false
		if p.running == nil {
			p.update(func(s *ProcessStatus) { s.State = StateKilled })
			p.poke() // it may be waiting to be restarted
			return nil
		}
	}
	if err := p.running.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s on %s: %w", p.cmd.name, p.node, err)
	}
	return nil
}

// stop ends the program as an init system does, with SIGTERM first, and returns when it has ended. It stays down.
func (p *process) stop(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM, true); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	down := func(st ProcessStatus) bool { return st.State == StateKilled }
	if err := p.await(patience, down); err == nil {
		return nil
	}
	if err := p.signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	return p.await(ctx, down)
}

// setEnv changes the environment of the next start.
func (p *process) setEnv(env []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd.env = env
}

// await returns when ok says so, or when ctx ends.
func (p *process) await(ctx context.Context, ok func(ProcessStatus) bool) error {
	for {
		p.mu.Lock()
		s, changed := p.status, p.changed
		p.mu.Unlock()
		if ok(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (p *process) snapshot() ProcessStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

func (p *process) wanted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.want
}

func (p *process) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *process) set(change func(*ProcessStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.update(change)
}

// update changes the status and tells who awaits it. mu is held.
func (p *process) update(change func(*ProcessStatus)) {
	before := p.status.State
	change(&p.status)
	if p.status.State != before {
		p.status.Since = time.Now()
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// hopeless tells that a process ended each time it was started.
func (s ProcessStatus) hopeless() bool { return s.State == StateBackoff && s.Starts >= 5 }

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
