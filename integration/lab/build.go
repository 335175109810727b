package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/muslin-net/muslin/integration/lab/pki"
)

// controlSocket is where the supervisor listens.
func controlSocket(stateDir string) string { return filepath.Join(stateDir, "control.sock") }

// build makes the lab that the state directory describes. A failure is returned with the step it happened in; what was
// made until then goes with the supervisor's process namespace.
func (s *supervisor) build(ctx context.Context, stateDir string, progress func(Progress)) error {
	var err error
	if s.config, err = readConfig(stateDir); err != nil {
		return err
	}
	if s.topology, err = ReadTopology(filepath.Join(stateDir, "topology.yaml")); err != nil {
		return err
	}
	s.backend = s.topology.Backend
	steps := []struct {
		name string
		fn   func(context.Context) error
		skip bool
	}{
		{name: "certificates and directories", fn: s.buildFiles},
		{name: "fabric and router", fn: s.buildFabric},
		{name: "nodes", fn: s.buildMachines},
		{name: "control plane", fn: s.startControlPlane, skip: !s.runsAny(ProcessTypha, ProcessEtcd)},
		{name: "IP pools", fn: s.createPools, skip: len(s.topology.Pools) == 0 || !s.runsAny(ProcessTypha)},
		{name: "node start-up", fn: s.startNodes, skip: !s.runsAny(ProcessStartup)},
		{name: "bird, felix and confd", fn: s.startAgents, skip: !s.runsAny(ProcessBird, ProcessFelix, ProcessConfd)},
		{name: "node labels", fn: s.labelNodes, skip: !s.hasLabels()},
		{name: "pods", fn: s.buildPods, skip: len(s.topology.Pods) == 0},
	}
	for _, st := range steps {
		if st.skip {
			continue
		}
		if err := timed(progress, st.name, func() error { return st.fn(ctx) }); err != nil {
			return err
		}
	}
	if err := s.recordNamespaces(); err != nil {
		return err
	}
	return s.listen()
}

// recordNamespaces writes down which network namespace is whose, so that Down can name programs from outside in them.
func (s *supervisor) recordNamespaces() error {
	spaces := map[string]string{}
	all := []*space{s.fabric.space, s.router}
	for _, m := range s.machines {
		all = append(all, m.space)
	}
	for _, sp := range all {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", sp.net.Fd()))
		if err != nil {
			return err
		}
		spaces[link] = sp.name
	}
	data, err := json.Marshal(spaces)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.config.StateDir, "namespaces.json"), data, 0o644)
}

func (s *supervisor) listen() error {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: controlSocket(s.config.StateDir), Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	go s.serve(l)
	return nil
}

func (s *supervisor) buildFiles(context.Context) error {
	now := time.Now()
	ca, err := pki.NewCA("muslin lab "+s.config.Name, now)
	if err != nil {
		return err
	}
	hosts := hostsFile(s.topology)
	for _, n := range s.topology.Nodes {
		if err := prepareNode(s.config.StateDir, n, hosts); err != nil {
			return err
		}
		if n.Machine != nil {
			continue
		}
		dir := nodeDir(s.config.StateDir, n.Name)
		conf := filepath.Join(dir, "etc-cni/net.d", conflistName)
		if err := os.WriteFile(conf, []byte(conflist(n.Name, s.topology.Pools)), 0o644); err != nil {
			return err
		}
		for _, plugin := range []string{"calico", "calico-ipam"} {
			if err := os.Symlink(filepath.Join(s.config.BinDir, plugin), filepath.Join(dir, "opt-cni/bin", plugin)); err != nil {
				return err
			}
		}
	}
	return writeCertificates(s.config.StateDir, s.topology, ca, func(r pki.Role) (pki.Pair, error) { return ca.Issue(r, now) })
}

func (s *supervisor) buildFabric(context.Context) error {
	var err error
	if s.fabric, err = newFabric(s.topology.Fabric.MTU); err != nil {
		return err
	}
	for i := range s.topology.Subnets {
		if err := s.fabric.addSubnet(i); err != nil {
			return err
		}
	}
	return s.buildRouter()
}

func (s *supervisor) buildMachines(context.Context) error {
	for i, n := range s.topology.Nodes {
		m, err := s.buildMachine(i)
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		s.machines[n.Name] = m
		for _, name := range n.Processes {
			s.supervise(m, s.commandOf(n, name))
		}
		for _, p := range n.programs() {
			s.supervise(m, command{name: p.Name, path: p.Args[0], args: p.Args[1:], env: append(s.baseEnv(), p.Env...)})
		}
	}
	return nil
}

// supervise adds a process of a machine, which waits until it is started.
func (s *supervisor) supervise(m *machine, c command) {
	p := newProcess(m.node.Name, c, m.space, logPath(s.config.StateDir, m.node.Name, c.name))
	s.processes = append(s.processes, p)
	s.running.Go(func() { p.run(s.ctx) })
}

func (s *supervisor) buildPods(ctx context.Context) error {
	for _, p := range s.topology.Pods {
		if _, err := s.addPod(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) runsAny(processes ...string) bool {
	for _, n := range s.topology.Nodes {
		if slices.ContainsFunc(processes, n.runs) {
			return true
		}
	}
	return false
}

func (s *supervisor) hasLabels() bool {
	for _, n := range s.topology.Nodes {
		if len(n.allLabels()) > 0 && n.runs(ProcessStartup) {
			return true
		}
	}
	return false
}
