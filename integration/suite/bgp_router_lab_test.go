//go:build lab

package suite

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// vendor is a BGP daemon that data centres run on their routers.
type vendor string

const (
	vendorBIRD vendor = "BIRD"
	vendorFRR  vendor = "FRR"
)

// vendors are all.
var vendors = []vendor{vendorBIRD, vendorFRR}

// frrDir is where Debian puts the daemons of FRR.
const frrDir = "/usr/lib/frr/"

// daemons are what a vendor's router runs, in the order in which they start.
func (v vendor) daemons() []string {
	if v == vendorBIRD {
		return []string{"bird"}
	}
	return []string{"zebra", "bgpd"}
}

// program is where one of the vendor's programs is on this machine; in the lab's PATH a bird is ours. It fails the test where
// it is missing.
func (v vendor) program(t *testing.T, name string) string {
	t.Helper()
	if slices.Contains(v.daemons(), name) && v == vendorFRR {
		name = frrDir + name
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s as a real peer, and %s is missing; run integration/deps/install test", v, name)
	}
	return path
}

// router is a machine of the lab on which a vendor's daemon runs: the router between the racks, or any other.
type router struct {
	c      *cluster
	vendor vendor
	where  string // the machine
	dir    string // of its files, on that machine
	parts  map[string]*daemon
	asker  string // the program that asks the daemon
	died   bool   // it was killed, and comes back to kernels and peers that remember it
}

// daemon is a running program.
type daemon struct {
	signals chan os.Signal
	ended   chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

// router starts a vendor's daemon with a configuration. It ends with the test.
func (c *cluster) router(t *testing.T, v vendor, where, conf string) *router {
	t.Helper()
	r := &router{c: c, vendor: v, where: where, dir: "/run/" + strings.ToLower(string(v)) + "-" + where, parts: map[string]*daemon{}}
	r.asker = v.program(t, map[vendor]string{vendorBIRD: "birdc", vendorFRR: "vtysh"}[v])
	// FRR's daemons give up root, and have to write here.
	c.sh(t, where, fmt.Sprintf("rm -rf %[1]s; mkdir -p %[1]s; : >%[1]s/zebra.conf; ! id frr >/dev/null 2>&1 || chown -R frr: %[1]s", r.dir))
	r.configure(t, conf)
	t.Cleanup(func() {
		if t.Failed() {
			summary := r.ask(map[vendor]string{vendorBIRD: "show protocols", vendorFRR: "show bgp summary"}[v])
			t.Logf("%s on %s:\n%s\n%s", v, where, r.logs(), summary)
		}
		r.stop(t, syscall.SIGKILL)
	})
	r.start(t)
	return r
}

// configure writes the configuration; it takes effect with the next start.
func (r *router) configure(t *testing.T, conf string) {
	t.Helper()
	var said bytes.Buffer
	code, err := r.c.Exec(within(t, patience), r.where, lab.Command{
		Args: []string{"sh", "-c", "cat >" + r.dir + "/conf && chmod 644 " + r.dir + "/conf"}, Stdin: strings.NewReader(conf), Stderr: &said,
	})
	require.NoError(t, err)
	require.Zero(t, code, said.String())
}

// start starts what does not run, and returns when it answers. A configuration that the daemon does not understand fails the test.
func (r *router) start(t *testing.T) {
	t.Helper()
	for _, name := range r.vendor.daemons() {
		if r.parts[name] == nil {
			r.parts[name] = r.c.daemon(r.where, r.command(t, name)...)
		}
		if name == "zebra" { // bgpd tries again after 10 s only
			r.c.sh(t, r.where, "until [ -S "+r.dir+"/zserv.api ]; do sleep 0.01; done")
		}
	}
	eventually(t, patience, func() string {
		question, answer := "show status", "Daemon is up"
		if r.vendor == vendorFRR {
			question, answer = "show bgp vrfs", "Total number of VRFs"
		}
		if out := r.ask(question); !strings.Contains(out, answer) {
			return fmt.Sprintf("%s does not answer: %s%s", r.vendor, out, r.logs())
		}
		return ""
	})
	require.NotContains(t, r.logs(), "on config line")
}

func (r *router) command(t *testing.T, name string) []string {
	t.Helper()
	program := r.vendor.program(t, name)
	if r.vendor == vendorBIRD {
		args := []string{program, "-f", "-c", r.dir + "/conf", "-s", r.dir + "/ctl", "-P", r.dir + "/pid"}
		if r.died {
			args = append(args, "-R") // it keeps the kernel's routes until its peers have told it all
		}
		return args
	}
	conf := "/conf"
	if name == "zebra" {
		conf = "/zebra.conf"
	}
	return []string{
		program, "-f", r.dir + conf, "-i", r.dir + "/" + name + ".pid", "-z", r.dir + "/zserv.api", "--vty_socket", r.dir, "-P", "0", "--log", "stdout",
	}
}

// stop ends all daemons with a signal and waits until they are gone.
func (r *router) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	for name, d := range r.parts {
		d.end(t, name, sig)
	}
	clear(r.parts)
}

// kill ends the daemon that speaks BGP, as a crash does. What programs the kernel stays.
func (r *router) kill(t *testing.T) {
	t.Helper()
	name := r.vendor.daemons()[len(r.vendor.daemons())-1]
	r.parts[name].end(t, name, syscall.SIGKILL)
	delete(r.parts, name)
	r.died = true
}

// restart ends all daemons and starts them with another configuration, and nothing in the kernel.
func (r *router) restart(t *testing.T, conf string) {
	t.Helper()
	r.stop(t, syscall.SIGTERM)
	r.died = false
	r.c.sh(t, r.where, "rm -f "+r.dir+"/zserv.api; ip route flush proto bird; ip -6 route flush proto bird; ip route flush proto bgp; ip -6 route flush proto bgp")
	r.configure(t, conf)
	r.start(t)
}

// ask has the daemon answer a question, in its own words. To FRR several may be said, each in the mode to which the one before it
// leads.
func (r *router) ask(words string, more ...string) string {
	args := append([]string{r.asker, "-s", r.dir + "/ctl"}, strings.Fields(words)...)
	if r.vendor == vendorFRR {
		args = []string{r.asker, "--vty_socket", r.dir, "-c", words}
		for _, w := range more {
			args = append(args, "-c", w)
		}
	}
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := r.c.Exec(ctx, r.where, lab.Command{Args: args, Stdout: &out, Stderr: &out}); err != nil {
		return err.Error()
	}
	return out.String()
}

func (r *router) logs() string {
	var all strings.Builder
	for name, d := range r.parts {
		d.mu.Lock()
		text := d.log.Bytes()
		fmt.Fprintf(&all, "%s: %s\n", name, text[max(0, len(text)-logTail):])
		d.mu.Unlock()
	}
	return all.String()
}

// daemon runs a program on a machine until it is ended, or the lab is, and keeps what it says.
func (c *cluster) daemon(where string, args ...string) *daemon {
	return c.pipe(where, nil, args...)
}

// pipe is daemon with the output going elsewhere.
func (c *cluster) pipe(where string, out io.Writer, args ...string) *daemon {
	d := &daemon{signals: make(chan os.Signal), ended: make(chan struct{})}
	if out == nil {
		out = d
	}
	go func() {
		defer close(d.ended)
		if _, err := c.Exec(context.Background(), where, lab.Command{Args: args, Stdout: out, Stderr: d, Signals: d.signals}); err != nil {
			fmt.Fprintln(d, err)
		}
	}()
	return d
}

// Write keeps what the program says.
func (d *daemon) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(b)
}

func (d *daemon) end(t *testing.T, name string, sig syscall.Signal) {
	t.Helper()
	select {
	case d.signals <- sig:
	case <-d.ended:
		return // on its own; the test has seen that it does not answer
	}
	select {
	case <-d.ended:
	case <-time.After(patience):
		assert.Fail(t, "it does not end", "%s by %s", name, sig)
	}
}

// path is a way to a prefix as a router sees it.
type path struct {
	NextHop     string
	ASPath      string // "64512 64513"
	Communities string // "64512:77 64512:1:2", sorted
}

// paths are all ways to a prefix that the router has heard of, in an order that does not change.
func (r *router) paths(t *testing.T, prefix netip.Prefix) (list []path) {
	t.Helper()
	if r.vendor == vendorFRR {
		list = r.pathsOfFRR(t, prefix)
	} else {
		list = pathsOfBIRD(r.ask("show route for " + prefix.String() + " all"))
	}
	slices.SortFunc(list, func(a, b path) int { return strings.Compare(a.NextHop, b.NextHop) })
	return list
}

var birdPath = regexp.MustCompile(`(unicast|unreachable|blackhole) \[`)

func pathsOfBIRD(text string) (list []path) {
	for line := range strings.SplitSeq(text, "\n") {
		if birdPath.MatchString(line) {
			list = append(list, path{})
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || len(list) == 0 {
			continue
		}
		p := &list[len(list)-1]
		switch key {
		case "BGP.next_hop":
			p.NextHop = strings.Fields(value)[0]
		case "BGP.as_path":
			p.ASPath = value
		case "BGP.community", "BGP.large_community":
			value = strings.NewReplacer(", ", ":", ",", ":", "(", "", ")", "").Replace(value)
			p.Communities = sorted(p.Communities + " " + value)
		}
	}
	return slices.DeleteFunc(list, func(p path) bool { return p.NextHop == "" }) // statics of its own
}

func sorted(words string) string {
	list := strings.Fields(words)
	slices.Sort(list)
	return strings.Join(list, " ")
}

func (r *router) pathsOfFRR(t *testing.T, prefix netip.Prefix) (list []path) {
	t.Helper()
	family := "ipv4"
	if prefix.Addr().Is6() {
		family = "ipv6"
	}
	type words struct{ String string }
	var said struct {
		Paths []struct {
			ASPath                    words
			Community, LargeCommunity words
			Nexthops                  []struct {
				IP   string
				Used bool
			}
		}
	}
	out := r.ask("show bgp " + family + " unicast " + prefix.String() + " json")
	if strings.TrimSpace(out) == "" {
		return nil
	}
	require.NoError(t, json.Unmarshal([]byte(out), &said), out)
	for _, p := range said.Paths {
		one := path{ASPath: p.ASPath.String, Communities: sorted(p.Community.String + " " + p.LargeCommunity.String)}
		if one.ASPath == "Local" {
			one.ASPath = ""
		}
		for _, h := range p.Nexthops {
			if h.Used || len(p.Nexthops) == 1 {
				one.NextHop = h.IP
			}
		}
		list = append(list, one)
	}
	return list
}

// keepsFor tells whether the router keeps the routes of a peer that is away and expected back.
func (r *router) keepsFor(peer string) bool {
	if r.vendor == vendorFRR {
		family := map[bool]string{false: "ipv4", true: "ipv6"}[isV6(peer)]
		for line := range strings.SplitSeq(r.ask("show bgp "+family+" unicast"), "\n") {
			if strings.HasPrefix(line, "S") && !strings.HasPrefix(line, "Status") {
				return true
			}
		}
		return false
	}
	for block := range strings.SplitSeq(r.ask("show protocols all"), "\n\n") {
		if strings.Contains(block, "Neighbor address: "+peer+"\n") {
			return strings.Contains(block, "graceful restart active")
		}
	}
	return false
}

// nextHops are those of the paths.
func nextHops(list []path) (hops []string) {
	for _, p := range list {
		hops = append(hops, p.NextHop)
	}
	return hops
}
