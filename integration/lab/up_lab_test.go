//go:build lab

package lab

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestUpAndDownLeaveNothing(t *testing.T) {
	dir := filepath.Join(shortDir(t), "state")
	before := look(t, dir)
	l, err := Up(testContext(t), Options{Name: "nothing", StateDir: dir, Topology: bare(t)})
	require.NoError(t, err)

	during := look(t, dir)
	assert.Equal(t, before.Links, during.Links, "a lab has no links on the machine")
	assert.Equal(t, before.Mounts, during.Mounts, "nor mounts")
	assert.Len(t, during.Processes, 2, "its init and supervisor")

	require.NoError(t, l.Down(testContext(t)))
	assert.Equal(t, before, look(t, dir))
	assert.ErrorContains(t, l.Down(testContext(t)), "there is no lab nothing")
	_, err = Open("nothing", dir)
	assert.ErrorContains(t, err, "there is no lab nothing")
}

func TestDownAfterCrash(t *testing.T) {
	cases := []struct {
		name  string
		crash func(t *testing.T, dir string)
	}{
		{"supervisor killed", func(t *testing.T, dir string) {
			init := hostPID(t, argInit, dir)
			require.NoError(t, syscall.Kill(hostPID(t, argSupervise, dir), syscall.SIGKILL))
			waitGone(t, init)
			assert.Empty(t, look(t, dir).Processes, "the kernel ended all with it")
			_, err := Open("crash", dir)
			assert.ErrorContains(t, err, "lab down --name crash")
			_, err = Up(testContext(t), Options{Name: "crash", StateDir: dir, Topology: bare(t)})
			assert.ErrorContains(t, err, "did not end well")
		}},
		{"first process killed", func(t *testing.T, dir string) {
			init := hostPID(t, argInit, dir)
			require.NoError(t, syscall.Kill(init, syscall.SIGKILL))
			waitGone(t, init)
		}},
		{"record lost", func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "lab.json"))) }},
		{"record of another process", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "lab.json"), []byte(`{"pid":1,"start":1,"boot":"`+bootID()+`"}`), 0o600))
		}},
		{"directory lost", func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(shortDir(t), "state")
			before := look(t, dir)
			topo := bare(t)
			topo.Nodes[0].Processes = []string{ProcessConfd}
			bin := standIns(t, "exec sleep 1000", "confd")
			_, err := Up(testContext(t), Options{Name: "crash", StateDir: dir, BinDir: bin, Topology: topo})
			require.NoError(t, err)
			require.Eventually(t, func() bool { return len(look(t, dir).Processes) == 3 }, time.Minute, 10*time.Millisecond,
				"init, supervisor and the stand-in, which is a shell's at first")
			c.crash(t, dir)
			require.NoError(t, Down(testContext(t), "crash", dir))
			assert.Equal(t, before, look(t, dir))
		})
	}
}

// TestLauncherDies: an attached lab ends with its launcher, whose end by kill -9 lets nobody clean up but the supervisor.
func TestLauncherDies(t *testing.T) {
	inRun, err := os.MkdirTemp("/run", "lab") // nodes have a /run of their own, over this one
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(inRun)) })
	for _, parent := range []string{shortDir(t), inRun} {
		dir := filepath.Join(parent, "state")
		before := look(t, dir)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envLaunch+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "up\n", line)

		init := hostPID(t, argInit, dir)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		waitGone(t, init)
		assert.Equal(t, before, look(t, dir))
	}
}

func TestUpRefuses(t *testing.T) {
	dir := filepath.Join(shortDir(t), "state")
	l := up(t, Options{Name: "first", StateDir: dir, Topology: bare(t)})

	_, err := Up(testContext(t), Options{Name: "first", StateDir: dir, Topology: bare(t)})
	require.ErrorContains(t, err, "lab first is up already")
	assert.Contains(t, err.Error(), "lab down --name first")
	_, err = l.Status(testContext(t))
	require.NoError(t, err, "the first one is as it was")

	other := filepath.Join(shortDir(t), "state")
	before := look(t, other)
	full, err := DemoTopology()
	require.NoError(t, err)
	cases := []struct {
		name string
		o    Options
		want string
	}{
		{"missing binaries", Options{BinDir: shortDir(t), Topology: full}, "typha, kube-controllers, calico-node, bird, felix, confd, calico, calico-ipam, calicoctl; build them with make build"},
		{"bad name", Options{Name: "No Good", Topology: bare(t)}, "is no name for a lab"},
		{"bad topology", Options{}, "subnets is empty"},
		{"long path", Options{StateDir: "/tmp/" + strings.Repeat("x", 100), Topology: bare(t)}, "too long for a socket"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.o.StateDir == "" {
				c.o.StateDir = other
			}
			_, err := Up(testContext(t), c.o)
			require.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), "\n")
			assert.Equal(t, before, look(t, other))
		})
	}
}

// TestUpFailsHalfWay: whatever step fails, the error says which and why, and nothing is left.
func TestUpFailsHalfWay(t *testing.T) {
	full, err := DemoTopology()
	require.NoError(t, err)
	all := []string{"typha", "kube-controllers", "calico-node", "bird", "felix", "confd", "calico", "calico-ipam", "calicoctl"}
	cases := []struct {
		name, script string
		want         string
	}{
		{
			"a process that dies", "echo port 5473 is in use, stop the other typha >&2; exit 1",
			"control plane: typha on master ended each of the 5 times it was started (exit status 1); its log ends with: port 5473 is in use, stop the other typha",
		},
		{"a program that cannot run", "", "typha on master ended each"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(shortDir(t), "state")
			before := look(t, dir)
			_, err := Up(testContext(t), Options{Name: "half", StateDir: dir, BinDir: standIns(t, c.script, all...), Topology: full})
			require.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), "\n")
			assert.Equal(t, before, look(t, dir))
		})
	}

	t.Run("interrupted", func(t *testing.T) {
		dir := filepath.Join(shortDir(t), "state")
		before := look(t, dir)
		ctx, cancel := context.WithTimeout(testContext(t), time.Minute)
		defer cancel()
		_, err := Up(ctx, Options{
			Name: "half", StateDir: dir, BinDir: standIns(t, "exec sleep 1000", all...), Topology: full,
			Progress: func(p Progress) {
				if p.Step == "control plane" {
					cancel()
				}
			},
		})
		require.ErrorContains(t, err, "interrupted")
		assert.Equal(t, before, look(t, dir))
	})
}

func TestTwoLabsAtOnce(t *testing.T) {
	ctx := testContext(t)
	one := up(t, Options{Name: "one", Topology: bare(t)})
	two := up(t, Options{Name: "two", Topology: bare(t)})
	for _, l := range []*Lab{one, two} {
		_, err := l.Run(ctx, "master", "sh", "-c", "echo "+l.Name()+" > /var/lib/calico/nodename; ip link add only-"+l.Name()+" type bridge")
		require.NoError(t, err)
		r, err := l.Probe(ctx, ProbeRequest{From: "worker-1", To: "worker-3", Timeout: AnswerPatience})
		require.NoError(t, err)
		assert.True(t, r.OK, r.Error)
	}
	out, err := one.Run(ctx, "master", "sh", "-c", "cat /var/lib/calico/nodename; ip -br link")
	require.NoError(t, err)
	assert.Contains(t, out, "one\n")
	assert.NotContains(t, out, "only-two")

	require.NoError(t, one.Down(ctx))
	_, err = two.Status(ctx)
	require.NoError(t, err, "the other one lives on")
}

func TestDetach(t *testing.T) {
	dir := filepath.Join(shortDir(t), "state")
	l, err := Up(testContext(t), Options{Name: "detached", StateDir: dir, Topology: bare(t), Attached: true})
	require.NoError(t, err)
	require.NoError(t, l.Detach())
	l.launch.close() // as the end of this process would
	again, err := Open("detached", dir)
	require.NoError(t, err)
	_, err = again.Run(testContext(t), "master", "true")
	require.NoError(t, err)
	require.NoError(t, again.Down(testContext(t)))
}
