package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// BenchOptions say what to measure.
type BenchOptions struct {
	BinDir string
	Areas  []string  // of BenchAreas; empty is all
	Out    io.Writer // figures, one a line
	Log    io.Writer // progress
	// Plugins is a directory with the stock CNI plugins ptp and host-local; empty: they are built, which needs Go.
	Plugins string
}

// BenchAreas are what the lab can measure. The dataplane contains ipip, dataplane6 and the changes, bgp and policy those that
// begin so.
func BenchAreas() []string {
	return []string{
		"demo", "dataplane", "ipip", "dataplane6", "change", "repair", "cni", "bgp", "bgp-kernel", "bgp-withdraw", "bgp-mesh", "bgp-reflector", "bgp-fault",
		"policy", "policy-traffic", "policy-latency",
	}
}

// Bench measures Muslin on the demo's cluster beside the same made by hand, both up at the same time and measured in
// turns, and prints each figure as a line
//
//	BENCH <name> <value> <unit> [ratio=<x> vs=<what>]
func Bench(ctx context.Context, o BenchOptions) (err error) {
	for _, a := range o.Areas {
		if !slices.Contains(BenchAreas(), a) {
			return problem(fmt.Sprintf("there is no area %q", a), "choose from "+strings.Join(BenchAreas(), ", "))
		}
	}
	b := bench{BenchOptions: o}
	if b.topology, err = DemoTopology(); err != nil {
		return err
	}
	b.topology.Pools = []Pool{handPool(false)} // direct, to begin with
	if b.wants("cni") {
		for i, n := range b.topology.Nodes {
			if n.Name == coldNode {
				b.topology.Nodes[i].Env = map[string]string{"FELIX_WARMPOOLSIZE": "0"}
			}
		}
	}
	if b.dir, err = os.MkdirTemp("", "muslin-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(context.WithoutCancel(ctx))) }()
	if b.wants("demo") {
		if err := b.walk(ctx); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	if b.wants("demo") || b.wants("repair") || b.pairs() {
		if err := b.up(ctx); err != nil {
			return err
		}
	}
	for _, area := range []struct {
		name string
		fn   func(context.Context) error
	}{{"dataplane", b.dataplane}, {"ipip", b.ipip}, {"dataplane6", b.dataplane6}, {"change", b.changes}, {"repair", b.repairs}, {"cni", b.cni}, {"bgp", b.bgp}, {"policy", b.policy}} {
		if !b.wants(area.name) && !slices.ContainsFunc(b.Areas, func(a string) bool { return strings.HasPrefix(a, area.name+"-") }) {
			continue
		}
		if err := area.fn(ctx); err != nil {
			return fmt.Errorf("%s: %w", area.name, err)
		}
	}
	return nil
}

type bench struct {
	BenchOptions
	dir      string
	topology Topology
	muslin   *Lab // the demo's cluster
	hand     *Lab // the same by hand
}

func (b *bench) wants(area string) bool {
	contained := slices.Contains([]string{"change", "ipip", "dataplane6"}, area)
	whole, _, part := strings.Cut(area, "-")
	return len(b.Areas) == 0 || slices.Contains(b.Areas, area) || contained && slices.Contains(b.Areas, "dataplane") ||
		part && slices.Contains(b.Areas, whole)
}

// pairs tells whether the same is needed by hand.
func (b *bench) pairs() bool { return b.wants("dataplane") || b.wants("ipip") || b.wants("cni") }

// figure prints one result. vs names what ratio is to; it may be empty.
func (b *bench) figure(name string, value float64, unit string, ratio float64, vs string) {
	line := fmt.Sprintf("BENCH %s %.4g %s", name, value, unit)
	if vs != "" {
		line += fmt.Sprintf(" ratio=%.3f vs=%s", ratio, vs)
	}
	fmt.Fprintln(b.Out, line)
}

// walk measures what make demo takes once all is built, the walk-through and the removal included.
func (b *bench) walk(ctx context.Context) error {
	began := time.Now()
	topology, err := DemoTopology()
	if err != nil {
		return err
	}
	up := Options{Name: "bench-demo", StateDir: filepath.Join(b.dir, "demo"), BinDir: b.BinDir, Topology: topology}
	if err := Demo(ctx, DemoOptions{Up: up, Out: io.Discard}); err != nil {
		return err
	}
	b.figure("demo.walk", time.Since(began).Seconds(), "s", 0, "")
	return nil
}

func (b *bench) up(ctx context.Context) error {
	name := "bench"
	if b.v6() {
		name = "bench6"
	}
	began := time.Now()
	var err error
	b.muslin, err = Up(ctx, Options{
		Name: name, StateDir: filepath.Join(b.dir, "muslin"), BinDir: b.BinDir, Topology: b.topology, Attached: true,
		Progress: PrintProgress(b.Log),
	})
	if err != nil {
		return err
	}
	if b.wants("demo") {
		b.figure("demo.up", time.Since(began).Seconds(), "s", 0, "")
	}
	if !b.pairs() {
		return nil
	}
	if err := b.upByHand(ctx, name+"-by-hand"); err != nil {
		return err
	}
	return trackConnections(ctx, b.hand, byHand(b.topology))
}

// upByHand brings the same up by hand: pods, and no way between nodes yet.
func (b *bench) upByHand(ctx context.Context, name string) (err error) {
	plugins := b.Plugins
	if plugins == "" {
		plugins = filepath.Join(b.dir, "plugins")
		if err := buildStockPlugins(ctx, plugins); err != nil {
			return err
		}
	}
	topology := byHand(b.topology)
	b.hand, err = Up(ctx, Options{Name: name, StateDir: filepath.Join(b.dir, "hand"), BinDir: b.BinDir, Topology: topology, Attached: true})
	if err != nil {
		return err
	}
	if err := useStockPlugins(b.hand, topology, plugins); err != nil {
		return err
	}
	for _, p := range b.topology.Pods {
		if _, err := b.hand.PodAdd(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) close(ctx context.Context) error {
	var errs []error
	for _, l := range []*Lab{b.muslin, b.hand} {
		if l != nil {
			errs = append(errs, l.Down(ctx))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

func median(vs []float64) float64 { return quantile(vs, 0.5) }

// quantile returns the value that a share q of the values is not above.
func quantile(vs []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(vs))
	if len(s) == 0 {
		return 0
	}
	return s[min(int(q*float64(len(s))), len(s)-1)]
}
