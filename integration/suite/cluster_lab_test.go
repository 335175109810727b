//go:build lab

package suite

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/integration/vm"
)

// envBin says where the binaries are, if not where make build puts them.
const envBin = "MUSLIN_BIN"

// glance is how often a test looks for what should come at once.
const glance = 20 * time.Millisecond

// patience bounds every wait. Nothing hangs on it but how soon a failure is told.
var patience = patient(time.Minute)

// patient is a wait that is long enough in an emulated kernel, too.
func patient(d time.Duration) time.Duration {
	if vm.Inside() {
		return 4 * d
	}
	return d
}

// logTail is how much of each log a failed test shows, in bytes.
const logTail = 4000

// emulated is how many times as long things may take in the second kernel, whose one processor is emulated, than in the
// machine's own.
const emulated = 20

// bound is how long may take what takes at most d in the machine's own kernel.
func bound(d time.Duration) time.Duration {
	if vm.Inside() {
		return emulated * d
	}
	return d
}

// bin is the directory of the binaries.
func bin(t *testing.T) string {
	t.Helper()
	dir := os.Getenv(envBin)
	if dir == "" {
		dir = "../../bin"
	}
	dir, err := filepath.Abs(dir)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "lab"), "run make build first")
	return dir
}

// cluster is a lab that runs the demo's topology or one like it. Its methods fail the test rather than return errors.
type cluster struct {
	*lab.Lab
	topology lab.Topology
	mode     lab.Mode
}

// up brings the demo's cluster up, with one pool in the given mode, and changed as the test wishes. It waits until its routes
// are there, and removes it at the end.
// If the test failed, the ends of all logs are shown.
func up(t *testing.T, name string, mode lab.Mode, change func(*lab.Topology)) *cluster {
	t.Helper()
	topology, err := lab.DemoTopology()
	require.NoError(t, err)
	topology.Pools = []lab.Pool{lab.NewPool(netip.MustParsePrefix("192.168.0.0/16")).WithMode(mode)}
	if change != nil {
		change(&topology)
	}
	c := launch(t, name, topology)
	c.mode = mode
	require.NoError(t, c.AwaitPools(within(t, patience), topology))
	c.awaitSessions(t)
	return c
}

// launch brings a lab up, and down at the end of the test, with the end of its logs if that failed.
func launch(t *testing.T, name string, topology lab.Topology) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "suite")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	l, err := lab.Up(within(t, patient(3*time.Minute)), lab.Options{
		Name: name, StateDir: filepath.Join(dir, "state"), BinDir: bin(t), Topology: topology, Attached: true,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		assert.NoError(t, l.Down(context.Background()))
	})
	return &cluster{Lab: l, topology: topology}
}

func showLogs(t *testing.T, l *lab.Lab) {
	st, err := l.Status(context.Background())
	if err != nil {
		return
	}
	for _, p := range st.Processes {
		if text, err := os.ReadFile(p.Log); err == nil && len(text) > 0 {
			t.Logf("%s on %s (%s, started %d times):\n%s", p.Name, p.Node, p.State, p.Starts, text[max(0, len(text)-logTail):])
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually looks until what returns nothing; what it last returned is shown if that does not come in time. It tells how
// long it took.
func eventually(t *testing.T, d time.Duration, what func() string) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		looked := time.Now()
		missing := what()
		look := time.Since(looked)
		took := time.Since(began)
		if missing == "" {
			return took
		}
		if took > d {
			require.Failf(t, "it did not come", "within %s: %s", d, missing)
		}
		select {
		case <-t.Context().Done():
			require.Fail(t, "the test was interrupted", missing)
		case <-time.After(max(glance, look)): // half of the time, at least, is for what is waited for
		}
	}
}

// run runs a program that must succeed.
func (c *cluster) run(t *testing.T, where string, args ...string) string {
	t.Helper()
	out, err := c.Run(within(t, patience), where, args...)
	require.NoError(t, err)
	return out
}

// sh runs a shell command that must succeed.
func (c *cluster) sh(t *testing.T, where, command string) string {
	t.Helper()
	return c.run(t, where, "sh", "-ec", command)
}

// apply stores a resource as a user does.
func (c *cluster) apply(t *testing.T, doc string) {
	t.Helper()
	require.NoError(t, c.applies(t, doc))
}

// applies is apply where no test may fail at once.
func (c *cluster) applies(t *testing.T, doc string) error {
	t.Helper()
	said := &strings.Builder{}
	code, err := c.Exec(within(t, patience), "master", lab.Command{
		Args: []string{"calicoctl", "apply", "-f", "-"}, Stdin: strings.NewReader(doc), Stderr: said,
	})
	if err == nil && code != 0 {
		err = errors.New(said.String())
	}
	return err
}

func (c *cluster) kill(t *testing.T, v victim) {
	t.Helper()
	require.NoError(t, c.Kill(within(t, patience), v.node, v.process))
}

func (c *cluster) start(t *testing.T, v victim) {
	t.Helper()
	require.NoError(t, c.Start(within(t, patience), v.node, v.process))
}

// victim is a process to kill.
type victim struct{ node, process string }

func (v victim) String() string { return v.process + " on " + v.node }

// add makes a pod that must come up, and returns its address and the name of its host side.
func (c *cluster) add(t *testing.T, name, node string) lab.PodStatus {
	t.Helper()
	st, err := c.PodAdd(within(t, patience), lab.Pod{Name: name, Node: node})
	require.NoError(t, err)
	require.NotEmpty(t, st.Addresses)
	return st
}

// addInTime makes a pod as a container runtime does: it tries again.
func (c *cluster) addInTime(t *testing.T, name, node string) (st lab.PodStatus) {
	t.Helper()
	eventually(t, patience, func() string {
		var err error
		if st, err = c.PodAdd(within(t, patience), lab.Pod{Name: name, Node: node}); err != nil {
			return err.Error()
		}
		return ""
	})
	return st
}

func (c *cluster) del(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, c.PodDel(within(t, patience), name))
}

// pod returns what the lab knows of a pod.
func (c *cluster) pod(t *testing.T, name string) lab.PodStatus {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Pods {
		if p.ID == name {
			return p
		}
	}
	require.Failf(t, "no such pod", "%s", name)
	return lab.PodStatus{}
}

func (c *cluster) address(t *testing.T, name string) netip.Addr {
	t.Helper()
	return c.pod(t, name).Addresses[0]
}

// log is the output of a process so far.
func (c *cluster) log(t *testing.T, v victim) string {
	t.Helper()
	text, err := os.ReadFile(c.LogPath(v.node, v.process))
	require.NoError(t, err)
	return string(text)
}

// reachable probes from everyone to all pods and requires what the mode promises.
func (c *cluster) reachable(t *testing.T) {
	t.Helper()
	ctx := within(t, 2*patience)
	require.NoError(t, c.AwaitRoutes(ctx, c.topology, c.mode))
	want, err := c.Expect(ctx, c.mode)
	require.NoError(t, err)
	m, err := c.Matrix(ctx, want)
	require.NoError(t, err)
	require.Empty(t, m.Wrong(want))
}

// awaitSessions waits until every node has a session with every other one, over each of its families.
func (c *cluster) awaitSessions(t *testing.T) {
	t.Helper()
	sessions := len(c.topology.Nodes[0].Addresses) * (len(c.topology.Nodes) - 1)
	for _, n := range c.topology.Nodes {
		eventually(t, patience, func() string {
			status := []string{"calicoctl", "node", "status"}
			if n.Speaker == lab.SpeakerBIRD2 {
				status = birdc("show", "protocols")
			}
			out, err := c.Run(within(t, patience), n.Name, status...)
			if err != nil {
				return err.Error()
			}
			if got := strings.Count(out, "Established"); got != sessions {
				return n.Name + " has other sessions:\n" + out
			}
			return ""
		})
	}
}

// awaitReady waits until felix and bird of a node say that they are ready.
func (c *cluster) awaitReady(t *testing.T, node string) {
	t.Helper()
	eventually(t, patience, func() string {
		if _, err := c.Run(within(t, patience), node, "calico-node", "-felix-ready", "-bird-ready"); err != nil {
			return err.Error()
		}
		return ""
	})
}

var inUse = regexp.MustCompile(`\| IP Pool +\| \S+ +\| \d+ +\| (\d+) \(`)

// addressesInUse is what calicoctl says of the first pool.
func (c *cluster) addressesInUse(t *testing.T) string {
	t.Helper()
	out := c.run(t, "master", "calicoctl", "ipam", "show")
	m := inUse.FindStringSubmatch(out)
	require.NotNil(t, m, out)
	return m[1]
}

// awaitStored waits until the datastore holds exactly the pods that are there: their endpoints, and of the first pool an address for
// each that has one of it. Where there is a tunnel each node has an address besides.
func (c *cluster) awaitStored(t *testing.T) {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	want := map[string]bool{}
	addresses := 0
	for _, p := range st.Pods {
		want[p.Name+" "+p.Addresses[0].String()+"/32"] = true
		if c.topology.Pools[0].CIDR.Contains(p.Addresses[0]) {
			addresses++
		}
	}
	if overhead[c.mode].device != "" {
		addresses += len(st.Nodes)
	}
	eventually(t, patience, func() string {
		got := c.run(t, "master", "calicoctl", "get", "workloadendpoints")
		rows := strings.Split(strings.TrimSpace(got), "\n")[1:]
		for _, row := range rows {
			if f := strings.Fields(row); len(f) < 4 || !want[f[0]+" "+f[2]] && !want[f[1]+" "+f[3]] && !want[f[0]+" "+f[3]] {
				return "there is an endpoint of a pod that is not there: " + row
			}
		}
		if len(rows) != len(want) {
			return "an endpoint is missing:\n" + got
		}
		if n := c.addressesInUse(t); n != itoa(addresses) {
			return n + " addresses are in use, not " + itoa(addresses) + "\n" + c.sh(t, "master", "calicoctl ipam check --show-all-ips || true")
		}
		return ""
	})
}
