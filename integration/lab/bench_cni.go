package lab

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// How many pods are added one after the other, and how many in each round of several at a time: fewer than the 64 addresses of a block.
// Both come to enough for the slowest of a hundred.
const (
	cniSequential = 300
	cniParallel   = 56
	cniRounds     = 6
	cniStarts     = 100
	cniSustained  = 10 * time.Second
)

// coldNode is the node that holds no address ready: each of its pods waits for typha.
const coldNode = "worker-3"

// wirer is one way to wire pods: a lab, and the node whose plugins are measured.
type wirer struct {
	name string
	lab  *Lab
	node string
	ours string // what the names of its figures begin with; empty for a way that ours are beside
}

// cniTimes are how long calls took as a container runtime sees them, program start included, in milliseconds.
type cniTimes struct {
	add, del       []float64
	rate           []float64 // ADDs per second of each round
	addUse, delUse cniUse    // during all ADDs and all DELs
}

// cniUse is what a way to wire pods has used since it came up.
type cniUse struct {
	cpu   map[string]float64 // milliseconds of a processor, by program
	calls float64            // requests for addresses that typha was asked for
}

// cni measures the plugin beside the CNI project's own, all in the same run and in turns.
func (b *bench) cni(ctx context.Context) (err error) {
	back, err := b.bridge("worker-2")
	if err != nil {
		return err
	}
	defer func() { err = alsoFailed(err, back()) }()
	// typha's processor time is that of its etcd too, where that is embedded.
	sides := []wirer{
		{"muslin", b.muslin, "worker-1", "cni."},
		{"ptp+host-local", b.hand, "worker-1", ""},
		{"muslin, cold", b.muslin, coldNode, "cni.cold."},
		{"bridge+host-local", b.hand, "worker-2", ""},
	}

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
	for i, s := range sides {
		if s.ours == "" {
			continue
		}
		for k, vs := range sides {
			if vs.ours == "" {
				b.cniBeside(s.ours, suffix, workers, times[i], times[k], vs.name)
			}
		}
		b.cniCost(s.ours, suffix, times[i])
	}
	return nil
}

// cniBeside prints what ours took, and its ratio to another way.
func (b *bench) cniBeside(prefix, suffix string, workers int, we, they cniTimes, vs string) {
	for _, f := range []struct {
		name      string
		ours, its []float64
	}{{"add", we.add, they.add}, {"del", we.del, they.del}} {
		for _, q := range []float64{0.5, 0.99} {
			ours, its := quantile(f.ours, q), quantile(f.its, q)
			b.figure(fmt.Sprintf("%s%s%s.p%.0f", prefix, f.name, suffix, 100*q), ours, "ms", ours/its, vs)
		}
	}
	if workers > 1 {
		ours, its := median(we.rate), median(they.rate)
		b.figure(prefix+"add"+suffix+".rate", ours, "ADD/s", ours/its, vs)
	}
	for _, f := range []struct {
		name      string
		ours, its cniUse
	}{{"add", we.addUse, they.addUse}, {"del", we.delUse, they.delUse}} {
		ours, its := f.ours.cpu[cniPlugin]/float64(len(we.add)), f.its.cpu[cniPlugin]/float64(len(they.add))
		b.figure(prefix+f.name+suffix+".cpu."+cniPlugin, ours, "ms", ours/its, vs)
	}
}

// cniCost prints what else ours took.
func (b *bench) cniCost(prefix, suffix string, we cniTimes) {
	for _, f := range []struct {
		name string
		use  cniUse
	}{{"add", we.addUse}, {"del", we.delUse}} {
		for _, program := range slices.Sorted(maps.Keys(f.use.cpu)) {
			if program != cniPlugin {
				b.figure(prefix+f.name+suffix+".cpu."+program, f.use.cpu[program]/float64(len(we.add)), "ms", 0, "")
			}
		}
	}
	b.figure(prefix+"add"+suffix+".calls", we.addUse.calls/float64(len(we.add)), "/ADD", 0, "")
}

// cniPlugin names what the runtime starts: the plugins, and what they start.
const cniPlugin = "plugin"

// use tells what was used until now.
func (s wirer) use(ctx context.Context) (u cniUse, err error) {
	st, err := s.lab.Status(ctx)
	if err != nil {
		return u, err
	}
	u.cpu = map[string]float64{cniPlugin: milliseconds(st.Ended)}
	for _, p := range st.Processes {
		switch {
		case p.Name == ProcessFelix && p.Node == s.node:
			u.calls, err = s.lab.metric(ctx, s.node, healthAddr(ProcessFelix), "felix_ipam_remote_assigns_total")
			fallthrough
		case p.Name == ProcessTypha, p.Name == ProcessEtcd:
			u.cpu[p.Name] += milliseconds(p.CPU)
		}
	}
	return u, err
}

// add adds what was used between two moments.
func (u *cniUse) add(from, to cniUse) {
	if u.cpu == nil {
		u.cpu = map[string]float64{}
	}
	for program, ms := range to.cpu {
		u.cpu[program] += ms - from.cpu[program]
	}
	u.calls += to.calls - from.calls
}

// metric is the sum of a metric's values that a process on a node shows.
func (l *Lab) metric(ctx context.Context, node string, at netip.AddrPort, name string) (sum float64, err error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return l.Dial(ctx, node, at) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	found := false
	in := bufio.NewScanner(resp.Body)
	for in.Scan() {
		text, value, _ := strings.Cut(in.Text(), " ")
		if text, _, _ = strings.Cut(text, "{"); text != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s of %s: %w", name, at, err)
		}
		sum, found = sum+v, true
	}
	if err := in.Err(); err != nil || found {
		return sum, err
	}
	return 0, fmt.Errorf("%s on %s shows no metric %s", at, node, name)
}

// round adds pods, so many at a time, and deletes them.
func (s wirer) round(ctx context.Context, t *cniTimes, prefix string, pods, workers int) error {
	names := make([]string, pods)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	adds, dels := make([]float64, pods), make([]float64, pods)
	atFirst, err := s.use(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	err = inParallel(pods, workers, func(i int) error {
		st, err := s.lab.PodAdd(ctx, Pod{Name: names[i], Node: s.node})
		adds[i] = milliseconds(st.Took)
		return err
	})
	if err != nil {
		return err
	}
	t.rate = append(t.rate, float64(pods)/time.Since(began).Seconds())
	between, err := s.use(ctx)
	if err != nil {
		return err
	}
	err = inParallel(pods, workers, func(i int) error {
		st, err := s.lab.podDel(ctx, names[i])
		dels[i] = milliseconds(st.Took)
		return err
	})
	t.add, t.del = append(t.add, adds...), append(t.del, dels...)
	if err != nil {
		return err
	}
	atLast, err := s.use(ctx)
	t.addUse.add(atFirst, between)
	t.delUse.add(between, atLast)
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
