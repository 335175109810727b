package storm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-net/muslin/internal/loopback"
)

// process is a child process that can be killed, frozen and started again. Its methods may be called from any goroutine.
type process struct {
	name string
	path string
	args []string
	env  []string // beside this process's
	log  string   // file that it all goes to

	mu    sync.Mutex // guards all below
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// start starts the process. It dies with the one that starts it.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("%s runs already", p.name)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // killed as a rule
		close(ended)
	}()
	return nil
}

// end ends the process by a signal and waits for it.
func (p *process) end(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(s) // it may have ended
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	<-p.ended
	p.cmd = nil
}

// signal sends a signal; false if the process does not run.
func (p *process) signal(s syscall.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil && p.cmd.Process.Signal(s) == nil
}

// pid is the process's id, 0 if it does not run.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// tail is the end of the process's log.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.log) // there may be none yet
	return string(b[max(0, len(b)-4000):])
}

// etcd is the etcd of the distribution, with one member.
type etcd struct {
	process
	url     string
	address string
}

func newEtcd(dir string) (*etcd, error) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, errors.New("storms need the etcd program; install the package etcd-server")
	}
	e := &etcd{address: loopback.Address()}
	e.url = "http://" + e.address
	peer := "http://" + loopback.Address()
	e.process = process{name: "etcd", path: binary, log: filepath.Join(dir, "etcd.log"), args: []string{
		"--name", "storm", "--data-dir", filepath.Join(dir, "etcd"),
		"--listen-client-urls", e.url, "--advertise-client-urls", e.url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "storm=" + peer,
		"--unsafe-no-fsync", // processes are killed here, not machines, whose disks may be slow
		"--logger", "zap", "--log-level", "warn", "--quota-backend-bytes", strconv.Itoa(4 << 30),
		"--auto-compaction-mode", "revision", "--auto-compaction-retention", "100000",
	}}
	return e, nil
}

// raw runs a request of etcd's own client.
func (e *etcd) raw(ctx context.Context, do func(context.Context, *clientv3.Client) error) error {
	conn, err := clientv3.New(clientv3.Config{Endpoints: []string{e.url}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost by it
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return do(ctx, conn)
}

// revision is where the datastore is.
func (e *etcd) revision(ctx context.Context) (revision int64, err error) {
	err = e.raw(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, "/storm")
		if err == nil {
			revision = got.Header.Revision
		}
		return err
	})
	return revision, err
}

// compact forgets the history up to a revision.
func (e *etcd) compact(ctx context.Context, revision int64) error {
	return e.raw(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Compact(ctx, revision, clientv3.WithCompactPhysical())
		return err
	})
}

// ask gets a page of a process's health server.
func ask(ctx context.Context, address, page string) (text string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+page, nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(resp.Body)
	return string(b), resp.StatusCode, err
}

// samples are the metrics of a page: name with labels to value.
func samples(page string) map[string]float64 {
	out := map[string]float64{}
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			out[line[:i]] = v
		}
	}
	return out
}
