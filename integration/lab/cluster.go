package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/integration/vm"
)

// How long a step of the cluster's start may take before the lab is given up, and how often its state is looked at.
const pollInterval = 50 * time.Millisecond

// stepDeadline is longer where the processor is emulated.
var stepDeadline = func() time.Duration {
	if vm.Inside() {
		return 8 * time.Minute
	}
	return 2 * time.Minute
}()

// startControlPlane starts etcd and then typha, and waits until they do their work.
func (s *supervisor) startControlPlane(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	for _, process := range []string{ProcessEtcd, ProcessTypha} {
		err := s.each(ctx, func(ctx context.Context, m *machine) error {
			if !m.node.runs(process) {
				return nil
			}
			p, err := s.startProcess(m.node.Name, process)
			if err != nil {
				return err
			}
			return s.poll(ctx, p, func() error {
				if process == ProcessEtcd {
					return askHTTP(ctx, m.space, s.topology.etcdAddr(), "/health")
				}
				return askHTTP(ctx, m.space, healthAddr(process), "/readiness")
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startNodes runs the start-up of all nodes at once, each to its success.
func (s *supervisor) startNodes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	return s.each(ctx, func(ctx context.Context, m *machine) error {
		if !m.node.runs(ProcessStartup) {
			return nil
		}
		p, err := s.startProcess(m.node.Name, ProcessStartup)
		if err != nil {
			return err
		}
		err = p.await(ctx, func(st ProcessStatus) bool { return st.State == StateDone || st.hopeless() })
		if err != nil || p.snapshot().State != StateDone {
			return s.processProblem(p, err)
		}
		return nil
	})
}

// startAgents starts what each node runs all the time, and waits until it says that it is ready.
func (s *supervisor) startAgents(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	return s.each(ctx, func(ctx context.Context, m *machine) error {
		var started []*process
		for _, name := range []string{ProcessControllers, ProcessBird, ProcessFelix, ProcessConfd, ProcessMonitor} {
			if !m.node.runs(name) || !s.currentBackend().wants(name) {
				continue
			}
			p, err := s.startProcess(m.node.Name, name)
			if err != nil {
				return err
			}
			started = append(started, p)
		}
		for _, p := range started {
			if err := s.awaitAgent(ctx, m, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// awaitAgent waits until a process runs and, on a node that is part of a cluster, until it is ready.
func (s *supervisor) awaitAgent(ctx context.Context, m *machine, p *process) error {
	err := p.await(ctx, func(st ProcessStatus) bool { return st.State == StateRunning || st.hopeless() })
	if err != nil || p.snapshot().hopeless() {
		return s.processProblem(p, err)
	}
	if _, tells := healthPorts[p.cmd.name]; !tells || !m.node.runs(ProcessStartup) {
		return nil
	}
	return s.poll(ctx, p, func() error { return askHTTP(ctx, m.space, healthAddr(p.cmd.name), "/readiness") })
}

// createPools stores the topology's pools as an operator would.
func (s *supervisor) createPools(ctx context.Context) error {
	var docs bytes.Buffer
	for _, p := range s.topology.Pools {
		doc, err := yaml.Marshal(map[string]any{
			"apiVersion": "projectcalico.org/v3",
			"kind":       "IPPool",
			"metadata":   map[string]any{"name": p.Name},
			"spec": map[string]any{
				"cidr": p.CIDR.String(), "blockSize": p.BlockSize, "ipipMode": p.IPIPMode, "vxlanMode": p.VXLANMode,
				"natOutgoing": *p.NATOutgoing, "nodeSelector": p.NodeSelector,
			},
		})
		if err != nil {
			return err
		}
		docs.WriteString("---\n")
		docs.Write(doc)
	}
	first := s.machines[s.topology.Nodes[0].Name]
	path := filepath.Join(first.dir, "etc-calico", "pools.yaml")
	if err := os.WriteFile(path, docs.Bytes(), 0o644); err != nil {
		return err
	}
	_, err := s.run(ctx, first, "calicoctl", "apply", "-f", "/etc/calico/pools.yaml")
	return err
}

// labelNodes puts the topology's labels on the registered nodes.
func (s *supervisor) labelNodes(ctx context.Context) error {
	first := s.machines[s.topology.Nodes[0].Name]
	for _, n := range s.topology.Nodes {
		labels := n.allLabels()
		keys := make([]string, 0, len(labels))
		for k := range labels {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			if _, err := s.run(ctx, first, "calicoctl", "label", "nodes", n.Name, k+"="+labels[k], "--overwrite"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *supervisor) startProcess(node, name string) (*process, error) {
	p, err := s.findProcess(node, name)
	if err != nil {
		return nil, err
	}
	p.start()
	return p, nil
}

// poll asks again and again until ok returns no error or ctx ends; the error then tells of the process asked.
func (s *supervisor) poll(ctx context.Context, p *process, ok func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if p.snapshot().hopeless() {
			return s.processProblem(p, nil)
		}
		select {
		case <-ctx.Done():
			return s.processProblem(p, err)
		case <-tick.C:
		}
	}
}

// processProblem explains why a process is not what it should be, with the last line it said. err is what was seen of it
// from outside, if anything.
func (s *supervisor) processProblem(p *process, err error) error {
	st := p.snapshot()
	what := fmt.Sprintf("%s on %s", p.cmd.name, p.node)
	switch {
	case st.hopeless():
		what += fmt.Sprintf(" ended each of the %d times it was started (%s)", st.Starts, st.LastExit)
	case err != nil:
		what += fmt.Sprintf(" is %s but not ready: %v", st.State, err)
	}
	if line := lastLine(p.log); line != "" {
		what += "; its log ends with: " + line
	}
	return errors.New(what)
}

// run runs a program on a machine and returns its output. A failing program's last line is in the error.
func (s *supervisor) run(ctx context.Context, m *machine, args ...string) (string, error) {
	var out bytes.Buffer
	var cmd *exec.Cmd
	err := m.space.do(func() error {
		cmd = exec.CommandContext(ctx, filepath.Join(s.config.BinDir, args[0]), args[1:]...)
		cmd.Env = s.shellEnv(m.node)
		cmd.Dir = "/"
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd.Start()
	})
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w: %s", strings.Join(args, " "), m.node.Name, err, lastOf(out.String()))
	}
	return out.String(), nil
}

// askHTTP asks a server from inside a space, and returns an error with what it says unless it is well.
func askHTTP(ctx context.Context, from *space, at netip.AddrPort, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			f, err := openSocket(from, [3]int{familyOf(at.Addr()), unix.SOCK_STREAM, 0})
			if err != nil {
				return nil, err
			}
			deadline, _ := ctx.Deadline()
			return connectSocket(f, at, deadline)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode >= 300 {
		err = errors.New(strings.Join(strings.Fields(string(said)), " "))
	}
	return err
}

func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return lastOf(string(data))
}

func lastOf(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	line := lines[len(lines)-1]
	if len(line) > 400 {
		line = line[:400] + "…"
	}
	return line
}
