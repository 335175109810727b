package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// How many pods are added one after the other, and how many at a time: fewer than the 64 addresses of a block.
const (
	cniSequential = 60
	cniParallel   = 56
	cniRounds     = 3
	cniStarts     = 100
	cniSustained  = 10 * time.Second
)

// wirer is one way to wire pods: a lab, and the node whose plugins are measured.
type wirer struct {
	name string
	lab  *Lab
	node string
}

// cniTimes are how long calls took as a container runtime sees them, program start included, in milliseconds.
type cniTimes struct {
	add, del []float64
	rate     []float64 // ADDs per second of each round
}

// cni measures the plugin beside the CNI project's own, all in the same run and in turns.
func (b *bench) cni(ctx context.Context) (err error) {
	back, err := b.bridge("worker-2")
	if err != nil {
		return err
	}
	defer func() { err = alsoFailed(err, back()) }()
	sides := []wirer{{"muslin", b.muslin, "worker-1"}, {"ptp+host-local", b.hand, "worker-1"}, {"bridge+host-local", b.hand, "worker-2"}}

	cold, err := b.coldAdd(ctx)
	if err != nil {
		return err
	}
	b.figure("cni.add.cold", cold, "ms", 0, "")
	if err := b.cniEach(ctx, sides, "", 1, cniSequential); err != nil {
		return err
	}
	for _, workers := range []int{8, 16} {
		if err := b.cniEach(ctx, sides, fmt.Sprint(workers), workers, cniParallel); err != nil {
			return err
		}
	}
	rate, err := sides[0].sustained(ctx)
	if err != nil {
		return err
	}
	b.figure("cni.churn8.rate", rate, "ADD+DEL/s", 0, "")
	return b.pluginStart()
}

// cniEach measures ADD and DEL of so many pods on every side, so many at a time; sequential rounds take turns pod by pod.
func (b *bench) cniEach(ctx context.Context, sides []wirer, suffix string, workers, pods int) error {
	times := make([]cniTimes, len(sides))
	rounds, each := cniRounds, pods
	if workers == 1 {
		rounds, each = pods, 1
	}
	for round := range rounds {
		for i, s := range sides {
			if err := s.round(ctx, &times[i], fmt.Sprintf("bench-%d", round), each, workers); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	for i, vs := range sides {
		if i == 0 {
			continue
		}
		for _, f := range []struct {
			name      string
			ours, its []float64
			q         float64
		}{
			{"add" + suffix + ".p50", times[0].add, times[i].add, 0.5},
			{"add" + suffix + ".p99", times[0].add, times[i].add, 0.99},
			{"del" + suffix + ".p50", times[0].del, times[i].del, 0.5},
			{"del" + suffix + ".p99", times[0].del, times[i].del, 0.99},
		} {
			ours, its := quantile(f.ours, f.q), quantile(f.its, f.q)
			b.figure("cni."+f.name, ours, "ms", ours/its, vs.name)
		}
		if workers > 1 {
			ours, its := median(times[0].rate), median(times[i].rate)
			b.figure("cni.add"+suffix+".rate", ours, "ADD/s", ours/its, vs.name)
		}
	}
	return nil
}

// round adds pods, so many at a time, and deletes them.
func (s wirer) round(ctx context.Context, t *cniTimes, prefix string, pods, workers int) error {
	names := make([]string, pods)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	adds, dels := make([]float64, pods), make([]float64, pods)
	began := time.Now()
	err := inParallel(pods, workers, func(i int) error {
		st, err := s.lab.PodAdd(ctx, Pod{Name: names[i], Node: s.node})
		adds[i] = milliseconds(st.Took)
		return err
	})
	if err != nil {
		return err
	}
	t.rate = append(t.rate, float64(pods)/time.Since(began).Seconds())
	err = inParallel(pods, workers, func(i int) error {
		st, err := s.lab.podDel(ctx, names[i])
		dels[i] = milliseconds(st.Took)
		return err
	})
	t.add, t.del = append(t.add, adds...), append(t.del, dels...)
	return err
}

// sustained adds and deletes pods for a while, eight at a time, and returns how many came and went a second.
func (s wirer) sustained(ctx context.Context) (float64, error) {
	const workers = 8
	began := time.Now()
	done := make([]int, workers)
	err := inParallel(workers, workers, func(worker int) error {
		for ; time.Since(began) < cniSustained; done[worker]++ {
			name := fmt.Sprintf("churn-%d-%d", worker, done[worker])
			if _, err := s.lab.PodAdd(ctx, Pod{Name: name, Node: s.node}); err != nil {
				return err
			}
			if err := s.lab.PodDel(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
	total := 0
	for _, n := range done {
		total += n
	}
	return float64(total) / time.Since(began).Seconds(), err
}

// coldAdd is the time of the first ADD of nodes that had no pod and so have no address at hand.
func (b *bench) coldAdd(ctx context.Context) (float64, error) {
	var took []float64
	for _, n := range b.topology.Nodes {
		st, err := b.muslin.PodAdd(ctx, Pod{Name: "cold", Node: n.Name})
		if err != nil {
			return 0, err
		}
		took = append(took, milliseconds(st.Took))
		if err := b.muslin.PodDel(ctx, "cold"); err != nil {
			return 0, err
		}
	}
	return quantile(took, 1), nil
}

// pluginStart measures what the start of the plugin's program costs: it is asked for its versions, and nothing else.
func (b *bench) pluginStart() error {
	plugin := filepath.Join(nodeDir(b.muslin.dir, "worker-1"), "opt-cni/bin", "calico") // as the runtime finds it
	var cpu []float64
	for range cniStarts {
		in, out, err := os.Pipe()
		if err != nil {
			return err
		}
		_, err = out.WriteString(`{"cniVersion":"1.1.0"}`)
		if err = alsoFailed(err, out.Close()); err != nil {
			return err
		}
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		p, err := os.StartProcess(plugin, []string{plugin}, &os.ProcAttr{Env: []string{"CNI_COMMAND=VERSION"}, Files: []*os.File{in, null, null}})
		if err != nil {
			return err
		}
		in.Close()
		null.Close()
		st, err := p.Wait()
		if err != nil {
			return err
		}
		if use, ok := st.SysUsage().(*syscall.Rusage); ok {
			cpu = append(cpu, milliseconds(time.Duration(use.Utime.Nano()+use.Stime.Nano())))
		}
	}
	b.figure("cni.start.cpu", median(cpu), "ms", 0, "")
	return nil
}

// bridge has a node of the lab by hand wire its pods with bridge and host-local; the result takes it back.
func (b *bench) bridge(node string) (back func() error, err error) {
	conf := filepath.Join(nodeDir(b.hand.dir, node), "etc-cni/net.d", conflistName)
	before, err := os.ReadFile(conf)
	if err != nil {
		return nil, err
	}
	bridged := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "bridged", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.88.0.0/24", "routes": [{"dst": %q}]}}]}
`, "0.0.0.0/0")
	return func() error { return os.WriteFile(conf, before, 0o644) }, os.WriteFile(conf, []byte(bridged), 0o644)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// inParallel calls fn for 0 to n-1, so many at a time.
func inParallel(n, workers int, fn func(int) error) error {
	var g errgroup.Group
	g.SetLimit(workers)
	for i := range n {
		g.Go(func() error { return fn(i) })
	}
	return g.Wait()
}
