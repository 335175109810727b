package verb

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-net/muslin/calicoctl/diags"
	"github.com/muslin-net/muslin/calicoctl/table"
)

// diagnosed is a node of which an archive is made: this one.
type diagnosed struct {
	target
	logDir, podLogs string
	libDir          string
	health, metrics map[string]string // of daemons: addresses
}

func nodeDiags(g *globals) *cobra.Command {
	d := diagnosed{health: map[string]string{}, metrics: map[string]string{}}
	health, metrics := make([]string, len(daemons)), make([]string, len(daemons))
	cmd := &cobra.Command{
		Use: "diags", Short: "Pack what is to be known of this node into an archive (needs root)", Args: cobra.NoArgs,
		Long: "Pack what is to be known of this node into an archive: addresses, routes and rules of the kernel, its firewall, a count of\n" +
			"connections, what felix wants beside what there is, BGP sessions and routes, metrics, settings, logs, versions.\n" +
			"Nothing is changed, nothing has to run, and what looks like a secret is left out. What cannot be had is named, with the\n" +
			"reason, in the archive's index.txt. Without root there is less of it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for i, daemon := range daemons {
				d.health[daemon.name], d.metrics[daemon.name] = health[i], metrics[i]
			}
			items := slices.Concat(d.host(g.version), kernel(), d.live(g), d.daemons(), d.logs())
			return collection{prefix: "diags-"}.run(cmd, items)
		},
	}
	f := cmd.Flags()
	d.flags(cmd)
	_ = f.MarkHidden("node") // another node's kernel cannot be seen from here
	f.StringVar(&d.logDir, "log-dir", "/var/log/calico", "directory with logs")
	f.StringVar(&d.podLogs, "pod-log-dir", "/var/log/pods", "directory in which kubelet keeps the logs of containers")
	f.StringVar(&d.libDir, "lib-dir", "/var/lib/calico", "directory of the node's daemons that outlives reboots")
	for i, daemon := range daemons {
		f.StringVar(&health[i], daemon.name+"-health", daemon.health, "where "+daemon.name+" serves health")
		f.StringVar(&metrics[i], daemon.name+"-metrics", daemon.metrics, "where "+daemon.name+" serves metrics, if not there too")
	}
	return cmd
}

// daemons are those that a node may run, with where they serve health and metrics unless told otherwise.
var daemons = []struct{ name, health, metrics string }{
	{"felix", "localhost:9099", "localhost:9091"},
	{"bird", "localhost:9097", "localhost:9097"},
	{"typha", "localhost:9098", "localhost:9093"},
	{"kube-controllers", "localhost:9094", "localhost:9094"},
}

// host is the machine, the programs that run, and what is on its disk.
func (d *diagnosed) host(version string) []diags.Item {
	return []diags.Item{
		{Name: "versions.txt", Title: "versions", Collect: d.versions(version)},
		{Name: "host/host.txt", Title: "host", Collect: d.machine},
		{Name: "host/memory.txt", Title: "memory and load", Collect: diags.Files("/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/pressure/*")},
		{Name: "host/processes.txt", Title: "processes of ours", Collect: processes},
		{Name: "host/modules.txt", Title: "kernel modules", Collect: diags.Files("/proc/modules")},
		{Name: "host/settings.txt", Title: "settings of the kernel (sysctl)", Collect: diags.Files(
			"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/conf/*/forwarding", "/proc/sys/net/ipv4/conf/*/rp_filter",
			"/proc/sys/net/ipv4/conf/*/proxy_arp", "/proc/sys/net/ipv4/conf/*/route_localnet", "/proc/sys/net/ipv6/conf/*/forwarding",
			"/proc/sys/net/ipv6/conf/*/disable_ipv6", "/proc/sys/net/ipv6/conf/*/accept_ra", "/proc/sys/net/ipv6/conf/*/proxy_ndp",
			"/proc/sys/net/ipv[46]/neigh/default/gc_thresh*", "/proc/sys/net/bridge/*", "/proc/sys/net/netfilter/nf_conntrack_*")},
		{Name: "config/cni.txt", Title: "CNI configuration", Collect: diags.Files("/etc/cni/net.d/*.conf", "/etc/cni/net.d/*.conflist")},
		{Name: "config/bird.yaml", Title: "bird's configuration, without passwords", Collect: diags.Tail(filepath.Join(d.libDir, "bird.yaml"), logsMost)},
		{Name: "config/files.txt", Title: "names of our files", Collect: diags.Names(d.libDir, "/run/calico", "/etc/calico", "/etc/cni/net.d", "/opt/cni/bin")},
	}
}

// kernel is what the kernel has been told.
func kernel() []diags.Item {
	item := func(name, title, program string, args ...string) diags.Item {
		return diags.Item{Name: "kernel/" + name, Title: title, Collect: diags.Program(program, args...)}
	}
	return []diags.Item{
		item("links.txt", "links and addresses", "ip", "-details", "-statistics", "address"),
		item("routes4.txt", "routes (IPv4)", "ip", "-details", "-4", "route", "show", "table", "all"),
		item("routes6.txt", "routes (IPv6)", "ip", "-details", "-6", "route", "show", "table", "all"),
		item("rules4.txt", "rules of routing (IPv4)", "ip", "-4", "rule"),
		item("rules6.txt", "rules of routing (IPv6)", "ip", "-6", "rule"),
		item("neighbours.txt", "neighbours", "ip", "-statistics", "neighbour"),
		item("fdb.txt", "forwarding database", "bridge", "fdb"),
		item("tc.txt", "queues", "tc", "-statistics", "qdisc"),
		item("sockets.txt", "sockets", "ss", "-tuanp"),
		item("nftables.txt", "nftables", "nft", "-a", "list", "ruleset"),
		item("iptables4.txt", "iptables (IPv4)", "iptables-save", "-c"),
		item("iptables6.txt", "iptables (IPv6)", "ip6tables-save", "-c"),
		item("iptables4-legacy.txt", "legacy iptables (IPv4)", "iptables-legacy-save", "-c"),
		item("iptables6-legacy.txt", "legacy iptables (IPv6)", "ip6tables-legacy-save", "-c"),
		item("ipsets.txt", "ipsets", "ipset", "list"),
		{Name: "kernel/connections.txt", Title: "connections, counted", Collect: diags.Connections},
		{Name: "kernel/connections-statistics.txt", Title: "statistics of connection tracking", Collect: diags.Files("/proc/net/stat/nf_conntrack")},
		item("log.txt", "log of the kernel", "dmesg", "--ctime"),
	}
}

// live is what the daemons say.
func (d *diagnosed) live(g *globals) []diags.Item {
	const felix, bird = "felix/", "bird/"
	here := []string{
		"--bird-socket", d.birdSocket, "--felix-socket", d.felixSocket, "--node-name-file", d.nameFile, "--typha-name", d.serverName, "--credentials", d.identity,
	}
	for _, address := range d.typha {
		here = append(here, "--typha", address)
	}
	run := func(args ...string) func(context.Context, io.Writer) error { return g.own(append(args, here...)...) }
	return []diags.Item{
		{Name: felix + "kernel.txt", Title: "what felix wants, and what there is", Collect: d.ask(dump)},
		{Name: felix + "endpoints.yaml", Title: "endpoints and their policies", Collect: d.ask(endpoints)},
		{Name: bird + "status.yaml", Title: "BGP status", Collect: d.ask(peers)},
		{Name: bird + "peers.txt", Title: "BGP sessions", Collect: run("bgp", "peers", "-o", "wide")},
		{Name: bird + "routes.txt", Title: "BGP routes", Collect: run("bgp", "routes", "-o", "wide")},
		{Name: bird + "rejected.txt", Title: "BGP routes that are rejected", Collect: run("bgp", "rejected", "--direction", "both")},
		{Name: "typha/views.txt", Title: "views that typha serves", Collect: d.views},
	}
}

// ask asks this node's daemons.
func (t *target) ask(what func(context.Context, live, io.Writer) error) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		return t.withNode(ctx, func(ctx context.Context, l live) error { return what(ctx, l, w) })
	}
}

// dump prints all objects of the kernel as felix wants them and as they are, those first that differ.
func dump(ctx context.Context, l live, w io.Writer) error {
	all, err := l.Dump(ctx)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	for _, same := range []bool{false, true} {
		fmt.Fprintf(out, "%s\n", map[bool]string{false: "# not as wanted", true: "\n# as wanted"}[same])
		for _, e := range all {
			if (e.Desired == e.Actual && e.Error == "") != same {
				continue
			}
			fmt.Fprintf(out, "%s %s\n  wanted: %s\n", e.Section, e.Key, cmp.Or(e.Desired, "-"))
			if !same {
				fmt.Fprintf(out, "  is:     %s\n", cmp.Or(e.Actual, "-"))
			}
			if e.Error != "" {
				fmt.Fprintf(out, "  error:  %s\n", e.Error)
			}
		}
	}
	return out.Flush()
}

func endpoints(ctx context.Context, l live, w io.Writer) error {
	all, err := l.Endpoints(ctx, "")
	if err != nil {
		return err
	}
	report := make([]endpointReport, len(all))
	for i, e := range all {
		report[i] = endpointReportOf(e)
	}
	return show(w, "yaml", report, nil)
}

// views are the nodes that a typha serves, and how far each is.
func (t *target) views(ctx context.Context, w io.Writer) error {
	c, err := t.operator()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, farAnswer)
	defer cancel()
	all, err := c.Followers(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"NODE", "VIEW", "ITEMS", "DIRTY", "SENT", "RECEIVED", "APPLIED", "SOFTWARE", "FAILURES"}}
	for _, f := range all {
		rows = append(rows, []string{
			f.Node, f.View, number(f.Items), number(f.Dirty), number(f.Sent), number(f.Received), number(f.Applied), dash(f.Software), dash(strings.Join(f.Failures, "; ")),
		})
	}
	return table.Rows(w, rows)
}

// daemons is what daemons say over HTTP.
func (d *diagnosed) daemons() []diags.Item {
	var out []diags.Item
	for _, daemon := range daemons {
		name, health := daemon.name, "http://"+d.health[daemon.name]
		out = append(out,
			diags.Item{Name: name + "/health.txt", Title: "health of " + name, Collect: diags.URL(health + "/readiness")},
			diags.Item{Name: name + "/metrics.txt", Title: "metrics of " + name, Collect: d.metricsOf(name)})
	}
	return out
}

func (d *diagnosed) metricsOf(daemon string) func(context.Context, io.Writer) error {
	return diags.URL("http://"+d.health[daemon]+"/metrics", "http://"+d.metrics[daemon]+"/metrics")
}

// versions are those of the programs that run, which their metrics tell, and of this one.
func (d *diagnosed) versions(own string) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		fmt.Fprintf(w, "calicoctl %s %s\n", own, runtime.Version())
		for _, daemon := range daemons {
			var text bytes.Buffer
			if err := d.metricsOf(daemon.name)(ctx, &text); err != nil {
				fmt.Fprintf(w, "%s does not say: it does not run on this node, or serves neither health nor metrics\n", daemon.name)
				continue
			}
			for line := range strings.Lines(text.String()) {
				if strings.HasPrefix(line, "build_info{") {
					fmt.Fprintf(w, "%s %s", daemon.name, line)
				}
			}
		}
		return nil
	}
}

// machine says which machine this is, and when.
func (d *diagnosed) machine(ctx context.Context, w io.Writer) error {
	name, err := os.Hostname()
	fmt.Fprintf(w, "time %s\nhost %s\nnode %s\nprocessors %d\n", time.Now().Format(time.RFC3339), name, dash(d.ownName()), runtime.NumCPU())
	return errors.Join(err, diags.Files("/proc/version", "/proc/cmdline", "/etc/os-release")(ctx, w))
}

// ours are the programs that are looked for, as the kernel names them.
var ours = []string{"felix", "bird", "confd", "typha", "calico-node", "kube-controllers", "kube-controller", "csi-node-driver", "kubelet", "containerd", "dockerd", "crio", "etcd"}

// processes are the ones of ours that run, with what they hold. Their arguments and environment are left out.
func processes(_ context.Context, w io.Writer) error {
	rows := [][]string{{"PID", "PROGRAM", "STATE", "THREADS", "RSS", "FILES"}}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue // it has ended
		}
		field := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			field[key] = strings.TrimSpace(value)
		}
		if !slices.Contains(ours, field["Name"]) {
			continue
		}
		files, _ := os.ReadDir(filepath.Join(dir, "fd")) // which may not be ours to see
		rows = append(rows, []string{filepath.Base(dir), field["Name"], field["State"], field["Threads"], dash(field["VmRSS"]), strconv.Itoa(len(files))})
	}
	return errors.Join(err, table.Rows(w, rows))
}

// How much of each log there is, and of how many lines of the journal.
const (
	logsMost    = 16 << 20
	journalMost = "20000"
)

// absent stands for what there is nothing of.
func absent(name, title string, why error) diags.Item {
	return diags.Item{Name: name, Title: title, Collect: func(context.Context, io.Writer) error { return why }}
}

// logs are those of the log directory, of our containers, and of the journal.
func (d *diagnosed) logs() []diags.Item {
	var out []diags.Item
	found := func(prefix, root, file string) {
		rest, err := filepath.Rel(root, file)
		if err == nil {
			out = append(out, diags.Item{Name: "logs/" + prefix + filepath.ToSlash(rest), Title: "log " + file, Collect: diags.Tail(file, logsMost)})
		}
	}
	err := filepath.WalkDir(d.logDir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			found("", d.logDir, path)
		}
		return err
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s is empty", d.logDir)
	}
	if err != nil {
		out = append(out, absent("logs/none.txt", "logs", err))
	}
	containers, err := filepath.Glob(filepath.Join(d.podLogs, "*_calico-*", "*", "*.log"))
	if err == nil && len(containers) == 0 {
		err = fmt.Errorf("there are none of calico's in %s", d.podLogs)
	}
	for _, file := range containers {
		found("pods/", d.podLogs, file)
	}
	if err != nil {
		out = append(out, absent("logs/pods/none.txt", "logs of containers", err))
	}
	journal := []string{"--no-pager", "--lines", journalMost}
	for _, unit := range []string{"calico-node", "calico-felix", "calico-bird", "calico-confd", "calico-typha", "felix", "bird", "confd", "typha", "kubelet", "containerd"} {
		journal = append(journal, "--unit", unit)
	}
	return append(out, diags.Item{Name: "logs/journal.txt", Title: "journal", Collect: diags.Program("journalctl", journal...)})
}
