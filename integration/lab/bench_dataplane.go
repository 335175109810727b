package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// rateRounds is how often a rate is measured on each side, in turns; the middle of several rounds drops the odd one out.
const rateRounds = 15

// ipip measures pod to pod in IP-in-IP.
func (b *bench) ipip(ctx context.Context) error { return b.traffic(ctx, ModeIPIP) }

// dataplane measures pod to pod between two nodes in the other modes, beside the same made by hand.
func (b *bench) dataplane(ctx context.Context) error {
	for _, mode := range []Mode{ModeDirect, ModeVXLAN} {
		if err := b.traffic(ctx, mode); err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
	}
	return nil
}

// dataplane6 is dataplane over IPv6, between nodes of both families and pods of the one.
func (b *bench) dataplane6(ctx context.Context) (err error) {
	six := bench{BenchOptions: b.BenchOptions, dir: filepath.Join(b.dir, "ipv6")}
	if six.topology, err = DualStackTopology(); err != nil {
		return err
	}
	six.topology.Pools, six.Areas = []Pool{handPool(true)}, []string{"dataplane"}
	defer func() { err = errors.Join(err, six.close(context.WithoutCancel(ctx))) }()
	if err := six.up(ctx); err != nil {
		return err
	}
	return six.dataplane(ctx)
}

// traffic measures one mode, beside the path and the tunnel by hand, and beside the same with Muslin's duties.
func (b *bench) traffic(ctx context.Context, mode Mode) error {
	if err := b.enter(ctx, mode); err != nil {
		return err
	}
	handMode, vs := mode, "by-hand"
	if mode == ModeIPIP && !hasIPIP(ctx, b.hand, b.topology.Nodes[0].Name) {
		handMode, vs = ModeDirect, "plain-routing" // this kernel has no device to do it by hand
	}
	if err := handRoutes(ctx, b.hand, byHand(b.topology), handMode); err != nil {
		return err
	}
	for _, side := range []struct {
		lab  *Lab
		mode Mode
	}{{b.muslin, mode}, {b.hand, handMode}} {
		if err := b.goes(ctx, side.lab, side.mode); err != nil {
			return err
		}
	}
	name := string(mode)
	if b.v6() {
		name += "6"
	}
	if err := b.figures(ctx, "", name, vs); err != nil {
		return err
	}
	undo, err := guard(ctx, b.hand, byHand(b.topology))
	if err != nil {
		return err
	}
	return errors.Join(b.figures(ctx, "guarded", name, vs+"-guarded"), undo(ctx))
}

// enter puts the pool into a mode, and waits until every node has followed.
func (b *bench) enter(ctx context.Context, mode Mode) error {
	if err := b.muslin.SetMode(ctx, b.topology.Pools[0].Name, mode); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, convergeDeadline)
	defer cancel()
	return b.muslin.AwaitRoutes(waiting, b.topology, mode)
}

// figures measures all there is between two pods.
func (b *bench) figures(ctx context.Context, kind, mode, vs string) error {
	name := func(what string) string { return "dataplane." + what + kind + "." + mode }
	rtts, err := roundTrips(ctx, b.muslin, b.hand)
	if err != nil {
		return fmt.Errorf("%s: %w", name("rr"), err)
	}
	b.compare(name("rr"), "us", rtts[0], rtts[1], vs)
	for _, rate := range []struct {
		what, unit string
		measure    func(context.Context, *Lab) (float64, error)
	}{
		{"tcp1", "Gbit/s", throughput(1)},
		{"tcp8", "Gbit/s", throughput(8)},
		{"udp64", "kpps", smallPackets},
	} {
		var muslin, hand []float64
		for range rateRounds {
			for _, side := range []struct {
				lab  *Lab
				into *[]float64
			}{{b.muslin, &muslin}, {b.hand, &hand}} {
				v, err := rate.measure(ctx, side.lab)
				if err != nil {
					return fmt.Errorf("%s: %w", name(rate.what), err)
				}
				*side.into = append(*side.into, v)
			}
		}
		b.compare(name(rate.what), rate.unit, muslin, hand, vs)
	}
	return nil
}

// v6 tells whether pods talk over IPv6.
func (b *bench) v6() bool { return b.topology.Pools[0].CIDR.Addr().Is6() }

// goes makes sure that a side does what is compared.
func (b *bench) goes(ctx context.Context, l *Lab, mode Mode) error {
	want := Expect(b.topology, nil, mode)("worker-1", "worker-2")
	r, err := l.Probe(ctx, ProbeRequest{From: "pod-1", To: "pod-2", IPv6: b.v6(), Timeout: AnswerPatience})
	if err != nil {
		return err
	}
	if r.Path != want {
		return fmt.Errorf("pod-1 to pod-2 in lab %s should go %s and goes %s %s", l.name, want, r.Path, r.Error)
	}
	return nil
}

// compare prints the middle of Muslin's values, and the middle of the ratios of what was measured in turns.
func (b *bench) compare(name, unit string, muslin, hand []float64, vs string) {
	ratios := make([]float64, len(muslin))
	for i := range ratios {
		ratios[i] = muslin[i] / hand[i]
	}
	b.figure(name, median(muslin), unit, median(ratios), vs)
}
