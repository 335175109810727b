//go:build lab

package main_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// router is a vendor's BGP daemon, with BFD, on a machine. It announces prefixes to one node of ours.
type router interface {
	// bfd is what it says of its BFD sessions.
	bfd() string
	// bgp is what it says of its routes.
	bgp() string
	// fresh tells whether it has a prefix of ours that is not kept from before a restart.
	fresh(prefix string) bool
	// signal sends a signal to all its processes.
	signal(t *testing.T, s syscall.Signal)
	// timers changes the BFD interval while it runs.
	timers(t *testing.T, ms int)
	// withdraw ends BFD in order.
	withdraw(t *testing.T)
}

// terms are what a router is configured with.
type terms struct {
	own, node netip.Addr
	as        int
	interval  int // of BFD, in milliseconds; 0: no BFD
	multihop  bool
	prefix    string
	prepend   bool // longer AS path
	many      int  // prefixes beside, of BIRD's: 20.x.y.z/32
}

func (c *terms) bits() int {
	if c.own.Is6() {
		return 64
	}
	return 24
}

type birdRouter struct {
	ns, dir string
	terms   terms
	process *os.Process
}

func (w *world) birdRouter(name string, c terms) router {
	w.t.Helper()
	binary, err := exec.LookPath("bird")
	if err != nil {
		w.t.Fatal("this test needs BIRD 2; install the package bird2")
	}
	r := &birdRouter{ns: w.machine(name, netip.PrefixFrom(c.own, c.bits())), dir: w.t.TempDir(), terms: c}
	r.write(w.t, c.interval)
	process := exec.Command("ip", "netns", "exec", r.ns, binary, "-f", "-c", r.dir+"/conf", "-s", r.dir+"/ctl", "-P", r.dir+"/pid")
	require.NoError(w.t, process.Start())
	r.process = process.Process
	w.t.Cleanup(func() { _ = r.process.Kill(); _ = process.Wait() })
	return r
}

func (r *birdRouter) write(t *testing.T, interval int) {
	t.Helper()
	c := r.terms
	family, hops, export, bfd := "ipv4", "", "", ""
	if c.own.Is6() {
		family = "ipv6"
	}
	if c.multihop {
		hops = "multihop 4;"
	}
	if c.prepend {
		export = fmt.Sprintf("bgp_path.prepend(%[1]d); bgp_path.prepend(%[1]d);", c.as)
	}
	if interval > 0 {
		bfd = "bfd on;"
	}
	var many strings.Builder
	for i := range c.many {
		fmt.Fprintf(&many, "route 20.%d.%d.%d/32 blackhole;\n", i>>16, i>>8&255, i&255)
	}
	// BIRD is left its 5 s before it dials. Should both ends dial in the same moment after a restart of ours, it takes our connection,
	// which comes in beside the session that has just come up, for a second restart, and forgets our routes as RFC 4724 has it.
	conf := fmt.Sprintf(`
router id 10.0.0.9;
log "%[1]s/log" all;
protocol device {}
protocol bfd {
  interface "*" { interval %[2]d ms; multiplier 3; };
  multihop { interval %[2]d ms; multiplier 3; };
}
protocol static { %[3]s; route %[5]s blackhole; %[11]s }
protocol bgp muslin {
  local %[6]s as %[4]d;
  neighbor %[7]s as 64512;
  %[8]s %[9]s
  graceful restart on;
  connect retry time 2; error wait time 1, 2;
  %[3]s { import all; export filter { %[10]s accept; }; };
}
`, r.dir, max(interval, 1), family, c.as, c.prefix, c.own, c.node, hops, bfd, export, many.String())
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "conf"), []byte(conf), 0o600))
}

func (r *birdRouter) ask(words ...string) string {
	out, _ := exec.Command("birdc", append([]string{"-s", r.dir + "/ctl"}, words...)...).CombinedOutput()
	return string(out)
}

func (r *birdRouter) bfd() string { return r.ask("show", "bfd", "sessions") }
func (r *birdRouter) bgp() string { return r.ask("show", "route", "all", "protocol", "muslin") }
func (r *birdRouter) fresh(prefix string) bool {
	session := r.ask("show", "protocols", "all", "muslin")
	return strings.Contains(r.bgp(), prefix) && strings.Contains(session, "Established") && !strings.Contains(session, "graceful restart active")
}

func (r *birdRouter) signal(t *testing.T, s syscall.Signal) { require.NoError(t, r.process.Signal(s)) }

func (r *birdRouter) timers(t *testing.T, ms int) {
	r.write(t, ms)
	require.Contains(t, r.ask("configure"), "Reconfigured")
}

func (r *birdRouter) withdraw(t *testing.T) {
	r.write(t, 0)
	require.Contains(t, r.ask("configure"), "Reconfigur")
}

type frrRouter struct {
	ns, dir   string
	terms     terms
	processes []*os.Process
}

func (w *world) frrRouter(name string, c terms) router {
	w.t.Helper()
	r := &frrRouter{ns: w.machine(name, netip.PrefixFrom(c.own, c.bits())), terms: c}
	var err error
	r.dir, err = os.MkdirTemp("", "frr") // FRR gives up root, and cannot enter the test's own directory
	require.NoError(w.t, err)
	w.t.Cleanup(func() { os.RemoveAll(r.dir) })
	require.NoError(w.t, os.Chmod(r.dir, 0o777))
	family, hops := "ipv4", ""
	if c.own.Is6() {
		family = "ipv6"
	}
	if c.multihop {
		hops = fmt.Sprintf(" neighbor %s ebgp-multihop 4\n", c.node)
	}
	conf := fmt.Sprintf(`
router bgp %[1]d
 bgp router-id 10.0.0.8
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 bgp graceful-restart
 timers bgp 30 90
 neighbor %[2]s remote-as 64512
 neighbor %[2]s timers connect 2
 neighbor %[2]s bfd profile quick
%[3]s address-family %[4]s unicast
  network %[5]s
  neighbor %[2]s activate
 exit-address-family
`, c.as, c.node, hops, family, c.prefix)
	require.NoError(w.t, os.WriteFile(r.dir+"/conf", []byte(conf), 0o644))
	profile := fmt.Sprintf("bfd\n profile quick\n  detect-multiplier 3\n  receive-interval %[1]d\n  transmit-interval %[1]d\n", c.interval)
	require.NoError(w.t, os.WriteFile(r.dir+"/bfd", []byte(profile), 0o644))
	require.NoError(w.t, os.WriteFile(r.dir+"/empty", nil, 0o644))
	for _, daemon := range []string{"zebra", "bfdd", "bgpd"} {
		args := []string{
			"netns", "exec", r.ns, "/usr/lib/frr/" + daemon, "-f", r.dir + "/empty", "-i", r.dir + "/" + daemon + ".pid",
			"-z", r.dir + "/zserv.api", "--vty_socket", r.dir, "-P", "0", "--log", "stdout",
		}
		switch daemon {
		case "bfdd":
			args[5] = r.dir + "/bfd"
			args = append(args, "--bfdctl", r.dir+"/bfdd.sock")
		case "bgpd":
			args[5] = r.dir + "/conf"
		}
		process := exec.Command("ip", args...)
		out := &strings.Builder{}
		process.Stdout, process.Stderr = out, out
		require.NoError(w.t, process.Start(), "this test needs FRR; install the package frr")
		r.processes = append(r.processes, process.Process)
		w.t.Cleanup(func() {
			_ = process.Process.Kill()
			_ = process.Wait()
			if w.t.Failed() {
				w.t.Logf("%s: %s", daemon, out)
			}
		})
		if daemon == "zebra" {
			soon(w.t, "zebra runs", func() bool { _, err := os.Stat(r.dir + "/zserv.api"); return err == nil })
		}
		soon(w.t, daemon+" runs", func() bool { _, err := os.Stat(r.dir + "/" + daemon + ".vty"); return err == nil })
	}
	return r
}

func (r *frrRouter) ask(words ...string) string {
	args := []string{"netns", "exec", r.ns, "vtysh", "--vty_socket", r.dir}
	for _, line := range words {
		args = append(args, "-c", line)
	}
	out, _ := exec.Command("ip", args...).CombinedOutput()
	return string(out)
}

func (r *frrRouter) bfd() string {
	// In a line, as BIRD has it.
	return regexp.MustCompile(`\s+`).ReplaceAllString(r.ask("show bfd peers"), " ")
}

func (r *frrRouter) bgp() string {
	if r.terms.own.Is6() {
		return r.ask("show bgp ipv6 unicast")
	}
	return r.ask("show bgp ipv4 unicast")
}

func (r *frrRouter) fresh(prefix string) bool {
	return regexp.MustCompile(`(?m)^\*> +` + regexp.QuoteMeta(prefix) + " ").MatchString(r.bgp())
}

func (r *frrRouter) signal(t *testing.T, s syscall.Signal) {
	for _, p := range r.processes {
		require.NoError(t, p.Signal(s))
	}
}

func (r *frrRouter) timers(t *testing.T, ms int) {
	out := r.ask("configure terminal", "bfd", "profile quick", fmt.Sprintf("receive-interval %d", ms), fmt.Sprintf("transmit-interval %d", ms))
	require.NotContains(t, out, "nknown")
}

func (r *frrRouter) withdraw(t *testing.T) {
	out := r.ask("configure terminal", fmt.Sprintf("router bgp %d", r.terms.as), fmt.Sprintf("no neighbor %s bfd", r.terms.node))
	require.NotContains(t, out, "nknown")
}
