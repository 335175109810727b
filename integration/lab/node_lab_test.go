//go:build lab

package lab

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNodesAreMachinesOfTheirOwn(t *testing.T) {
	l := up(t, Options{Name: "nodes", Topology: bare(t)})
	ctx := testContext(t)

	out, err := l.Run(ctx, "worker-3", "ip", "-o", "-4", "addr", "show", "ens5")
	require.NoError(t, err)
	assert.Contains(t, out, "10.30.1.66/24")
	out, err = l.Run(ctx, "worker-3", "ip", "route", "show", "default")
	require.NoError(t, err)
	assert.Contains(t, out, "via 10.30.1.1 dev ens5")
	out, err = l.Run(ctx, "worker-1", "getent", "hosts", "worker-3")
	require.NoError(t, err)
	assert.Contains(t, out, "10.30.1.66")

	for _, n := range []string{"master", "worker-1"} {
		for _, dir := range []string{"/var/lib/calico", "/run/calico", "/var/run/calico", "/var/lib/cni", "/etc/cni/net.d", "/opt/cni/bin", "/var/log/calico", "/run/netns"} {
			_, err = l.Run(ctx, n, "sh", "-c", "echo "+n+" > "+dir+"/mark")
			require.NoError(t, err)
			got, err := l.Run(ctx, n, "cat", dir+"/mark")
			require.NoError(t, err)
			assert.Equal(t, n+"\n", got)
			assert.NoFileExists(t, dir+"/mark", "the machine itself is left alone")
		}
		got, err := l.Run(ctx, n, "sh", "-c", "hostname; ls /sys/class/net; cat /proc/sys/net/ipv4/ip_forward")
		require.NoError(t, err)
		assert.Equal(t, n+"\nens5\nlo\n0\n", got, "host name, devices, and forwarding as on a fresh machine")
	}
	got, err := l.Run(ctx, routerName, "cat", "/proc/sys/net/ipv4/ip_forward")
	require.NoError(t, err)
	assert.Equal(t, "1\n", got)
	out, err = l.Run(ctx, fabricName, "ip", "-br", "link")
	require.NoError(t, err)
	assert.Contains(t, out, "worker-3")

	keys, err := l.Run(ctx, "worker-1", "ls", "/etc/calico")
	require.NoError(t, err)
	assert.Equal(t, "pki\n", keys, "a worker has its own certificate and no other")
}

func TestExec(t *testing.T) {
	l := up(t, Options{Name: "exec", Topology: bare(t)})
	ctx := testContext(t)

	code, err := l.Exec(ctx, "worker-1", Command{Args: []string{"sh", "-c", "exit 7"}})
	require.NoError(t, err)
	assert.Equal(t, 7, code)
	code, err = l.Exec(ctx, "worker-1", Command{Args: []string{"sh", "-c", "kill -TERM $$"}})
	require.NoError(t, err)
	assert.Equal(t, 128+int(syscall.SIGTERM), code)

	var out, errOut strings.Builder
	code, err = l.Exec(ctx, "worker-1", Command{
		Args: []string{"sh", "-c", "tr a-z A-Z; echo $WORD >&2"}, Env: []string{"WORD=whisper"},
		Stdin: strings.NewReader("shout"), Stdout: &out, Stderr: &errOut,
	})
	require.NoError(t, err)
	assert.Equal(t, []any{0, "SHOUT", "whisper\n"}, []any{code, out.String(), errOut.String()})

	_, err = l.Run(ctx, "worker-1", "no-such-program")
	require.ErrorContains(t, err, "no-such-program is not found on worker-1")
	_, err = l.Run(ctx, "worker-9", "true")
	require.ErrorContains(t, err, `there is no node or pod "worker-9" in lab exec`)
	_, err = l.Run(ctx, "worker-1", "sh", "-c", "echo first; echo because of this >&2; exit 3")
	require.ErrorContains(t, err, "exit status 3: because of this")

	t.Run("signals reach the program", func(t *testing.T) {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		defer r.Close()
		signals := make(chan os.Signal, 1)
		go func() {
			defer w.Close()
			_, _ = r.Read(make([]byte, 16)) // the trap is set
			signals <- syscall.SIGINT
		}()
		code, err := l.Exec(ctx, "worker-1", Command{
			Args:   []string{"sh", "-c", "trap 'exit 42' INT; echo ready; while :; do sleep 0.05; done"},
			Stdout: w, Signals: signals,
		})
		require.NoError(t, err)
		assert.Equal(t, 42, code)
	})

	t.Run("a client that goes takes its program along", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := l.Exec(short, "worker-1", Command{Args: []string{"sleep", "4711"}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Eventually(t, func() bool {
			out, err := l.Run(ctx, "worker-1", "ps", "ax")
			return err == nil && !strings.Contains(out, "sleep 4711")
		}, time.Minute, 20*time.Millisecond)
	})
}

// TestSupervision uses stand-ins for the real programs, which need a cluster around them.
func TestSupervision(t *testing.T) {
	topo := bare(t)
	topo.Nodes[0].Processes = []string{ProcessConfd, ProcessBird}
	topo.Nodes[1].Env = map[string]string{"EXTRA": "yes"}
	topo.Nodes[1].Processes = []string{ProcessBird}
	l := up(t, Options{Name: "procs", BinDir: standIns(t, "echo env $NODENAME $EXTRA; exec sleep 1000", "confd", "bird"), Topology: topo})
	ctx := testContext(t)

	of := func(node, name string) ProcessStatus {
		st, err := l.Status(ctx)
		require.NoError(t, err)
		for _, p := range st.Processes {
			if p.Node == node && p.Name == name {
				return p
			}
		}
		require.Failf(t, "no such process", "%s on %s", name, node)
		return ProcessStatus{}
	}
	reaches := func(node, name string, starts int, state ProcessState) {
		t.Helper()
		require.Eventually(t, func() bool { p := of(node, name); return p.State == state && p.Starts == starts }, time.Minute, 10*time.Millisecond)
	}
	first := of("master", "confd")
	assert.Equal(t, StateRunning, first.State)
	require.EventuallyWithT(t, func(c *assert.CollectT) { // that they run says no more than that they were started
		log, err := os.ReadFile(l.LogPath("worker-1", "bird"))
		require.NoError(c, err)
		assert.Contains(c, string(log), "bird started with --health 127.0.0.1:9097")
		assert.Contains(c, string(log), "env worker-1 yes")
	}, time.Minute, 10*time.Millisecond)

	// Killed from inside: it is started again by itself. Nodes see each other's processes.
	const each = "until [ $(pgrep -xc sleep) = 3 ]; do sleep 0.05; done; kill -9 $(pgrep -xo sleep)"
	_, err := l.Run(ctx, "master", "sh", "-c", each)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return of("master", "confd").Starts+of("master", "bird").Starts+of("worker-1", "bird").Starts == 4
	}, time.Minute, 10*time.Millisecond)

	// Killed by the lab: it stays down until it is started.
	require.NoError(t, l.Kill(ctx, "worker-1", "bird"))
	down := of("worker-1", "bird")
	assert.Equal(t, StateKilled, down.State)
	assert.Equal(t, "signal: killed", down.LastExit)
	require.NoError(t, l.Kill(ctx, "worker-1", "bird"), "killing it again changes nothing")
	require.NoError(t, l.Start(ctx, "worker-1", "bird"))
	reaches("worker-1", "bird", down.Starts+1, StateRunning)
	require.NoError(t, l.Start(ctx, "worker-1", "bird"), "starting it again changes nothing")
	assert.Equal(t, down.Starts+1, of("worker-1", "bird").Starts)

	// Ended by a signal: started again.
	before := of("master", "bird").Starts
	require.NoError(t, l.Signal(ctx, "master", "bird", syscall.SIGTERM))
	reaches("master", "bird", before+1, StateRunning)

	require.ErrorContains(t, l.Kill(ctx, "worker-1", "felix"), `node worker-1 runs no "felix"; it runs [bird]`)
	require.ErrorContains(t, l.Kill(ctx, "worker-9", "felix"), `there is no node "worker-9"`)
}
