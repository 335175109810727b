package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// shownPackets is how many packets of a cell are shown: the handshake and the first data.
const shownPackets = 3

// walk plays each row of the table and tells of it, and leaves the cluster as it was.
func (d *demo) walk(ctx context.Context) error {
	table, err := d.lab.Table(ctx)
	if err != nil {
		return err
	}
	initial := table.pool.Mode()
	var summary [][]string
	var wrong []string
	hidden := 0
	for i, r := range Rows() {
		d.story.title("%d. %s", i+1, r.Title())
		if d.story.lacks != "" && (r.Mode == ModeIPIP || r.Mode == ModeIPIPCrossSubnet) {
			d.story.text("Not shown here: %s.", d.story.lacks)
			summary = append(summary, []string{r.modeText(), onOff(r.Check), "not shown here", "not shown here", "", ""})
			hidden++
			continue
		}
		seen, err := d.row(ctx, table, r)
		if err != nil {
			return err
		}
		lines, verdict := r.Wrong(seen), "as expected"
		if len(lines) > 0 {
			verdict = "WRONG"
		}
		wrong = append(wrong, lines...)
		summary = append(summary, []string{
			r.modeText(), onOff(r.Check), string(seen.Same.Fate()), string(seen.Other.Fate()), seen.OtherRoute, verdict,
		})
	}
	if err := d.restore(ctx, table, initial); err != nil {
		return err
	}
	d.story.title("What was seen")
	d.story.table([]string{
		"mode", "check", table.from.Pod + " → " + table.same.Pod + ", same subnet", table.from.Pod + " → " + table.other.Pod + ", other subnet",
		"route of " + table.from.Node + " to " + table.other.Node + "'s block", "result",
	}, summary)
	if hidden > 0 {
		d.story.text("%d of %d rows are not shown here: %s.", hidden, len(summary), d.story.lacks)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%d cells are not as expected:\n  %s", len(wrong), strings.Join(wrong, "\n  "))
	}
	return nil
}

// row plays one row.
func (d *demo) row(ctx context.Context, table *Table, r Row) (RowSeen, error) {
	d.story.text("%s", r.Why)
	took, err := table.Enter(ctx, r, d.story.ran)
	if err != nil {
		return RowSeen{}, err
	}
	seen, err := table.Observe(ctx, r)
	if err != nil {
		return RowSeen{}, fmt.Errorf("%s: %w", r.Title(), err)
	}
	if r.Backend == BackendVXLAN {
		out, err := d.lab.Run(ctx, table.first, "sh", "-c", nodeStatus)
		if err != nil {
			return RowSeen{}, err
		}
		d.story.ran(Ran{Where: table.first, Command: nodeStatus, Output: strings.TrimSpace(out)})
		if strings.Contains(out, "Established") || !strings.Contains(out, noBGP) {
			return RowSeen{}, errors.New(r.Title() + ": BGP: expected calicoctl node status to say that no BGP process runs, got:\n" + out)
		}
	}
	d.story.text("All nodes have their routes after %.2f s. Those of %s to pods:", took.Seconds(), table.from.Node)
	d.story.ran(Ran{Where: table.from.Node, Command: strings.Join(routeCommand(table.pool.CIDR), " "), Output: seen.Table})
	d.cell(seen.Same, "the same subnet")
	d.cell(seen.Other, "the other subnet")
	if r.Mode == ModeDirect && !r.Check || r.Mode == ModeVXLAN {
		return seen, d.whole(ctx, table, r)
	}
	return seen, nil
}

// whole shows all of a row: the routes of every node, and who reaches which pod, nodes and pods, by which way.
func (d *demo) whole(ctx context.Context, table *Table, r Row) error {
	d.story.text("The same on every node, and from every node and pod to every pod:")
	for _, n := range d.Up.Topology.Nodes {
		routes := routeCommand(table.pool.CIDR)
		out, err := d.lab.Run(ctx, n.Name, routes...)
		if err != nil {
			return err
		}
		d.story.ran(Ran{Where: n.Name, Command: strings.Join(routes, " "), Output: trimLines(out)})
	}
	want, err := d.lab.Expect(ctx, r.Mode)
	if err != nil {
		return err
	}
	m, err := d.lab.Matrix(ctx, want)
	if err != nil {
		return err
	}
	var shown strings.Builder
	if err := m.Print(&shown, want); err != nil {
		return err
	}
	d.story.lines(append([]string{""}, strings.Split(strings.TrimRight(shown.String(), "\n"), "\n")...))
	if m.Paths()[PathNone] > 0 {
		d.story.text("- does not get through, as it should be: the router between the subnets knows no pods.")
	}
	if wrong := m.Wrong(want); len(wrong) > 0 {
		return fmt.Errorf("%s: %d of %d cells are not as expected:\n  %s", r.Title(), len(wrong), len(m.Cells), strings.Join(wrong, "\n  "))
	}
	return nil
}

// noBGP are the words of calicoctl node status where neither bird nor another BGP program runs.
const noBGP = "BGP backend process"

// cell shows how packets to one pod fared, with what was captured on the sender's uplink.
func (d *demo) cell(c CellSeen, where string) {
	from := c.From
	d.story.text("%s → %s on %s, in %s: %s.", from.Pod, c.To.Pod, c.To.Node, where, c.outcome())
	node, _ := d.Up.Topology.node(from.Node)
	packets := []string{"packets on " + node.Interface + " of " + from.Node + ":"}
	n := 0
	for _, s := range c.Probe.Seen {
		if s.Node != from.Node || n == shownPackets {
			continue
		}
		n++
		way := "in "
		if s.Outgoing {
			way = "out"
		}
		for i, h := range s.Headers() {
			if i > 0 {
				way = "   "
			}
			packets = append(packets, "  "+way+"  "+h)
		}
	}
	if n > 0 {
		d.story.lines(packets)
	}
}

// outcome tells the fate with its numbers.
func (c CellSeen) outcome() string {
	fate := c.Fate()
	switch fate {
	case Refused:
		return fmt.Sprintf("%s (its counter at the port of %s rose by %d)", fate, c.From.Node, c.Refused)
	case Unroutable:
		return fmt.Sprintf("%s to %s (its counter rose by %d)", fate, c.To.Addr, c.NoRoute)
	}
	return string(fate)
}

// restore makes the pool and the fabric what they were, and waits until BGP is back.
func (d *demo) restore(ctx context.Context, table *Table, mode Mode) error {
	d.story.title("Back to the beginning")
	d.story.text("bird and confd start again on all nodes, and the pool becomes what it was.")
	if _, err := table.Enter(ctx, Row{Mode: mode, Backend: BackendBird}, d.story.ran); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	out, err := d.awaitStatus(waiting, table.first, func(out string) bool { return strings.Count(out, "Established") >= d.peersOf(table.first) })
	if err != nil {
		return fmt.Errorf("the BGP sessions of %s did not come back: %w", table.first, err)
	}
	d.story.ran(Ran{Where: table.first, Command: nodeStatus, Output: out})
	return nil
}
