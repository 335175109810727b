package lab

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// Matrix is who reaches whom, and how.
type Matrix struct {
	Sources []string      // rows
	Targets []string      // columns
	Cells   []ProbeResult // row by row
}

// Expectation says which path a cell should take; PathNone means that the probe should not get through.
type Expectation func(from, to string) Path

// Matrix probes from all nodes and pods to all pods, by TCP over IPv4. It waits for AnswerPatience where an answer is
// expected; want may be nil.
func (l *Lab) Matrix(ctx context.Context, want Expectation) (Matrix, error) {
	return l.matrix(ctx, want, false)
}

// MatrixIPv6 is Matrix over IPv6.
func (l *Lab) MatrixIPv6(ctx context.Context, want Expectation) (Matrix, error) {
	return l.matrix(ctx, want, true)
}

func (l *Lab) matrix(ctx context.Context, want Expectation, v6 bool) (Matrix, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return Matrix{}, err
	}
	var m Matrix
	for _, n := range st.Nodes {
		m.Sources = append(m.Sources, n.Name)
	}
	for _, p := range st.Pods {
		m.Sources = append(m.Sources, p.ID)
		m.Targets = append(m.Targets, p.ID)
	}
	var rs []ProbeRequest
	for _, from := range m.Sources {
		for _, to := range m.Targets {
			r := ProbeRequest{From: from, To: to, Kind: ProbeTCP, IPv6: v6}
			if want != nil && want(from, to) != PathNone {
				r.Timeout = AnswerPatience
			}
			rs = append(rs, r)
		}
	}
	m.Cells, err = l.Probes(ctx, rs)
	return m, err
}

// Expect is Expect for this lab's topology and the pods it has now.
func (l *Lab) Expect(ctx context.Context, mode Mode) (Expectation, error) {
	if err := mode.check(); err != nil {
		return nil, err
	}
	t, err := ReadTopology(filepath.Join(l.dir, "topology.yaml"))
	if err != nil {
		return nil, err
	}
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	return Expect(t, st.Pods, mode), nil
}

// Cell returns the probe from a source to a target; the zero value if there was none.
func (m Matrix) Cell(from, to string) ProbeResult {
	for _, c := range m.Cells {
		if c.From == from && c.To == to {
			return c
		}
	}
	return ProbeResult{}
}

// Expect says what the design promises: local traffic stays on its node; a direct pool reaches nodes of the same subnet
// only, since the fabric's router knows no pods; an encapsulated one reaches all.
func Expect(t Topology, pods []PodStatus, mode Mode) Expectation {
	nodeOf := map[string]string{}
	for _, n := range t.Nodes {
		nodeOf[n.Name] = n.Name
	}
	for _, p := range pods {
		nodeOf[p.ID] = p.Node
	}
	return func(from, to string) Path {
		a, b := nodeOf[from], nodeOf[to]
		if a == b {
			return PathLocal
		}
		return mode.path(t.sameSubnet(a, b))
	}
}

// Paths counts the cells by the path they took.
func (m Matrix) Paths() map[Path]int {
	n := map[Path]int{}
	for _, c := range m.Cells {
		n[c.Path]++
	}
	return n
}

// Wrong returns a line for each cell that is not as expected.
func (m Matrix) Wrong(want Expectation) []string {
	var lines []string
	for _, c := range m.Cells {
		if w := want(c.From, c.To); c.Path != w {
			line := fmt.Sprintf("%s to %s (%s): expected %s, got %s", c.From, c.To, c.Target, w, c.Path)
			if c.Error != "" {
				line += ": " + c.Error
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// Print writes the matrix as a table. A cell that is not as expected is marked with an exclamation mark.
func (m Matrix) Print(w io.Writer, want Expectation) error {
	if len(m.Targets) == 0 {
		_, err := fmt.Fprintln(w, "there are no pods")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, "from \\ to")
	for _, to := range m.Targets {
		fmt.Fprintf(t, "\t%s", to)
	}
	fmt.Fprintln(t)
	for i, c := range m.Cells {
		if i%len(m.Targets) == 0 {
			fmt.Fprint(t, c.From)
		}
		fmt.Fprintf(t, "\t%s", c.text(want(c.From, c.To)))
		if i%len(m.Targets) == len(m.Targets)-1 {
			fmt.Fprintln(t)
		}
	}
	return t.Flush()
}

func (r ProbeResult) text(want Path) string {
	s := string(r.Path)
	if r.OK {
		s = fmt.Sprintf("%s %s", r.Path, r.Latency.Round(time.Microsecond))
	} else if want == PathNone {
		s = "-"
	}
	if r.Path != want {
		s += " !"
	}
	return s
}
