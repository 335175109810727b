package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// FabricStatus is what the fabric does with the frames of each node, and how much it lost.
type FabricStatus struct {
	Ports []FabricPort `json:"ports"`
	// NoRoute counts the packets of both families that the router had no route for, since the lab is up: it knows the
	// subnets' addresses, and no pod's.
	NoRoute uint64 `json:"noRoute"`
}

// FabricPort is the fabric's side of a node. The counters are frames since the lab is up.
type FabricPort struct {
	Node            string `json:"node"`
	SourceDestCheck bool   `json:"sourceDestCheck"`
	RefusedFrom     uint64 `json:"refusedFrom"` // from the node, with a source that is not its own
	RefusedTo       uint64 `json:"refusedTo"`   // to the node, with a destination that is not its own
}

// Fabric returns what the fabric does and has refused.
func (l *Lab) Fabric(ctx context.Context) (FabricStatus, error) {
	var st FabricStatus
	_, err := l.call(ctx, request{Verb: verbFabric}, &st)
	return st, err
}

// SetSourceDestCheck turns the fabric's source/destination check on or off for some nodes, or for all if none is named. It
// holds for each frame after it returns.
func (l *Lab) SetSourceDestCheck(ctx context.Context, on bool, nodes ...string) error {
	_, err := l.call(ctx, request{Verb: verbCheck, On: on, Nodes: nodes}, nil)
	return err
}

// SetBackend does to all nodes what another calico_backend in a DaemonSet does: their processes get the new value in the
// environment, felix is started anew, and bird and confd are stopped for vxlan, or started for bird. It returns when
// those that run are ready.
func (l *Lab) SetBackend(ctx context.Context, b Backend) error {
	_, err := l.call(ctx, request{Verb: verbBackend, Backend: b}, nil)
	return err
}

// Print writes the fabric's state as a table.
func (s FabricStatus) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSOURCE/DESTINATION CHECK\tREFUSED FROM IT\tREFUSED TO IT")
	for _, p := range s.Ports {
		check := "off"
		if p.SourceDestCheck {
			check = "on"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\n", p.Node, check, p.RefusedFrom, p.RefusedTo)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nThe router knows the nodes' subnets only; it had no route for %d packets.\n", s.NoRoute)
	return err
}

func (s *supervisor) fabricStatus() (FabricStatus, error) {
	var st FabricStatus
	for _, n := range s.topology.Nodes {
		port := s.machines[n.Name].port
		from, to, err := s.fabric.cloud.refused(port)
		if err != nil {
			return st, err
		}
		st.Ports = append(st.Ports, FabricPort{Node: n.Name, SourceDestCheck: s.fabric.cloud.checks(port), RefusedFrom: from, RefusedTo: to})
	}
	err := s.router.do(func() (err error) {
		st.NoRoute, err = packetsWithoutRoute("/proc/thread-self/net")
		return err
	})
	return st, err
}

// checkSourceDest turns the check on or off for nodes, or for all if none is named; for none if one is unknown.
func (s *supervisor) checkSourceDest(on bool, nodes []string) error {
	if len(nodes) == 0 {
		nodes = s.topology.nodeNames()
	}
	for _, name := range nodes {
		if _, ok := s.machines[name]; !ok {
			return problem(fmt.Sprintf("there is no node %q in lab %s", name, s.config.Name), "nodes are "+strings.Join(s.topology.nodeNames(), ", "))
		}
	}
	for _, name := range nodes {
		m := s.machines[name]
		if err := s.fabric.cloud.check(m.port, m.node.Addresses, on); err != nil {
			return err
		}
	}
	return nil
}

// packetsWithoutRoute reads how many packets a network had no route for, out of the kernel's counters of both families.
func packetsWithoutRoute(dir string) (uint64, error) {
	netstat, err := os.ReadFile(dir + "/netstat")
	if err != nil {
		return 0, err
	}
	snmp6, err := os.ReadFile(dir + "/snmp6")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	v4, err := counterIn(netstat, "IpExt", "InNoRoutes")
	if err != nil {
		return 0, err
	}
	var v6 uint64
	for line := range bytes.Lines(snmp6) {
		if f := strings.Fields(string(line)); len(f) == 2 && f[0] == "Ip6InNoRoutes" {
			if v6, err = strconv.ParseUint(f[1], 10, 64); err != nil {
				return 0, err
			}
		}
	}
	return v4 + v6, nil
}

// counterIn finds a counter in /proc/net/netstat, where a line of names goes before a line of values.
func counterIn(netstat []byte, group, name string) (uint64, error) {
	var names []string
	for line := range bytes.Lines(netstat) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != group+":" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		if i := slices.Index(names, name); i > 0 && i < len(f) {
			return strconv.ParseUint(f[i], 10, 64)
		}
	}
	return 0, fmt.Errorf("the kernel counts no %s.%s", group, name)
}

func (s *supervisor) currentBackend() Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backend
}

// setBackend is SetBackend.
func (s *supervisor) setBackend(ctx context.Context, b Backend) error {
	if b != BackendBird && b != BackendVXLAN {
		return problem(fmt.Sprintf("backend %q is unknown", b), "use bird or vxlan")
	}
	s.switching.Lock()
	defer s.switching.Unlock()
	s.mu.Lock()
	changed := s.backend != b
	s.backend = b
	s.mu.Unlock()
	if !changed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepDeadline)
	defer cancel()
	err := s.each(ctx, func(ctx context.Context, m *machine) error {
		for _, name := range []string{ProcessConfd, ProcessBird, ProcessFelix} {
			if !m.node.runs(name) {
				continue
			}
			p, err := s.findProcess(m.node.Name, name)
			if err != nil {
				return err
			}
			if err := p.stop(ctx); err != nil {
				return err
			}
		}
		for _, p := range s.processes {
			if p.node == m.node.Name {
				p.setEnv(s.nodeEnv(m.node))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.startAgents(ctx)
}
