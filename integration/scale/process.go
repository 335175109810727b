package scale

import (
	"bufio"
	"bytes"
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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/internal/loopback"
)

// process is a child process. What it says goes to a file.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
}

// stopPatience is how long a process may take to end once it was asked to.
const stopPatience = 10 * time.Second

// launch starts a child process that logs into dir. prepare may change how.
func launch(dir, name, path string, args []string, prepare func(*exec.Cmd)) (*process, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(path, args...), log: log, exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	if prepare != nil {
		prepare(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended counts only while it should not have, see ended
		close(p.exited)
	}()
	return p, nil
}

// stop ends the process.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.exited:
	case <-time.After(stopPatience):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	p.log.Close()
}

// ended is the error of a process that ended by itself: the last of what it said.
func (p *process) ended() error {
	text, _ := os.ReadFile(p.log.Name())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("%s ended: %s", p.name, lines[len(lines)-1])
}

// until waits until something holds, asking often, and fails with the process.
func (p *process) until(ctx context.Context, what string, holds func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		err := holds(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return p.ended()
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting until %s: %w", p.name, what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Usage is what a process has used.
type Usage struct {
	CPU  time.Duration
	RSS  int // bytes now
	Peak int // the most so far
}

// usage reads what a process has used.
func usage(pid int) (u Usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // none of ours has a bracket in its name
	fields := strings.Fields(string(rest))
	const user, system = 14 - 3, 15 - 3 // of proc_pid_stat(5), from 1, and the rest begins with the third
	if len(fields) <= system {
		return u, fmt.Errorf("unexpected state %q of process %d", stat, pid)
	}
	for _, i := range []int{user, system} {
		ticks, err := strconv.Atoi(fields[i])
		if err != nil {
			return u, err
		}
		u.CPU += time.Duration(ticks) * (time.Second / 100) // USER_HZ is 100 on all of Go's platforms
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "VmRSS":
			u.RSS = kib << 10
		case "VmHWM":
			u.Peak = kib << 10
		}
	}
	return u, err
}

func (p *process) usage() (Usage, error) { return usage(p.cmd.Process.Pid) }

// now is the time since boot, which all processes of a machine have in common and no clock change touches.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}

// etcd is Debian's.
const etcdBinary = "/usr/bin/etcd"

// startEtcd starts an etcd with its data in dir, and returns the URL of its clients.
func startEtcd(ctx context.Context, dir string) (*process, string, error) {
	client, peer := "http://"+loopback.Address(), "http://"+loopback.Address()
	p, err := launch(dir, "etcd", etcdBinary, []string{
		"--name", "scale", "--data-dir", filepath.Join(dir, "etcd"), "--log-level", "warn", "--logger", "zap",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "scale=" + peer, "--quota-backend-bytes", strconv.Itoa(8 << 30),
	}, nil)
	if err != nil {
		return nil, "", fmt.Errorf("%w; apt-get install etcd-server brings it", err)
	}
	err = p.until(ctx, "it answers", func(ctx context.Context) error { return answers(ctx, client+"/health") })
	if err != nil {
		p.stop()
	}
	return p, client, err
}

// answers asks over HTTP; anything but 200 is an error.
func answers(ctx context.Context, url string) error {
	_, err := fetch(ctx, url)
	return err
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// typha is a running typha.
type typha struct {
	*process
	address string
	metrics string
}

// startTypha starts the binary at path over an etcd and waits until it serves views. pki holds certificate and key. A port, if not
// 0, is that of profiles.
func startTypha(ctx context.Context, dir, path, etcdURL, pki string, profiles int) (*typha, error) {
	t := &typha{address: loopback.Address()}
	health := loopback.Address()
	t.metrics = "http://" + health + "/metrics"
	args := []string{
		"--listen", t.address, "--datastore", "etcdv3", "--datastore-endpoints", etcdURL, "--health", health, "--log-level", "warn",
		"--ca", filepath.Join(pki, "ca.crt"), "--cert", filepath.Join(pki, "tls.crt"), "--key", filepath.Join(pki, "tls.key"),
	}
	if profiles != 0 {
		args = append(args, "--pprof-port", strconv.Itoa(profiles))
	}
	var err error
	if t.process, err = launch(dir, "typha", path, args, nil); err != nil {
		return nil, err
	}
	err = t.until(ctx, "it is ready", func(ctx context.Context) error { return answers(ctx, "http://"+health+"/readiness") })
	if err != nil {
		t.stop()
	}
	return t, err
}

// metric is a counter or gauge of typha's, summed over its labels.
func (t *typha) metric(ctx context.Context, name string) (sum float64, err error) {
	body, err := fetch(ctx, t.metrics)
	if err != nil {
		return 0, err
	}
	found := false
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		line := lines.Text()
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				return 0, err
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		err = errors.New("typha has no metric " + name)
	}
	return sum, err
}
