// Command felix programs a node: interfaces, routes, rules and tunnels. It follows the node's view from typha, exchanges
// routes with bird, and wires pods for the CNI plugin.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	birdclient "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/check"
	"github.com/muslin-net/muslin/felix/dataplane/foreign"
	"github.com/muslin-net/muslin/felix/dataplane/ipip"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/host"
	"github.com/muslin-net/muslin/felix/policysync"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
	"github.com/muslin-net/muslin/felix/store"
	"github.com/muslin-net/muslin/felix/uplink"
	"github.com/muslin-net/muslin/internal/daemon"
	"github.com/muslin-net/muslin/ipam/lease"
	"github.com/muslin-net/muslin/typha/client"
)

// init keeps the first thread for main; in main itself it is too late, since main may have moved to another thread. The
// first thread stands for the process in /proc, and cannot end: if it were the one that visits a pod's network namespace,
// felix would seem to live there, and would keep the namespace from going with its pod.
func init() { runtime.LockOSThread() }

func main() {
	var cfg config
	daemon.Main("felix", "programs the routes, rules and interfaces of a node", &cfg, func(ctx context.Context, d *daemon.Daemon) error {
		return run(ctx, d, cfg)
	})
}

func run(ctx context.Context, d *daemon.Daemon, cfg config) error {
	daemon.Thrifty(daemon.NodeShare)
	if cfg.Node == "" {
		return fmt.Errorf("setting node: the name of this node is missing; give it by --node")
	}
	ready := readiness(d) // before anything takes time: a daemon of which nothing is known yet counts as ready
	var reporter *uplink.Reporter
	var status *uplink.Status
	var pool *lease.Pool
	var pods *policysync.Server
	severity, err := cfg.severity(d)
	if err != nil {
		return err
	}
	following, err := cfg.following(d)
	if err != nil {
		return err
	}
	var loop *agent.Agent
	following.OnStatus = func(s client.Status) { // another replica, or one that was restarted, may not know the endpoints
		loop.FollowsPods(s.Pods)
		if s.InSync {
			reporter.Again()
			status.Again()
			pool.Ask()
		}
	}
	typha, err := client.New(following)
	if err != nil {
		return fmt.Errorf("typha: %w", err)
	}
	defer typha.Close()
	routes, closeRoutes, err := exchange(cfg, d)
	if err != nil {
		return err
	}
	defer closeRoutes()
	tunl0, probes, err := encapsulator(cfg, d)
	if err != nil {
		return err
	}
	kernel, err := agent.OpenDrivers(tunl0, nil, d.Log)
	if err != nil {
		return fmt.Errorf("%w; felix needs root (CAP_NET_ADMIN) on its node", err)
	}
	defer kernel.Close()

	for _, obstacle := range foreign.Obstacles() {
		d.Log.Warn("others' rules are in the way", "what", obstacle)
	}

	records, found, err := loadEndpoints(cfg.LibDir, d)
	if err != nil {
		return err
	}
	local, gone, err := sift(found, kernel.Links)
	if err != nil {
		return err
	}
	var serve server.Server
	pool, err = openPool(ctx, cfg, typha, local, &serve, d)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	if err := forget(gone, records, pool); err != nil {
		return err
	}
	reserve := uplink.NewReserve(pool, uplink.IPAM{Typha: typha}, d.Log)
	status = uplink.NewStatus(typha, d.Log)
	reporter, bgp, watcher := uplink.NewReporter(typha, d.Log), uplink.NewBGP(routes), host.New(d.Log)
	loop = agent.New(cfg.Node, kernel, bgp, local, agent.Events{
		LocalChanged: reporter.Set,
		MTU:          func(mtu int) { writeMTU(cfg.LibDir, mtu, d) },
		Peers:        watcher.Peers,
		Bearers:      func(interfaces map[string][]string) { saveBearers(cfg.LibDir, interfaces, d) },
		Ready:        ready,
		Trouble:      status.SetTrouble,
		PolicySync:   func(home string) { pods.SetHome(home) },
	}, d.Log)
	pods = policysync.New(loop, d.Log)
	serve.Agent, serve.Pods, serve.Counters = loop, agent.Pods{Links: kernel.Links}, kernel
	serve.Checks = check.Checks{Agent: loop, Checksums: kernel.Checksums}
	serve.IPAM, serve.Records, serve.Releases, serve.Reserve = reserve, records, reserve, pool
	serve.Log, serve.Software = d.Log, daemon.Version()

	d.Metrics.MustRegister(agent.Metrics{Agent: loop, Drivers: kernel}, agent.Alarms{Agent: loop}, reserve, pods)

	can := probes.Probe()
	d.Log.Info("what the kernel can do was tried", "has", can.Has, "lacks", can.Lacks)
	loop.SetCapabilities(ctx, can) // before anything else is told
	loop.SetBearers(ctx, loadBearers(cfg.LibDir, d))

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return loop.Run(ctx) })
	group.Go(func() error {
		return probes.Run(ctx, can, func(c state.Capabilities) {
			loop.SetCapabilities(ctx, c)
			status.SetCapabilities(c.Has)
		})
	})
	group.Go(func() error { return status.Run(ctx) })
	group.Go(func() error { return kernel.Watch(ctx, loop.Wake) })
	group.Go(func() error { return watcher.Run(ctx, func(h state.Host) { loop.SetHost(ctx, h); bgp.Reachable(h) }) })
	group.Go(func() error {
		return typha.Run(ctx, uplink.View{Agent: loop, Server: &serve, Environment: environment(d), Severity: severity})
	})
	group.Go(func() error {
		return bgp.Run(ctx, watcher.Resolve, func(changed []state.Path, known bool, applied func()) {
			loop.SetPaths(ctx, changed, known, applied)
		})
	})
	group.Go(func() error { return reporter.Run(ctx) })
	group.Go(func() error { return pool.Run(ctx) })
	group.Go(func() error { return pods.Run(ctx) })
	group.Go(func() error { return serve.Run(ctx, filepath.Join(cfg.RunDir, "felix.sock")) })
	group.Go(func() error { return serve.RunPlugins(ctx, filepath.Join(cfg.RunDir, "cni.sock")) })
	return group.Wait()
}

// encapsulator opens the driver of IP-in-IP, and says how to find out what the kernel can do.
func encapsulator(cfg config, d *daemon.Daemon) (agent.Encapsulator, agent.Probes, error) {
	backends := map[string]ipip.Backend{"auto": ipip.Auto, "kernel": ipip.Kernel, "bpf": ipip.BPF}
	asked, ok := backends[strings.ToLower(cfg.IPIP)]
	if !ok {
		return nil, agent.Probes{}, fmt.Errorf("setting ipip-driver: %q is none; use Auto, Kernel or BPF", cfg.IPIP)
	}
	driver, err := ipip.New(ipip.Config{Log: d.Log, Backend: asked})
	return driver, agent.Probes{
		VXLAN: func() (string, error) { return "kernel", tunnel.ProbeVXLAN() },
		IPIP: func() (string, error) {
			found, err := driver.Probe()
			if found == ipip.BPF {
				return "tc BPF", err
			}
			return "kernel module", err
		},
		Log: d.Log,
	}, err
}

// exchange is the conversation with bird about routes, or with nobody where there is no bird of ours.
func exchange(cfg config, d *daemon.Daemon) (_ uplink.Exchange, stop func(), _ error) {
	backend, err := api.ParseBackend(cfg.Backend)
	if err != nil {
		return nil, nil, fmt.Errorf("setting backend: %w", err)
	}
	if !backend.BGP() {
		d.Log.Info("no bird on this node: there are no routes by BGP", "backend", backend)
		return uplink.NoBGP{}, func() {}, nil
	}
	speaker, err := api.ParseSpeaker(cfg.Speaker)
	if err != nil {
		return nil, nil, fmt.Errorf("setting speaker: %w", err)
	}
	if speaker == api.SpeakerBIRD2 {
		d.Log.Info("BIRD 2 programs the routes that come by BGP, and learns this node's from the kernel")
		return uplink.NoBGP{}, func() {}, nil
	}
	bird, err := birdclient.New(filepath.Join(cfg.RunDir, "bird.sock"))
	if err != nil {
		return nil, nil, err
	}
	return bird.Routes(d.Log), func() { _ = bird.Close() }, nil
}

// loadEndpoints opens the records of endpoints and reads those that an earlier felix left.
func loadEndpoints(libDir string, d *daemon.Daemon) (*store.Dir[state.Endpoint], map[string]state.Endpoint, error) {
	records, err := store.Open[state.Endpoint](filepath.Join(libDir, "felix", "endpoints"))
	if err != nil {
		return nil, nil, err
	}
	found, err := records.Load()
	if err != nil {
		d.Log.Error("part of the records of endpoints cannot be read; these pods lose their network until they are started anew", "error", err)
	}
	return records, found, nil
}

// openPool opens the reserve of addresses, with the journal that an earlier felix left.
func openPool(ctx context.Context, cfg config, typha *client.Client, local []state.Endpoint, serve *server.Server, d *daemon.Daemon) (*lease.Pool, error) {
	terms := lease.DefaultTerms()
	terms.Max = max(cfg.WarmPool, 0)
	return lease.Open(lease.Config{
		Dir: filepath.Join(cfg.LibDir, "felix", "addresses"), Witness: filepath.Join(cfg.RunDir, "felix-addresses"),
		Terms: terms, Typha: uplink.Authority{Typha: typha}, Living: living(local), Log: d.Log,
		Lost: func(l lease.Lost) {
			if err := serve.Lose(ctx, l.Handle); err != nil {
				d.Log.Error("a pod keeps the network of an address that is another's", "handle", l.Handle, "address", l.Addr, "error", err)
			}
		},
	})
}

// saveBearers keeps where host endpoints were found by their addresses, for the next start: interfaces get theirs late.
func saveBearers(libDir string, interfaces map[string][]string, d *daemon.Daemon) {
	body, err := json.Marshal(interfaces)
	if err == nil {
		err = store.WriteFile(filepath.Join(libDir, bearersFile), body, 0o600)
	}
	if err != nil {
		d.Log.Error("the interfaces of host endpoints cannot be kept for the next start", "error", err)
	}
}

func loadBearers(libDir string, d *daemon.Daemon) map[string][]string {
	var interfaces map[string][]string
	body, err := os.ReadFile(filepath.Join(libDir, bearersFile))
	if err == nil {
		err = json.Unmarshal(body, &interfaces)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.Log.Error("the interfaces of host endpoints from before cannot be read; endpoints that are found by their addresses are protected once these are there", "error", err)
	}
	return interfaces
}

// bearersFile is under the directory that outlives reboots.
const bearersFile = "felix/hosts"

// writeMTU tells CNI plugins the MTU of pods.
func writeMTU(libDir string, mtu int, d *daemon.Daemon) {
	if err := store.WriteFile(filepath.Join(libDir, "mtu"), []byte(strconv.Itoa(mtu)), 0o644); err != nil {
		d.Log.Error("the MTU for pods cannot be written", "error", err)
	}
}

// readiness lets the health of the daemon follow the agent.
func readiness(d *daemon.Daemon) func([]string) {
	part := d.Health.Add("dataplane", 0)
	return func(reasons []string) {
		if len(reasons) == 0 {
			part.Ready()
			return
		}
		part.NotReady(reasons[0])
	}
}
