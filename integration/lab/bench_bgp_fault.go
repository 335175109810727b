package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// faultRounds is how often each fault is made.
	faultRounds = 5
	// faultRoutes is how many routes the peer announces; the last to go counts.
	faultRoutes = 10
	// faultHold is what the peer offers as hold time: the least that BGP allows, so that a round is short.
	faultHold = 3 * time.Second
	// faultKept is how long the router asks for its routes to be kept: a receiver that misses what BFD tells it is late by so
	// much, not for good.
	faultKept = 5 * time.Second
	// faultQuiet is how long all routes must have been there before the next fault.
	faultQuiet = time.Second
)

// faultTopology is two receivers and a router, which are on one network; besides, the router has a link of its own to each
// receiver, of which each is lost alone. A router that dies or freezes does so for both in the same moment.
const faultTopology = `
subnets: [{name: flat, prefixes: [10.53.0.0/24]}]
nodes:
- {name: node, addresses: [10.53.0.10]}
- {name: bird2, addresses: [10.53.0.11], processes: []}
- {name: tor, addresses: [10.53.0.12], processes: []}
pools: [{cidr: 192.168.0.0/16}]
`

// faultReceiver is one of the two who lose their routes.
type faultReceiver struct {
	where     string
	net, wire ends   // on the network, and of its own link to the router
	link      string // the router's end of that
	pid       int    // of a process there
	watch     *fibWatch
	configure func(context.Context, fault) error
}

// ends are the two addresses of a session.
type ends struct{ own, peer netip.Addr }

func endsOf(own, peer string) ends { return ends{netip.MustParseAddr(own), netip.MustParseAddr(peer)} }

// ends are those of the session that the fault is to strike.
func (r *faultReceiver) ends(it fault) ends {
	if it.link {
		return r.wire
	}
	return r.net
}

// fault is one way to lose a peer.
type fault struct {
	name     string
	bfd      bool
	graceful bool   // the router asks for its routes to be kept when it restarts
	link     bool   // it strikes the link of one receiver at a time
	strike   string // shell command on the router; %pid and %link stand for its process and its link
	heal     string // the same afterwards; empty: the router is started anew
}

// bgpFaults measures how long the routes of a peer that is lost stay in the receivers' kernels: from the fault until the last
// is removed. Where one fault strikes both, they are measured in the same moment.
func (b *bench) bgpFaults(ctx context.Context) (err error) {
	t, err := ParseTopology("a peer that is lost", []byte(faultTopology))
	if err != nil {
		return err
	}
	f := faults{receivers: [2]*faultReceiver{
		{where: "node", net: endsOf("10.53.0.10", "10.53.0.12"), wire: endsOf("10.54.1.1", "10.54.1.2"), link: "to-node"},
		{where: "bird2", net: endsOf("10.53.0.11", "10.53.0.12"), wire: endsOf("10.54.2.1", "10.54.2.2"), link: "to-bird2"},
	}}
	f.lab, err = Up(ctx, Options{Name: "bench-fault", StateDir: filepath.Join(b.dir, "fault"), BinDir: b.BinDir, Topology: t, Attached: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close(context.WithoutCancel(ctx))) }()
	if err := f.prepare(ctx); err != nil {
		return err
	}
	for _, it := range []fault{
		{name: "linkdown", strike: "exec ip link set dev %link down", heal: "exec ip link set dev %link up", link: true},
		{name: "dead.nobfd", strike: "kill -KILL %pid"},
		{name: "frozen.nobfd", strike: "kill -STOP %pid", heal: "kill -CONT %pid"},
		{name: "dead", bfd: true, graceful: true, strike: "kill -KILL %pid"},
		{name: "frozen", bfd: true, graceful: true, strike: "kill -STOP %pid", heal: "kill -CONT %pid"},
	} {
		took, err := f.measure(ctx, it)
		if err != nil {
			return fmt.Errorf("%s: %w", it.name, err)
		}
		b.beside("bgp."+it.name, median(took[0]), median(took[1]), "ms")
		b.figure("bgp."+it.name+".worst", quantile(took[0], 1), "ms", 0, "")
	}
	return nil
}

type faults struct {
	lab       *Lab
	receivers [2]*faultReceiver
	pid       int // of the router's process
	stop      func() error
	stopBird2 func() error
}

func (f *faults) close(ctx context.Context) error {
	var errs []error
	for _, r := range f.receivers {
		if r.watch != nil {
			errs = append(errs, r.watch.file.Close())
		}
	}
	for _, stop := range []func() error{f.stop, f.stopBird2} {
		if stop != nil {
			errs = append(errs, stop())
		}
	}
	return errors.Join(append(errs, f.lab.Down(ctx))...)
}

// prepare makes the links.
func (f *faults) prepare(ctx context.Context) error {
	ours, theirs := f.receivers[0], f.receivers[1]
	pids, err := f.lab.processIDs(ctx, ours.where, ProcessBird)
	if err != nil {
		return err
	}
	ours.pid, ours.configure, theirs.configure = pids[0], f.configureOurs, f.configureTheirs
	if err := theirs.configure(ctx, fault{}); err != nil {
		return err
	}
	for _, r := range f.receivers {
		for _, step := range []struct{ where, command string }{
			{"tor", fmt.Sprintf("ip link add %s type veth peer name p2p0 netns %d", r.link, r.pid)},
			{"tor", fmt.Sprintf("ip address add %s/30 dev %s", r.wire.peer, r.link)},
			{"tor", fmt.Sprintf("ip link set %s up", r.link)},
			{r.where, fmt.Sprintf("ip address add %s/30 dev p2p0", r.wire.own)},
			{r.where, "ip link set p2p0 up"},
		} {
			if _, err := f.lab.Run(ctx, step.where, strings.Fields(step.command)...); err != nil {
				return err
			}
		}
		if r.watch, err = watchFIB(ctx, f.lab, r.where, faultRoutes); err != nil {
			return err
		}
	}
	return nil
}

// configureOurs configures our session.
func (f *faults) configureOurs(ctx context.Context, it fault) error {
	r := f.receivers[0]
	var c strings.Builder
	fmt.Fprintf(&c, "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\nspec:\n  peerIP: %s\n  asNumber: 65001\n  sourceAddress: None\n", r.ends(it).peer)
	if it.bfd {
		c.WriteString("  failureDetectionMode: BFDIfDirectlyConnected\n  bfd: {minimumSendInterval: 50ms, minimumReceiveInterval: 50ms, multiplier: 3}\n")
	}
	if err := os.WriteFile(filepath.Join(nodeDir(f.lab.dir, r.where), "run", "peer.yaml"), []byte(c.String()), 0o600); err != nil {
		return err
	}
	_, err := f.lab.Run(ctx, r.where, "calicoctl", "apply", "-f", "/run/peer.yaml")
	return err
}

// configureTheirs starts the BIRD 2 that receives.
func (f *faults) configureTheirs(ctx context.Context, it fault) (err error) {
	r := f.receivers[1]
	if f.stopBird2 != nil {
		if err := f.stopBird2(); err != nil {
			return err
		}
	}
	f.stopBird2 = nil
	r.pid, f.stopBird2, err = startBird2(ctx, f.lab, r.where, "", "router id 10.53.0.11;\nprotocol kernel { ipv4 { export where source = RTS_BGP; }; }\n"+
		faultBird2(fault{bfd: it.bfd}, r.ends(it), bgpAS, 65001, "import all; export none"))
	return err
}

// faultBird2 is the common part of a BIRD's configuration with one session.
func faultBird2(it fault, at ends, as, peerAS int, policy string) string {
	name, more := strings.ReplaceAll(at.peer.String(), ".", "_"), ""
	if it.bfd {
		more = "bfd on; "
	}
	if it.graceful {
		more += fmt.Sprintf("graceful restart on; graceful restart time %d; ", int(faultKept.Seconds()))
	}
	return fmt.Sprintf(`
protocol device {}
protocol direct { ipv4; interface "*"; }
protocol bfd { interface "*" { interval 50 ms; multiplier 3; }; }
protocol bgp p%s { local %s as %d; neighbor %s as %d; direct; hold time %d; connect delay time 1; connect retry time 1; error wait time 1, 2; %sipv4 { %s; }; }
`, name, at.own, as, at.peer, peerAS, int(faultHold.Seconds()), more, policy)
}

// startRouter starts the peer of both.
func (f *faults) startRouter(ctx context.Context, it fault) (err error) {
	var config strings.Builder
	config.WriteString("router id 10.53.0.12;\nprotocol static { ipv4;\n")
	for _, p := range bgpPrefixes(faultRoutes) {
		fmt.Fprintf(&config, "route %s blackhole;\n", p)
	}
	config.WriteString("}\n")
	for i, r := range f.receivers {
		at := r.ends(it)
		one := faultBird2(it, ends{at.peer, at.own}, 65001, bgpAS, "import none; export where source = RTS_STATIC")
		if i > 0 { // what concerns the machine is said once
			one = one[strings.Index(one, "protocol bgp"):]
		}
		config.WriteString(one)
	}
	f.pid, f.stop, err = startBird2(ctx, f.lab, "tor", "", config.String())
	return err
}

// measure makes a fault several times.
func (f *faults) measure(ctx context.Context, it fault) (took [2][]float64, err error) {
	for _, r := range f.receivers {
		if err := r.configure(ctx, it); err != nil {
			return took, err
		}
	}
	if err := f.startRouter(ctx, it); err != nil {
		return took, err
	}
	defer func() {
		err = errors.Join(err, f.stop())
		f.stop = nil
		err = errors.Join(err, f.await(0))
	}()
	for range faultRounds {
		turns := [][]int{{0, 1}}
		if it.link {
			turns = [][]int{{0}, {1}}
		}
		for _, turn := range turns {
			if err := f.complete(ctx, it); err != nil {
				return took, err
			}
			if err := f.strike(ctx, it, turn, &took); err != nil {
				return took, err
			}
		}
	}
	return took, nil
}

// complete returns when the router has its sessions, BFD too where there is one, and both receivers have all routes and keep
// them: after a fault one end may still have to find out that the other has given their session up.
func (f *faults) complete(ctx context.Context, it fault) error {
	ctx, cancel := context.WithTimeout(ctx, bgpDeadline)
	defer cancel()
	asks := [][]string{{"Established", "show", "protocols"}}
	if it.bfd {
		asks = append(asks, []string{" Up ", "show", "bfd", "sessions"})
	}
	for _, ask := range asks {
		_, err := eventually(ctx, func() (struct{}, error) {
			text, err := f.lab.Run(ctx, "tor", append([]string{"birdc", "-s", "/run/bird2.ctl"}, ask[1:]...)...)
			if up := strings.Count(text, ask[0]); err == nil && up < len(f.receivers) {
				err = fmt.Errorf("%s: %d of %d sessions are up", strings.Join(ask[1:], " "), up, len(f.receivers))
			}
			return struct{}{}, err
		})
		if err != nil {
			return err
		}
	}
	for since := time.Now(); time.Since(since) < faultQuiet; {
		if err := f.await(faultRoutes); err != nil {
			return err
		}
		for _, r := range f.receivers {
			if err := r.watch.look(faultQuiet / 10); err != nil {
				return err
			}
			if r.watch.n != faultRoutes {
				since = time.Now()
			}
		}
	}
	return nil
}

// await returns when both receivers' kernels have that many routes.
func (f *faults) await(routes int) error {
	var group errgroup.Group
	for _, r := range f.receivers {
		group.Go(func() error {
			if err := r.watch.await(routes, time.Now().Add(bgpDeadline)); err != nil {
				return fmt.Errorf("%s: %w", r.where, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// strike makes the fault, notes how long the routes of those whose turn it is stay, and mends it.
func (f *faults) strike(ctx context.Context, it fault, turn []int, took *[2][]float64) error {
	words := strings.NewReplacer("%pid", strconv.Itoa(f.pid), "%link", f.receivers[turn[0]].link)
	var ended [2]time.Time
	var group errgroup.Group
	for _, i := range turn {
		group.Go(func() error {
			r := f.receivers[i]
			err := r.watch.await(0, time.Now().Add(bgpDeadline))
			if ended[i] = time.Now(); err != nil {
				return fmt.Errorf("%s: %w", r.where, err)
			}
			return nil
		})
	}
	out, err := f.lab.Run(ctx, "tor", "sh", "-c", "date +%s%N; "+words.Replace(it.strike))
	if err := errors.Join(err, group.Wait()); err != nil {
		return err
	}
	nanoseconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return fmt.Errorf("the time of the fault: %w", err)
	}
	for _, i := range turn {
		took[i] = append(took[i], ms(ended[i].Sub(time.Unix(0, nanoseconds))))
	}
	if it.heal != "" {
		_, err := f.lab.Run(ctx, "tor", "sh", "-c", words.Replace(it.heal))
		return err
	}
	_ = f.stop() // it is dead
	return f.startRouter(ctx, it)
}
