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
const convergeDeadline = 20 * time.Second

// DemoOptions say how to show the demo.
type DemoOptions struct {
	Up   Options
	Keep bool // leave the lab up
	Out  io.Writer
}

// DemoTopology is the cluster of the demo.
func DemoTopology() (Topology, error) { return ParseTopology("topologies/demo.yaml", topologies.Demo) }

// PrintProgress returns a function that prints each step with its time when it is done.
func PrintProgress(w io.Writer) func(Progress) {
	return func(p Progress) {
		if p.Done {
			fmt.Fprintf(w, "  %-32s %6.2f s\n", p.Step, p.Took.Seconds())
		}
	}
}

// Demo brings a cluster up and prints how its nodes see each other and who reaches whom, with plain routing and with
// VXLAN. A cell of a matrix that is not as expected is an error. The lab is removed at the end, however it comes, unless
// it is to be kept and all went well.
func Demo(ctx context.Context, o DemoOptions) (err error) {
	d := demo{DemoOptions: o, began: time.Now()}
	o.Up.Attached = true
	o.Up.Progress = PrintProgress(o.Out)
	d.title("Bringing up a cluster of %d nodes and %d pods", len(o.Up.Topology.Nodes), len(o.Up.Topology.Pods))
	if d.lab, err = Up(ctx, o.Up); err != nil {
		return err
	}
	d.say("up after %.1f s", time.Since(d.began).Seconds())
	defer func() {
		if err == nil && o.Keep {
			err = d.keep()
			return
		}
		err = errors.Join(err, d.lab.Down(context.WithoutCancel(ctx)))
	}()
	for _, show := range []func(context.Context) error{d.sessions, d.direct, d.vxlan} {
		if err := show(ctx); err != nil {
			return err
		}
	}
	d.title("All cells are as expected; %.1f s in all", time.Since(d.began).Seconds())
	return nil
}

type demo struct {
	DemoOptions
	lab   *Lab
	began time.Time
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "  "+format+"\n", args...) }

func (d *demo) title(format string, args ...any) {
	fmt.Fprintf(d.Out, "\n== "+format+"\n", args...)
}

// sessions shows the BGP sessions that the first node has, once all are up.
func (d *demo) sessions(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	first := d.Up.Topology.Nodes[0].Name
	d.title("BGP sessions as seen from %s: calicoctl node status", first)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var seen string
	for {
		out, err := d.lab.Run(ctx, first, "calicoctl", "node", "status")
		switch {
		case err == nil && strings.Count(out, "Established") >= d.peersOf(first):
			fmt.Fprintln(d.Out, strings.TrimSpace(out))
			return nil
		case err == nil:
			seen = out
		case ctx.Err() == nil:
			seen = err.Error()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not all BGP sessions of %s are established: %w; seen last:\n%s", first, context.Cause(ctx), seen)
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

func (d *demo) direct(ctx context.Context) error {
	return d.show(ctx, ModeDirect, "Direct mode: pods of one subnet reach each other without encapsulation")
}

// vxlan changes the pools of the living cluster and shows the same again.
func (d *demo) vxlan(ctx context.Context) error {
	for _, p := range d.Up.Topology.Pools {
		d.title("Switching the pool to VXLAN: %s", strings.Join(patchCommand(p, "Always"), " "))
	}
	if err := d.lab.patchPools(ctx, d.Up.Topology, "Always"); err != nil {
		return err
	}
	return d.show(ctx, ModeVXLAN, "VXLAN mode: all pods reach each other, across the router too")
}

func patchCommand(p Pool, vxlanMode string) []string {
	return []string{"calicoctl", "patch", "ippool", p.Name, "--patch", fmt.Sprintf(`{"spec":{"vxlanMode":%q}}`, vxlanMode)}
}

// patchPools changes the mode of all pools as a user does.
func (l *Lab) patchPools(ctx context.Context, t Topology, vxlanMode string) error {
	for _, p := range t.Pools {
		if _, err := l.Run(ctx, t.Nodes[0].Name, patchCommand(p, vxlanMode)...); err != nil {
			return err
		}
	}
	return nil
}

// show waits for the routes of a mode, prints them and the matrix, and judges it.
func (d *demo) show(ctx context.Context, mode Mode, title string) error {
	t := d.Up.Topology
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	if err := d.lab.AwaitRoutes(waiting, t, mode); err != nil {
		return err
	}
	d.title("Pod routes of each node, %s mode (there after %.2f s)", mode, time.Since(began).Seconds())
	for _, n := range t.Nodes {
		for _, p := range t.Pools {
			table, err := d.lab.routeTable(ctx, n.Name, p.CIDR)
			if err != nil {
				return err
			}
			d.say("%s", n.Name)
			for line := range strings.SplitSeq(table, "\n") {
				d.say("    %s", strings.TrimSpace(line))
			}
		}
	}

	d.title("%s", title)
	want, err := d.lab.Expect(ctx, mode)
	if err != nil {
		return err
	}
	m, err := d.lab.Matrix(ctx)
	if err != nil {
		return err
	}
	if err := m.Print(d.Out, want); err != nil {
		return err
	}
	if wrong := m.Wrong(want); len(wrong) > 0 {
		return fmt.Errorf("%s mode: %d of %d cells are not as expected:\n  %s", mode, len(wrong), len(m.Cells), strings.Join(wrong, "\n  "))
	}
	if m.Paths()[PathNone] > 0 {
		d.say("-  does not get through, as it should be: the router between the subnets knows no pods")
	}
	d.prove(m)
	return nil
}

// prove tells what was captured between the nodes.
func (d *demo) prove(m Matrix) {
	for _, path := range []Path{PathDirect, PathVXLAN} {
		if cells, packets, sample := m.wirePackets(path); cells > 0 {
			d.say("captured on the nodes' uplinks: %d packets of %d %s cells, such as", packets, cells, path)
			d.say("    %s", sample)
		}
	}
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
