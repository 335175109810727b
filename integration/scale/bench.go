package scale

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/muslin-net/muslin/internal/backoff"
)

// How the figures are taken.
const (
	benchClients   = 1_000
	benchWorkers   = 4
	benchRate      = 200 // endpoint updates a second
	benchLocal     = 100 // endpoints on the one node of BenchFelix
	gatewaysSecond = 5   // updates a second of endpoints that all nodes are told of
	insyncProfile  = 10 * time.Second
)

// bench prints figures.
type bench struct {
	*cluster
	during time.Duration
	suffix string // of names at other sizes than that of the targets
}

// say prints one figure as a line BENCH <name> <value> <unit> [more].
func (b bench) say(name string, value float64, unit string, more ...string) {
	line := fmt.Sprintf("BENCH %s%s %.4g %s", name, b.suffix, value, unit)
	fmt.Fprintln(b.options.Out, strings.Join(append([]string{line}, more...), " "))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mb(bytes int) float64 { return float64(bytes) / 1e6 }

func openBench(ctx context.Context, o Options, size string, local int) (bench, error) {
	shape, err := SizeOf(size)
	if err != nil {
		return bench{}, err
	}
	shape.Local = local
	b := bench{during: cmp.Or(o.During, 20*time.Second)}
	if size != "large" {
		b.suffix = "." + size
	}
	b.cluster, err = newCluster(ctx, o, shape)
	return b, err
}

// BenchTypha measures typha with a thousand clients at one of the sizes; names are those of the design at the large one, and end in
// the size otherwise.
func BenchTypha(ctx context.Context, o Options, size string) error {
	b, err := openBench(ctx, o, size, 0)
	if err != nil {
		return err
	}
	defer b.close()
	u, err := usage(b.typha.PID())
	if err != nil {
		return err
	}
	b.say("typha.start.cpu", u.CPU.Seconds(), "s")
	b.say("typha.start.rss", mb(u.RSS), "MB")
	b.profile("typha.start", "heap?gc=1", 0)
	if err := b.workers(benchWorkers); err != nil {
		return err
	}
	for _, kind := range []ClientKind{Lean, Whole} {
		suffix := ""
		if kind == Lean {
			suffix = ".lean"
		}
		go b.profile("insync1000"+suffix, "profile", insyncProfile)
		first, err := b.arrive(ctx, b.clients(benchClients, kind))
		if err != nil {
			return err
		}
		b.say("typha.insync1000"+suffix, first.took.Seconds(), "s")
		b.say("typha.insync1000.cpu"+suffix, first.cpu.Seconds(), "s")
		if kind == Whole {
			b.say("typha.bytes", first.bytes/benchClients, "bytes")
		}
		if err := b.crowd.leave(ctx); err != nil {
			return err
		}
		again, err := b.arrive(ctx, b.clients(benchClients, kind))
		if err != nil {
			return err
		}
		b.say("typha.reconnect1000"+suffix, again.took.Seconds(), "s")
		b.say("typha.reconnect1000.share"+suffix, 100*again.bytes/first.bytes, "%")
		b.say("typha.reconnect1000.cpu"+suffix, again.cpu.Seconds(), "s")
		if err := b.updates(ctx, suffix); err != nil {
			return err
		}
		if err := b.crowd.leave(ctx); err != nil {
			return err
		}
	}
	return nil
}

// updates measures what changes take, with all clients there. Names end in the suffix.
func (b bench) updates(ctx context.Context, suffix string) error {
	b.suffix = suffix + b.suffix
	for _, load := range []struct {
		name  string
		rates Rates
	}{
		{"typha.update1000", Rates{Relabel: benchRate / 2, Restart: benchRate / 4}}, // a restart is two updates
		{"typha.update1000.all", Rates{RelabelGateway: gatewaysSecond}},
		{"typha.update1000.mixed", Rates{Relabel: 20, Restart: 10, Policy: 2, Join: 0.2, Leave: 0.2}},
	} {
		go b.profile(load.name+suffix, "profile", b.during)
		s, err := b.storm(ctx, load.rates, nil, b.during)
		if err != nil {
			return err
		}
		b.say(load.name, ms(s.Delivered.Quantile(0.99)), "ms")
		b.say(load.name+".p50", ms(s.Delivered.Quantile(0.5)), "ms")
		b.say(load.name+".cpu", 100*s.cpu, "%")
		b.say(load.name+".clients", 100*s.clients, "%")
		b.say(load.name+".delivered", float64(s.Delivered.Count())/b.during.Seconds(), "/s")
		b.say(load.name+".batches", s.batches/b.during.Seconds(), "/s")
		b.say(load.name+".bytes", s.bytes/b.during.Seconds(), "bytes/s")
		b.say(load.name+".late", ms(s.Late), "ms")
	}
	b.profile("typha.update1000"+suffix, "heap", 0)
	b.profile("typha.update1000"+suffix, "goroutine", 0)
	h, err := b.barrier(ctx)
	if err != nil {
		return err
	}
	b.say("typha.update1.all", ms(h.Quantile(0.99)), "ms")
	u, err := usage(b.typha.PID())
	if err != nil {
		return err
	}
	b.say("typha.rss", mb(u.RSS), "MB")
	b.say("typha.rss.peak", mb(u.Peak), "MB")
	return nil
}

// BenchFelix measures the core of one felix, in a process of its own, with a hundred endpoints of its own and all others elsewhere.
func BenchFelix(ctx context.Context, o Options, size string) error {
	b, err := openBench(ctx, o, size, benchLocal)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.workers(1); err != nil {
		return err
	}
	first, err := b.arrive(ctx, b.clients(1, Felix))
	if err != nil {
		return err
	}
	b.say("felix.insync", first.took.Seconds(), "s")
	b.say("felix.bytes", first.bytes, "bytes")
	idle, err := b.cpuOver(ctx, b.during)
	if err != nil {
		return err
	}
	b.say("felix.idle", 100*idle, "%")
	u, err := b.crowd.usage()
	if err != nil {
		return err
	}
	b.say("felix.rss", mb(u.RSS), "MB")
	b.say("felix.rss.peak", mb(u.Peak), "MB")
	if err := b.crowd.heap(ctx, b.options.Profiles); err != nil {
		return err
	}

	concerns := b.world.concerns(0)
	remote, err := b.storm(ctx, Rates{Relabel: benchRate}, func(i int) bool { return !concerns(i) }, b.during)
	if err != nil {
		return err
	}
	b.say("felix.remote", remote.cpuEach(idle), "ms")
	b.say("felix.remote.batches", float64(remote.Batches), "batches")
	local, err := b.storm(ctx, Rates{Relabel: 20}, func(i int) bool { return b.world.pods[i].node == 0 }, b.during)
	if err != nil {
		return err
	}
	b.say("felix.local", ms(local.Desired.Quantile(0.99)), "ms")
	b.say("felix.local.p50", ms(local.Desired.Quantile(0.5)), "ms")
	b.say("felix.local.cpu", local.cpuEach(idle), "ms")
	if u, err = b.crowd.usage(); err != nil {
		return err
	}
	b.say("felix.rss.local", mb(u.RSS), "MB")
	return nil
}

// cpuEach is what a change costs the clients beyond what they take when nothing happens, in ms; what is less than can be measured
// is 0.
func (s storm) cpuEach(idle float64) float64 {
	return max(0, ms(time.Duration((s.clients-idle)*float64(s.took)))/float64(s.Changes))
}

// cpuOver is what the clients take of a core while nothing happens.
func (b bench) cpuOver(ctx context.Context, during time.Duration) (float64, error) {
	if err := b.settle(ctx); err != nil {
		return 0, err
	}
	before, err := b.crowd.usage()
	if err != nil {
		return 0, err
	}
	if err := backoff.Pause(ctx, during); err != nil {
		return 0, err
	}
	after, err := b.crowd.usage()
	return (after.CPU - before.CPU).Seconds() / during.Seconds(), err
}

// concerns tells of which pods a node may be told: its own, those of the namespaces of its own and of those that these let in, and
// those that every node knows.
func (w *World) concerns(node int) func(pod int) bool {
	near := map[int]bool{}
	for _, i := range w.nodes[node].pods {
		near[w.pods[i].namespace], near[w.peer(w.pods[i].namespace)] = true, true
	}
	return func(i int) bool {
		return w.pods[i].node == node || near[w.pods[i].namespace] || w.pods[i].gateway || i < dnsPods
	}
}
