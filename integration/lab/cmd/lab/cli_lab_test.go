//go:build lab

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

const twoNodes = `
subnets:
- {name: left, prefixes: [10.30.0.0/24, "fd30::/64"]}
- {name: right, prefixes: [10.30.1.0/24, "fd31::/64"]}
nodes:
- {name: a, addresses: [10.30.0.10, "fd30::10"], processes: [confd]}
- {name: b, addresses: [10.30.1.10, "fd31::10"], processes: []}
`

// cli runs the built program as a user.
type cli struct {
	t    *testing.T
	dir  string // everything of this test is below it
	user *syscall.Credential
	env  []string
}

func newCLI(t *testing.T, user *syscall.Credential) *cli {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "lab"), ".").CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "two.yaml"), []byte(twoNodes), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "confd"), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755)) // a stand-in
	runtime := filepath.Join(dir, "user")
	require.NoError(t, os.Mkdir(runtime, 0o700))
	if user != nil {
		require.NoError(t, os.Chown(runtime, int(user.Uid), int(user.Gid)))
	}
	return &cli{t: t, dir: dir, user: user, env: append(os.Environ(), "XDG_RUNTIME_DIR="+runtime)}
}

func (c *cli) run(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(c.dir, "lab"), args...)
	cmd.Dir, cmd.Env = c.dir, c.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.user}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(c.t, err, &exit)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command that must succeed.
func (c *cli) ok(args ...string) string {
	c.t.Helper()
	out, errOut, code := c.run(args...)
	require.Zero(c.t, code, "%v: %s%s", args, out, errOut)
	return out
}

// TestCommands runs the same commands as root and, in a user namespace, as an ordinary user.
func TestCommands(t *testing.T) {
	require.Zero(t, os.Geteuid(), "this test becomes an ordinary user, which only root can; run it as root")
	for name, user := range map[string]*syscall.Credential{
		"root":              nil,
		"without any right": {Uid: 65534, Gid: 65534},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCLI(t, user)
			lab := func(args ...string) []string { return append([]string{"--name", "cli"}, args...) }
			t.Cleanup(func() { c.run(lab("down")...) })
			_, progress, code := c.run(lab("up", "-f", "two.yaml")...)
			require.Zero(t, code, progress)
			assert.Contains(t, progress, "lab cli is up after")

			_, errOut, code := c.run(lab("up", "-f", "two.yaml")...)
			assert.Equal(t, 1, code)
			assert.Regexp(t, `^lab: lab cli is up already .* lab down --name cli removes it, or choose another --name\n$`, errOut)

			out := c.ok(lab("status")...)
			assert.Contains(t, out, "NODE  ADDRESS")
			assert.Regexp(t, `a +10\.30\.0\.10,fd30::10 +confd +\d+ +running`, out)
			if user != nil {
				assert.Contains(t, out, "user namespace")
			}
			checkStatusJSON(t, c.ok(lab("status", "-o", "json")...))
			assert.Equal(t, "cli\n", listed(c, user))

			assert.Equal(t, "a 0\n", c.ok(lab("exec", "a", "--", "sh", "-c", "echo $(hostname) $(id -u)")...))
			_, _, code = c.run(lab("exec", "a", "--", "sh", "-c", "exit 5")...)
			assert.Equal(t, 5, code)

			for _, flag := range []string{"--ipv6=false", "--ipv6"} {
				out = c.ok(lab("probe", flag, "a", "b")...)
				assert.Regexp(t, `icmp +ok +\S+ +direct +2\n`, out)
				assert.Regexp(t, `tcp +ok +\S+ +direct +\d+\n`, out)
			}
			out, _, code = c.run(lab("probe", "a", "b:81")...)
			assert.Equal(t, 1, code)
			assert.Contains(t, out, "connection refused")

			// What Muslin needs of a node's kernel works there, also without root.
			c.ok(lab("exec", "a", "--", "sh", "-exc", "ip link add vx type vxlan id 4096 dev ens5 dstport 4789; nft add table inet t;"+
				"echo 1 > /proc/sys/net/ipv4/ip_forward; ip netns add n")...)

			captured := c.capture(lab("capture", "b", "ens5", "--host", "10.30.0.10", "-c", "2"), lab("probe", "a", "b"))
			assert.Contains(t, captured, "10.30.0.10")

			assert.Regexp(t, `b +off +0 +0`, c.ok(lab("fabric")...))
			out = c.ok(lab("fabric", "--source-dest-check=on", "b")...)
			assert.Regexp(t, `a +off +0 +0\nb +on +0 +0`, out)
			c.ok(lab("probe", "a", "b")...)
			_, errOut, _ = c.run(lab("fabric", "--source-dest-check=maybe")...)
			assert.Equal(t, "lab: --source-dest-check=maybe: use on or off\n", errOut)
			_, errOut, _ = c.run(lab("fabric", "b")...)
			assert.Contains(t, errOut, "nothing to change for [b]")

			c.ok(lab("backend", "vxlan")...)
			assert.Regexp(t, `confd +- +killed`, c.ok(lab("status")...))
			c.ok(lab("backend", "bird")...)
			assert.Regexp(t, `confd +\d+ +running`, c.ok(lab("status")...))

			c.ok(lab("kill", "a", "confd")...)
			assert.Regexp(t, `confd +- +killed`, c.ok(lab("status")...))
			c.ok(lab("start", "a", "confd")...)
			assert.Regexp(t, `confd +\d+ +running`, c.ok(lab("status")...))
			_, errOut, _ = c.run(lab("kill", "a", "felix")...)
			assert.Equal(t, "lab: node a runs no \"felix\"; it runs [confd]\n", errOut)

			c.ok(lab("down")...)
			_, errOut, code = c.run(lab("down")...)
			assert.Equal(t, 1, code)
			assert.Contains(t, errOut, "there is no lab cli")
			_, errOut, code = c.run(lab("demo")...)
			assert.Equal(t, 1, code)
			assert.Contains(t, errOut, "missing in "+c.dir)
		})
	}
}

// listed lists labs in the default place, which root shares with everyone's labs.
func listed(c *cli, user *syscall.Credential) string {
	out := c.ok("list")
	if user == nil && strings.Contains(out, "cli\n") {
		return "cli\n"
	}
	return out
}

func checkStatusJSON(t *testing.T, text string) {
	t.Helper()
	var st lab.Status
	require.NoError(t, json.Unmarshal([]byte(text), &st))
	require.Len(t, st.Nodes, 2)
	assert.Equal(t, "a", st.Nodes[0].Name)
	require.Len(t, st.Processes, 1)
	assert.Equal(t, lab.StateRunning, st.Processes[0].State)
}

// capture captures while another command runs again and again, until the capture ends by itself.
func (c *cli) capture(args, traffic []string) string {
	c.t.Helper()
	done := make(chan string)
	go func() {
		out, _, _ := c.run(args...)
		done <- out
	}()
	for {
		c.ok(traffic...)
		select {
		case out := <-done:
			return out
		default:
		}
	}
}

// TestNoUserNamespaces: an ordinary user whom the kernel refuses what a lab needs is told so, and nothing is left.
func TestNoUserNamespaces(t *testing.T) {
	c := newCLI(t, nil)
	for name, tc := range map[string]struct{ prepare, want string }{
		"no user namespaces": {
			"unshare -Ur sh -c 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all \"$@\"' sh",
			"this user may not make namespaces: .*; run it as root, or allow user namespaces",
		},
		"a /proc that is partly hidden, as in a container": {
			"unshare -m sh -c 'mount -t tmpfs none /proc/fs && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"' sh",
			"the kernel refuses a fresh /proc here: .*; in a container start the lab as root with --privileged",
		},
	} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join(c.dir, "open")
			require.NoError(t, os.Mkdir(base, 0o777))
			require.NoError(t, os.Chmod(base, 0o777))
			cmd := exec.Command("sh", "-c", tc.prepare+" ./lab --name refused --state-dir "+base+"/above/state up -f two.yaml")
			cmd.Dir = c.dir
			out, err := cmd.CombinedOutput()
			require.Error(t, err)
			assert.Regexp(t, "^lab: "+tc.want+"[^\n]*\n$", string(out))
			assert.NoDirExists(t, filepath.Join(base, "above"))
			require.NoError(t, os.RemoveAll(base))
		})
	}
}

// TestBadCommandLines: one line each, and no lab is needed to say it.
func TestBadCommandLines(t *testing.T) {
	c := newCLI(t, nil)
	require.NoError(t, os.WriteFile(filepath.Join(c.dir, "bad.yaml"), []byte("nodes: [{title: a}]\n"), 0o644))
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"up"}, `required flag(s) "file" not set`},
		{[]string{"up", "-f", "none.yaml"}, "cannot read the topology"},
		{[]string{"up", "-f", "bad.yaml"}, `bad.yaml line 1: unknown field "title" in node; known are name`},
		{[]string{"--name", "No", "status"}, "is no name for a lab"},
		{[]string{"--name", "gone", "exec", "a", "--", "true"}, "there is no lab gone"},
		{[]string{"fly"}, `unknown command "fly"`},
	} {
		_, errOut, code := c.run(tc.args...)
		assert.Equal(t, 1, code, tc.args)
		assert.Contains(t, errOut, tc.want)
		assert.Equal(t, 1, strings.Count(errOut, "\n"), errOut)
	}
}
