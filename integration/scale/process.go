package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/integration/process"
	"github.com/muslin-net/muslin/internal/loopback"
)

// launch starts a process that works, and logs, in dir.
func launch(dir string, p *process.Process) (*process.Process, error) {
	p.Dir, p.Log = dir, filepath.Join(dir, p.Name+".log")
	return p, p.Start()
}

// until waits until something holds, asking often, and fails with the process.
func until(ctx context.Context, p *process.Process, what string, holds func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		err := holds(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.Ended():
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting until %s: %w", p.Name, what, err)
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

// now is the time since boot, which all processes of a machine have in common and no clock change touches.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}

// startEtcd starts an etcd with its data in dir, and returns the URL of its clients.
func startEtcd(ctx context.Context, dir string) (*process.Process, string, error) {
	p, address, err := process.Etcd(dir, "--quota-backend-bytes", strconv.Itoa(8<<30))
	if err != nil {
		return nil, "", err
	}
	url := "http://" + address
	if p, err = launch(dir, p); err != nil {
		return nil, "", err
	}
	return p, url, until(ctx, p, "it answers", func(ctx context.Context) error { return answers(ctx, url+"/health") })
}

// answers asks over HTTP; anything but 200 is an error.
func answers(ctx context.Context, url string) error {
	_, err := fetch(ctx, url)
	return err
}

func fetch(ctx context.Context, url string) (string, error) {
	text, code, err := process.Get(ctx, url)
	if err == nil && code != 200 {
		err = fmt.Errorf("status %d: %s", code, strings.TrimSpace(text))
	}
	return text, err
}

// typha is a running typha.
type typha struct {
	*process.Process
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
	if t.Process, err = launch(dir, &process.Process{Name: "typha", Path: path, Args: args}); err != nil {
		return nil, err
	}
	return t, until(ctx, t.Process, "it is ready", func(ctx context.Context) error { return answers(ctx, "http://"+health+"/readiness") })
}

// metric is a counter or gauge of typha's, summed over its labels.
func (t *typha) metric(ctx context.Context, name string) (sum float64, err error) {
	page, err := fetch(ctx, t.metrics)
	if err != nil {
		return 0, err
	}
	found := false
	for sample, v := range process.Samples(page) {
		if rest, ok := strings.CutPrefix(sample, name); ok && (rest == "" || rest[0] == '{') {
			sum, found = sum+v, true
		}
	}
	if !found {
		err = errors.New("typha has no metric " + name)
	}
	return sum, err
}
