package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/muslin-net/muslin/integration/lab/topologies"
)

// convergeDeadline is how long the demo waits for a state that should come in a second or two.
const convergeDeadline = time.Minute

// DemoOptions say how to show the demo.
type DemoOptions struct {
	Up   Options
	Keep bool // leave the lab up
	Out  io.Writer
	// Doc gets the walk-through as a page of Markdown; it may be nil.
	Doc io.Writer
}

// DemoTopology is the cluster of the demo.
func DemoTopology() (Topology, error) { return ParseTopology("topologies/demo.yaml", topologies.Demo) }

// DualStackTopology is the cluster of the demo with IPv4 and IPv6, and a VXLAN pool of each.
func DualStackTopology() (Topology, error) {
	return ParseTopology("topologies/dualstack.yaml", topologies.DualStack)
}

// ToRTopology is a cluster in two racks with a client outside, for a BGP daemon on the router that joins them.
func ToRTopology() (Topology, error) { return ParseTopology("topologies/tor.yaml", topologies.ToR) }

// PrintProgress returns a function that prints each step with its time when it is done.
func PrintProgress(w io.Writer) func(Progress) {
	return func(p Progress) {
		if p.Done {
			fmt.Fprintf(w, "  %-32s %6.2f s\n", p.Step, p.Took.Seconds())
		}
	}
}

// Demo brings a cluster up, shows its BGP sessions, and walks through the table of modes: for each row it sets the mode,
// shows the routes and the packets on the wire, and checks every cell. A cell that is not as expected is an error that names
// it. The lab is removed at the end, however it comes, unless it is to be kept and all went well.
func Demo(ctx context.Context, o DemoOptions) (err error) {
	d := demo{DemoOptions: o, began: time.Now(), story: &story{out: o.Out}}
	if o.Doc != nil {
		d.story.doc = &strings.Builder{}
	}
	d.Up.Attached = true
	d.Up.Progress = PrintProgress(o.Out)
	defer func() {
		if d.lab == nil {
			return
		}
		if err == nil && o.Keep {
			err = d.keep()
			return
		}
		err = errors.Join(err, d.lab.Down(context.WithoutCancel(ctx)))
	}()
	for _, show := range []func(context.Context) error{d.up, d.status, d.walk} {
		if err := show(ctx); err != nil {
			return err
		}
	}
	d.title("All cells shown are as expected; %.1f s in all", time.Since(d.began).Seconds())
	if o.Doc != nil {
		_, err = io.WriteString(o.Doc, d.story.page())
	}
	return err
}

type demo struct {
	DemoOptions
	story *story
	lab   *Lab
	began time.Time
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "  "+format+"\n", args...) }

func (d *demo) title(format string, args ...any) {
	fmt.Fprintf(d.Out, "\n== "+format+"\n", args...)
}

// up brings the cluster up. Without root the kernel may have no IP-in-IP for it, which the default pool asks for; then the
// pool is made a direct one before there are pods.
func (d *demo) up(ctx context.Context) (err error) {
	t := d.Up.Topology
	d.title("Bringing up a cluster of %d nodes and %d pods", len(t.Nodes), len(t.Pods))
	if privileged() {
		if d.lab, err = Up(ctx, d.Up); err != nil {
			return err
		}
		d.say("up after %.1f s", time.Since(d.began).Seconds())
		return nil
	}
	d.Up.Topology.Pods = nil
	if d.lab, err = Up(ctx, d.Up); err != nil {
		return err
	}
	if d.story.lacks, err = d.lab.lacking(ctx); err != nil {
		return err
	}
	if d.story.lacks != "" {
		pools, err := d.lab.Pools(ctx)
		if err != nil {
			return err
		}
		for _, p := range pools {
			if mode := p.Mode(); mode == ModeIPIP || mode == ModeIPIPCrossSubnet {
				d.say("%s: pool %s is made a direct one", d.story.lacks, p.Name)
				if err := d.lab.SetMode(ctx, p.Name, ModeDirect); err != nil {
					return err
				}
			}
		}
	}
	for _, p := range t.Pods {
		if _, err := d.lab.PodAdd(ctx, p); err != nil {
			return err
		}
	}
	d.say("up after %.1f s", time.Since(d.began).Seconds())
	return nil
}

// lacking says why IP-in-IP cannot be shown, if so: as root felix finds a way on every kernel, in a user namespace it needs
// the kernel's own device, since BPF is not allowed there.
func (l *Lab) lacking(ctx context.Context) (string, error) {
	st, err := l.Status(ctx)
	if err != nil || !st.Rootless {
		return "", err
	}
	code, err := l.Exec(ctx, routerName, Command{Args: []string{"sh", "-c", "ip link add probe type ipip remote 127.0.0.2 && ip link del probe"}})
	if err != nil || code == 0 {
		return "", err
	}
	return "IP-in-IP needs root on this kernel, which has no ipip device", nil
}

// status shows the nodes, the pool that they made, and the BGP sessions that the first node has, once all are up.
func (d *demo) status(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	first := d.Up.Topology.Nodes[0].Name
	d.story.intro(d.Up.Topology)
	d.story.title("The cluster as %s sees it", first)
	d.story.text("Each node has a BGP session with each other one: the node-to-node mesh. Nobody made the pool: the first node to " +
		"start did, with everything at its default.")
	out, err := d.awaitStatus(ctx, first, func(out string) bool { return strings.Count(out, "Established") >= d.peersOf(first) })
	if err != nil {
		return fmt.Errorf("not all BGP sessions of %s are established: %w", first, err)
	}
	d.story.ran(Ran{Where: first, Command: nodeStatus, Output: out})
	for _, command := range []string{"calicoctl get ippools -o wide", "calicoctl get workloadendpoints"} {
		out, err := d.lab.Run(ctx, first, "sh", "-c", command)
		if err != nil {
			return err
		}
		d.story.ran(Ran{Where: first, Command: command, Output: trimLines(out)})
	}
	return nil
}

const nodeStatus = "calicoctl node status"

// awaitStatus asks for the BGP sessions of a node until they are as wanted.
func (d *demo) awaitStatus(ctx context.Context, node string, ok func(string) bool) (string, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var seen string
	for {
		out, err := d.lab.Run(ctx, node, "sh", "-c", nodeStatus)
		switch {
		case err == nil && ok(out):
			return strings.TrimSpace(out), nil
		case err == nil:
			seen = out
		case ctx.Err() == nil:
			seen = err.Error()
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w; seen last:\n%s", context.Cause(ctx), seen)
		case <-tick.C:
		}
	}
}

// peersOf counts the sessions a node has in a full mesh: one for each other node and family they share.
func (d *demo) peersOf(name string) int {
	self, _ := d.Up.Topology.node(name)
	n := 0
	for _, other := range d.Up.Topology.Nodes {
		if other.Name == name || !other.runs(ProcessBird) {
			continue
		}
		for _, a := range self.Addresses {
			for _, b := range other.Addresses {
				if a.Is4() == b.Is4() {
					n++
				}
			}
		}
	}
	return n
}

// keep leaves the lab up and tells how to look around.
func (d *demo) keep() error {
	if err := d.lab.Detach(); err != nil {
		return err
	}
	lab := "bin/lab --name " + d.lab.Name()
	d.title("The lab stays up (KEEP=1). Look around:")
	for _, line := range []string{
		lab + " status",
		lab + " exec master -- calicoctl node status",
		lab + " exec master -- calicoctl get workloadendpoints -o wide",
		lab + " exec worker-1 -- ip route",
		lab + " fabric --source-dest-check=on",
		lab + " exec pod-1 -- bash",
		lab + " probe pod-1 pod-3",
		lab + " capture worker-1 ens5",
		lab + " pod add pod-4 worker-2",
		lab + " kill worker-1 felix; " + lab + " start worker-1 felix",
		lab + " down",
	} {
		d.say("%s", line)
	}
	d.say("logs: %s/nodes/NODE/var-log-calico/", d.lab.StateDir())
	return nil
}
