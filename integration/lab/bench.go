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
}

// BenchAreas are what the lab can measure.
func BenchAreas() []string { return []string{"demo", "dataplane", "cni"} }

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
	if b.dir, err = os.MkdirTemp("", "muslin-bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(context.WithoutCancel(ctx))) }()
	if err := b.up(ctx); err != nil {
		return err
	}
	for _, area := range []struct {
		name string
		fn   func(context.Context) error
	}{{"dataplane", b.dataplane}, {"cni", b.cni}} {
		if !b.wants(area.name) {
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

func (b *bench) wants(area string) bool { return len(b.Areas) == 0 || slices.Contains(b.Areas, area) }

// figure prints one result. vs names what ratio is to; it may be empty.
func (b *bench) figure(name string, value float64, unit string, ratio float64, vs string) {
	line := fmt.Sprintf("BENCH %s %.4g %s", name, value, unit)
	if vs != "" {
		line += fmt.Sprintf(" ratio=%.3f vs=%s", ratio, vs)
	}
	fmt.Fprintln(b.Out, line)
}

func (b *bench) up(ctx context.Context) error {
	began := time.Now()
	var err error
	b.muslin, err = Up(ctx, Options{
		Name: "bench", StateDir: filepath.Join(b.dir, "muslin"), BinDir: b.BinDir, Topology: b.topology, Attached: true,
		Progress: PrintProgress(b.Log),
	})
	if err != nil {
		return err
	}
	if b.wants("demo") {
		b.figure("demo.up", time.Since(began).Seconds(), "s", 0, "")
	}
	if !b.wants("dataplane") && !b.wants("cni") {
		return nil
	}
	plugins := filepath.Join(b.dir, "plugins")
	if err := buildStockPlugins(ctx, plugins); err != nil {
		return err
	}
	topology := byHand(b.topology)
	b.hand, err = Up(ctx, Options{Name: "bench-by-hand", StateDir: filepath.Join(b.dir, "hand"), BinDir: b.BinDir, Topology: topology, Attached: true})
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
	return trackConnections(ctx, b.hand, topology)
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

// dataplane measures pod to pod between two nodes, direct and through VXLAN.
func (b *bench) dataplane(ctx context.Context) error {
	for _, mode := range []Mode{ModeDirect, ModeVXLAN} {
		if mode == ModeVXLAN {
			if err := b.muslin.patchPools(ctx, b.topology, "Always"); err != nil {
				return err
			}
		}
		if err := handRoutes(ctx, b.hand, byHand(b.topology), mode); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, convergeDeadline)
		err := b.muslin.AwaitRoutes(waiting, b.topology, mode)
		cancel()
		if err != nil {
			return err
		}
		if err := b.samePath(ctx, mode); err != nil {
			return err
		}
		if err := b.transfers(ctx, mode); err != nil {
			return err
		}
	}
	return nil
}

// samePath makes sure that both sides do what is compared.
func (b *bench) samePath(ctx context.Context, mode Mode) error {
	want := Expect(b.topology, nil, mode)("worker-1", "worker-2")
	for _, l := range []*Lab{b.muslin, b.hand} {
		r, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-2"})
		if err != nil {
			return err
		}
		if r.Path != want {
			return fmt.Errorf("pod-1 to pod-2 in lab %s should go %s and goes %s %s", l.name, want, r.Path, r.Error)
		}
	}
	return nil
}

// Measuring in turns evens out what else the machine does; the middle of several rounds drops the odd one out.
const (
	benchRounds = 7
	benchRound  = 500 * time.Millisecond
)

func (b *bench) transfers(ctx context.Context, mode Mode) error {
	for _, kind := range []struct {
		name, unit string
		measure    func(client, server int, d time.Duration) (float64, error)
	}{
		{"dataplane.rr.", "us", roundTrip},
		{"dataplane.throughput.", "Gbit/s", throughput},
	} {
		var muslin, hand []float64
		for range benchRounds {
			for _, side := range []struct {
				lab  *Lab
				into *[]float64
			}{{b.muslin, &muslin}, {b.hand, &hand}} {
				v, err := transfer(ctx, side.lab, kind.measure)
				if err != nil {
					return err
				}
				*side.into = append(*side.into, v)
			}
		}
		ratios := make([]float64, len(muslin))
		for i := range ratios {
			ratios[i] = muslin[i] / hand[i]
		}
		b.figure(kind.name+string(mode), median(muslin), kind.unit, median(ratios), "by-hand")
	}
	return nil
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
