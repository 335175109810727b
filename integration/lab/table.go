package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"
)

// lostTimeout is how long a packet that a row says is lost is waited for: long enough for two tries of a handshake.
const lostTimeout = 1200 * time.Millisecond

// poolFile is where a pool is edited, on the first node. /run is the node's own.
const poolFile = "/run/pool.yaml"

// Table plays the rows of the table on a lab: it sets what a row says and observes what comes of it.
type Table struct {
	lab      *Lab
	topology Topology // with the pools that the cluster has
	first    string   // the node with calicoctl
	pool     Pool     // whose mode changes
	from     actor
	same     actor // on another node of the same subnet
	other    actor // on a node of another subnet
}

// Ran is a command that was run, for people to repeat it.
type Ran struct {
	Where   string // node or pod; empty is this machine
	Command string // of a shell
	Output  string
}

// Table finds the lab's first pod, one on another node of the same subnet and one in another subnet, and their pool.
func (l *Lab) Table(ctx context.Context) (*Table, error) {
	t := &Table{lab: l}
	var err error
	if t.topology, err = ReadTopology(filepath.Join(l.dir, "topology.yaml")); err != nil {
		return nil, err
	}
	if t.topology.Pools, err = l.Pools(ctx); err != nil {
		return nil, err
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	t.first = st.Nodes[0].Name
	for _, pod := range st.Pods {
		a, pool, ok := t.actor(pod)
		switch {
		case !ok:
		case t.from.Pod == "":
			t.from, t.pool = a, pool
		case pool.Name != t.pool.Name || a.Node == t.from.Node:
		case t.topology.sameSubnet(a.Node, t.from.Node):
			t.same = a
		default:
			t.other = a
		}
	}
	if t.same.Pod == "" || t.other.Pod == "" {
		return nil, problem("the table needs pods of one IPv4 pool on three nodes, two of them in one subnet", "topologies/demo.yaml has them")
	}
	return t, nil
}

// actor describes a pod with an IPv4 address.
func (t *Table) actor(pod PodStatus) (actor, Pool, bool) {
	node, _ := t.topology.node(pod.Node)
	a := actor{Pod: pod.ID, Node: pod.Node, Addr: firstIPv4(pod.Addresses), NodeAddr: firstIPv4(node.Addresses)}
	for _, p := range t.topology.Pools {
		if a.Addr.IsValid() && a.NodeAddr.IsValid() && p.CIDR.Contains(a.Addr) {
			a.Block, _ = a.Addr.Prefix(p.BlockSize)
			return a, p, true
		}
	}
	return a, Pool{}, false
}

func firstIPv4(addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// Enter sets what a row says, where it is not so already, and returns when all nodes have the routes. did is told of each
// command; it may be nil.
func (t *Table) Enter(ctx context.Context, r Row, did func(Ran)) (took time.Duration, err error) {
	if did == nil {
		did = func(Ran) {}
	}
	st, err := t.lab.Status(ctx)
	if err != nil {
		return 0, err
	}
	backend := func() error {
		if st.Backend == r.Backend {
			return nil
		}
		st.Backend = r.Backend
		did(Ran{Command: "lab backend " + string(r.Backend)})
		return t.lab.SetBackend(ctx, r.Backend)
	}
	if r.Backend == BackendBird { // before the pool needs it
		if err := backend(); err != nil {
			return 0, err
		}
	}
	if err := t.switchCheck(ctx, r.Check, did); err != nil {
		return 0, err
	}
	if err := t.setMode(ctx, r.Mode, did); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := t.awaitRoutes(ctx); err != nil {
		return 0, fmt.Errorf("%s: %w", r.Title(), err)
	}
	took = time.Since(began)
	if err := backend(); err != nil { // after the pool stopped needing it
		return 0, err
	}
	return took, t.awaitRoutes(ctx)
}

func (t *Table) awaitRoutes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	return t.lab.AwaitPools(ctx, t.topology)
}

// switchCheck turns the fabric's check of all nodes on or off.
func (t *Table) switchCheck(ctx context.Context, on bool, did func(Ran)) error {
	st, err := t.lab.Fabric(ctx)
	if err != nil {
		return err
	}
	for _, p := range st.Ports {
		if p.SourceDestCheck != on {
			did(Ran{Command: "lab fabric --source-dest-check=" + onOff(on)})
			return t.lab.SetSourceDestCheck(ctx, on)
		}
	}
	return nil
}

// setMode edits the pool as a user does: get, edit, apply.
func (t *Table) setMode(ctx context.Context, m Mode, did func(Ran)) error {
	if t.pool.Mode() == m {
		return nil
	}
	ipip, vxlan := m.Fields()
	for _, cmd := range []string{
		fmt.Sprintf("calicoctl get ippool %s -o yaml > %s", t.pool.Name, poolFile),
		fmt.Sprintf("sed -i 's/ipipMode: .*/ipipMode: %s/; s/vxlanMode: .*/vxlanMode: %s/' %s", ipip, vxlan, poolFile),
		"calicoctl apply -f " + poolFile,
	} {
		if err := t.run(ctx, t.first, cmd, did); err != nil {
			return err
		}
	}
	t.pool = t.pool.WithMode(m)
	for i, p := range t.topology.Pools {
		if p.Name == t.pool.Name {
			t.topology.Pools[i] = t.pool
		}
	}
	return nil
}

func (t *Table) run(ctx context.Context, where, command string, did func(Ran)) error {
	out, err := t.lab.Run(ctx, where, "sh", "-c", command)
	if err == nil {
		did(Ran{Where: where, Command: command, Output: strings.TrimRight(out, "\n")})
	}
	return err
}

// Observe sends packets from the first pod to the two others, and looks at the wire, the drop counters and the first
// node's routes. It waits for AnswerPatience where the row says that they get through.
func (t *Table) Observe(ctx context.Context, r Row) (RowSeen, error) {
	var seen RowSeen
	var err error
	if seen.Table, err = t.lab.Run(ctx, t.from.Node, routeCommand(t.pool.CIDR)...); err != nil {
		return seen, err
	}
	seen.Table = trimLines(seen.Table)
	for _, c := range []struct {
		to  actor
		way *string
	}{{t.same, &seen.SameRoute}, {t.other, &seen.OtherRoute}} {
		if *c.way, err = t.way(ctx, c.to.Block); err != nil {
			return seen, err
		}
	}
	if seen.names, err = t.names(ctx); err != nil {
		return seen, err
	}
	if seen.Same, err = t.cell(ctx, t.same, r.Same); err != nil {
		return seen, err
	}
	if seen.Other, err = t.cell(ctx, t.other, r.Other); err != nil {
		return seen, err
	}
	seen.Sessions, err = t.sessions(ctx)
	return seen, err
}

// way is where the first node's route to a block leads, empty if there is none.
func (t *Table) way(ctx context.Context, block netip.Prefix) (string, error) {
	routes, err := t.lab.Routes(ctx, t.from.Node, block)
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		if r.Dst == block.String() && r.Type == "" {
			return r.way(), nil
		}
	}
	return "", nil
}

// names are what the names in the rows' routes stand for.
func (t *Table) names(ctx context.Context) (map[string]string, error) {
	node, _ := t.topology.node(t.from.Node)
	subnet, prefix, _ := t.topology.subnetOf(t.from.NodeAddr)
	names := map[string]string{
		"same": t.same.NodeAddr.String(), "other": t.other.NodeAddr.String(),
		"gateway": subnet.gatewayFor(prefix).String(), "uplink": node.Interface,
	}
	if t.pool.VXLANMode == "Never" {
		return names, nil
	}
	for name, at := range map[string]string{"same-vtep": t.same.Node, "vtep": t.other.Node} {
		out, err := t.lab.Run(ctx, at, "ip", "-o", "-4", "addr", "show", "dev", "vxlan.calico")
		if err != nil {
			return nil, err
		}
		_, rest, _ := strings.Cut(out, " inet ")
		p, err := netip.ParsePrefix(strings.SplitN(rest, " ", 2)[0])
		if err != nil {
			return nil, fmt.Errorf("find the address of vxlan.calico on %s: %w", at, err)
		}
		names[name] = p.Addr().String()
	}
	return names, nil
}

// cell sends to one pod, between two looks at the drop counters.
func (t *Table) cell(ctx context.Context, to actor, want Fate) (CellSeen, error) {
	timeout := AnswerPatience
	if want == Refused || want == Unroutable {
		timeout = lostTimeout
	}
	before, err := t.lab.Fabric(ctx)
	if err != nil {
		return CellSeen{}, err
	}
	probe, err := t.lab.Probe(ctx, ProbeRequest{From: t.from.Pod, To: to.Pod, Kind: ProbeTCP, Timeout: timeout})
	if err != nil {
		return CellSeen{}, err
	}
	after, err := t.lab.Fabric(ctx)
	c := CellSeen{From: t.from, To: to, Probe: probe, NoRoute: after.NoRoute - before.NoRoute}
	for i, p := range after.Ports {
		if p.Node == t.from.Node {
			c.Refused = p.RefusedFrom - before.Ports[i].RefusedFrom
		}
	}
	return c, err
}

// sessions counts the established BGP connections in the nodes' kernels.
func (t *Table) sessions(ctx context.Context) (n int, err error) {
	for _, node := range t.topology.Nodes {
		out, runErr := t.lab.Run(ctx, node.Name, "ss", "-Htn", "state", "established", "( sport = :179 or dport = :179 )")
		err = errors.Join(err, runErr)
		n += strings.Count(out, "\n")
	}
	return n, err
}

// trimLines removes what iproute2 leaves at the ends of lines.
func trimLines(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}
