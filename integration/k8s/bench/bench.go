// Package bench measures Muslin in Kubernetes on clusters of the real programs: how soon a cluster takes pods, how soon a pod is
// ready beside pods that need no network of their own and beside the CNI project's bridge with host-local, and what the API
// server is asked for.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
	"github.com/muslin-net/muslin/integration/lab"
)

// starts is how many pods of each kind are started, and watched how long requests are counted for, idle and busy.
const (
	starts  = 15
	watched = time.Minute
)

// Options say what to measure with, and where to write.
type Options struct {
	Source   string    // the project's directory, with deploy/overlays and bin/images
	BinDir   string    // Muslin's binaries; default the running program's directory
	Out, Log io.Writer // for lines BENCH name value unit, and for what is going on
}

type bench struct {
	Options
	muslin, bridge *cluster.Cluster
}

// Run measures everything. The clusters are gone at the end, however it comes.
func Run(ctx context.Context, o Options) (err error) {
	b := &bench{Options: o}
	defer func() {
		for _, c := range []*cluster.Cluster{b.muslin, b.bridge} {
			if c != nil {
				err = errors.Join(err, c.Down(context.WithoutCancel(ctx)))
			}
		}
	}()
	for _, measure := range []func(context.Context) error{b.firstPod, b.podStarts, b.requests} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// figure writes one; vs names what its ratio is of, if anything.
func (b *bench) figure(name string, value float64, unit string, ratio float64, vs string) {
	line := fmt.Sprintf("BENCH k8s.%s %.4g %s", name, value, unit)
	if vs != "" {
		line += fmt.Sprintf(" ratio=%.3f vs=%s", ratio, vs)
	}
	fmt.Fprintln(b.Out, line)
}

func (b *bench) up(ctx context.Context, name string, workers int) (*cluster.Cluster, error) {
	return cluster.Up(ctx, cluster.Options{
		Name: name, Workers: workers, BinDir: b.BinDir, Attached: true, Progress: lab.PrintProgress(b.Log),
		Log: func(line string) { fmt.Fprintln(b.Log, line) },
	})
}

// firstPod measures from nothing to a cluster of two workers with Muslin, of which one runs a pod. Images are there, as a
// registry's mirror on the machine would have them.
func (b *bench) firstPod(ctx context.Context) (err error) {
	began := time.Now()
	if b.muslin, err = b.up(ctx, "bench", 2); err != nil {
		return err
	}
	b.figure("start.cluster", time.Since(began).Seconds(), "s", 0, "")
	if err := b.muslin.ImportMuslin(ctx, b.Source); err != nil {
		return err
	}
	applied := time.Now()
	if err := b.muslin.Apply(ctx, filepath.Join(b.Source, "deploy/overlays/ipip")); err != nil {
		return err
	}
	pods, err := newPods(b.muslin)
	if err != nil {
		return err
	}
	if err := pods.account(ctx); err != nil {
		return err
	}
	if _, err := pods.start(ctx, "first", cluster.Worker(1), false); err != nil {
		return err
	}
	b.figure("start.muslin", time.Since(applied).Seconds(), "s", 0, "")
	b.figure("start.first-pod", time.Since(began).Seconds(), "s", 0, "")
	if err := pods.end(ctx, "first"); err != nil {
		return err
	}
	return b.muslin.Install(ctx, filepath.Join(b.Source, "deploy/overlays/ipip")) // and all of it ready
}

// podStarts measures, in turns, pods with Muslin, pods of the host's network beside them, and pods on a bridge in a cluster of
// their own, from the request that makes one until it is ready.
func (b *bench) podStarts(ctx context.Context) (err error) {
	if b.bridge, err = b.up(ctx, "bench-bridge", 1); err != nil {
		return err
	}
	if err := errors.Join(b.bridge.UseBridge(ctx), b.bridge.AwaitNodes(ctx)); err != nil {
		return err
	}
	sides := []struct {
		name string
		c    *cluster.Cluster
		host bool
	}{{"muslin", b.muslin, false}, {"host-network", b.muslin, true}, {"bridge+host-local", b.bridge, false}}
	took := make([][]float64, len(sides))
	for round := range starts {
		for i, side := range sides {
			pods, err := newPods(side.c)
			if err != nil {
				return err
			}
			if err := pods.account(ctx); err != nil {
				return err
			}
			name := fmt.Sprintf("start-%d", round)
			d, err := pods.start(ctx, name, cluster.Worker(1), side.host)
			if err == nil {
				err = pods.end(ctx, name)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", side.name, err)
			}
			took[i] = append(took[i], float64(d.Microseconds())/1000)
		}
	}
	for _, q := range []struct {
		name string
		at   float64
	}{{"p50", 0.5}, {"p90", 0.9}} {
		ours := quantile(took[0], q.at)
		for i := 1; i < len(sides); i++ {
			b.figure("pod."+q.name, ours, "ms", ours/quantile(took[i], q.at), sides[i].name)
		}
	}
	return b.bridge.Down(ctx)
}

// requests counts what all of Muslin asks the API for, idle, and while pods come and go all the time.
func (b *bench) requests(ctx context.Context) error {
	b.bridge = nil
	if err := b.count(ctx, "idle", func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	}); err != nil {
		return err
	}
	pods, err := newPods(b.muslin)
	if err != nil {
		return err
	}
	churned := 0
	err = b.count(ctx, "churn", func(ctx context.Context) error {
		for ; ctx.Err() == nil; churned++ {
			name := fmt.Sprintf("churn-%d", churned)
			// The last one is not left half-way.
			if _, err := pods.start(context.WithoutCancel(ctx), name, cluster.Worker(churned%2+1), false); err != nil {
				return err
			}
			if err := pods.end(context.WithoutCancel(ctx), name); err != nil {
				return err
			}
		}
		return nil
	})
	b.figure("requests.churn.pods", float64(churned), "pods/min", 0, "")
	return err
}

// quantile is the value below which that part of all lies.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
