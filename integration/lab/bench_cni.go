package lab

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// How many pods are added one after the other, and how many eight at a time.
const (
	cniSequential = 60
	cniParallel   = 56 // fewer than the 64 addresses of a block
	cniWorkers    = 8
)

// cni measures the plugin: the time of CNI ADD as a container runtime sees it, program start included.
func (b *bench) cni(ctx context.Context) error {
	var muslin, hand []float64
	for i := range cniSequential {
		for _, side := range []struct {
			lab  *Lab
			into *[]float64
		}{{b.muslin, &muslin}, {b.hand, &hand}} {
			name := fmt.Sprintf("bench-%d", i)
			st, err := side.lab.PodAdd(ctx, Pod{Name: name, Node: "worker-1"})
			if err != nil {
				return err
			}
			*side.into = append(*side.into, float64(st.Took.Microseconds())/1000)
			if err := side.lab.PodDel(ctx, name); err != nil {
				return err
			}
		}
	}
	for _, f := range []struct {
		name string
		q    float64
	}{{"cni.add.p50", 0.5}, {"cni.add.p99", 0.99}} {
		m, h := quantile(muslin, f.q), quantile(hand, f.q)
		b.figure(f.name, m, "ms", m/h, "ptp+host-local")
	}
	rate, err := addRate(ctx, b.muslin)
	if err != nil {
		return err
	}
	handRate, err := addRate(ctx, b.hand)
	if err != nil {
		return err
	}
	b.figure("cni.add8.rate", rate, "ADD/s", rate/handRate, "ptp+host-local")
	return nil
}

// addRate adds pods on one node, eight at a time, and returns how many a second; then it deletes them.
func addRate(ctx context.Context, l *Lab) (rate float64, err error) {
	names := make([]string, 0, cniParallel)
	for i := range cniParallel {
		names = append(names, fmt.Sprintf("many-%d", i))
	}
	began := time.Now()
	err = inParallel(names, func(name string) error {
		_, err := l.PodAdd(ctx, Pod{Name: name, Node: "worker-2"})
		return err
	})
	rate = float64(len(names)) / time.Since(began).Seconds()
	if err != nil {
		return 0, err
	}
	return rate, inParallel(names, func(name string) error { return l.PodDel(ctx, name) })
}

func inParallel(names []string, fn func(string) error) error {
	var g errgroup.Group
	g.SetLimit(cniWorkers)
	for _, n := range names {
		g.Go(func() error { return fn(n) })
	}
	return g.Wait()
}
