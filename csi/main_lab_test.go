//go:build lab

package main_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/muslin-net/muslin/csi/client"
	"github.com/muslin-net/muslin/internal/rpc"
)

// patience is for what comes soon on any machine.
const patience = time.Minute

// TestProgram is the program itself, as it is started on a node, and the suite that drivers are held to.
func TestProgram(t *testing.T) {
	dir := t.TempDir()
	binary, suite := filepath.Join(dir, "csi-node-driver"), filepath.Join(dir, "csi-sanity")
	build(t, ".", ".", binary)
	build(t, "sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity", suite)
	t.Run("sanity", func(t *testing.T) { sanity(t, newNode(t, binary), suite) })
	t.Run("killed", func(t *testing.T) { killed(t, newNode(t, binary)) })
	t.Run("registrar", func(t *testing.T) { registrar(t, newNode(t, binary)) })
	t.Run("words", func(t *testing.T) { words(t, newNode(t, binary)) })
}

// build builds a program of the module in a directory.
func build(t *testing.T, dir, program, path string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-C", dir, "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// node is a directory with the driver's socket and home.
type node struct {
	binary, dir, socket string
	home                client.Home
}

func newNode(t *testing.T, binary string) node {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	n := node{binary: binary, dir: dir, socket: filepath.Join(dir, "csi.sock"), home: client.HomeAt(filepath.Join(dir, "home"))}
	config := fmt.Sprintf(`{"nodeagent_management_home":%q,"log_level":"WARNING"}`, filepath.Join(dir, "home"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nodeagent.json"), []byte(config), 0o600))
	return n
}

// start runs the program in the mounts of the calling thread until the test ends.
func (n node) start(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(n.binary, append([]string{"--endpoint", n.socket, "--nodeagent-config", filepath.Join(n.dir, "nodeagent.json")}, args...)...)
	cmd.Stderr = t.Output()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.DialUnix(socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ownMounts gives the test's thread, and what it starts, mounts of its own: it is never unlocked, so that they end with the test.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), "this test mounts and needs root")
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// mounted is how many mounts there are below a directory.
func mounted(t *testing.T, dir string) int {
	t.Helper()
	body, err := os.ReadFile("/proc/thread-self/mountinfo")
	require.NoError(t, err)
	return strings.Count(string(body), " "+dir+"/")
}

// sanity runs kubernetes-csi/csi-test.
func sanity(t *testing.T, n node, suite string) {
	ownMounts(t)
	n.start(t, "--nodeid", "worker-1")
	driver := dial(t, n.socket)
	_, err := csi.NewIdentityClient(driver).Probe(t.Context(), &csi.ProbeRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
	standIn := filepath.Join(n.dir, "standin.sock")
	serveStandIn(t, driver, standIn)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, suite, "-csi.endpoint", standIn, "-csi.mountdir", filepath.Join(n.dir, "mount"),
		"-csi.stagingdir", filepath.Join(n.dir, "staging"), "-ginkgo.focus", "Identity Service|Node Service", "-ginkgo.no-color", "-ginkgo.v").CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
	require.Contains(t, string(out), "13 Passed | 0 Failed", "all that are not about what the driver says it cannot do")
	require.Zero(t, mounted(t, n.dir))
}

// killed kills the process while it makes and removes volumes; what is asked for again is whole, and in the end
// nothing is left.
func killed(t *testing.T, n node) {
	ownMounts(t)
	driver := csi.NewNodeClient(dial(t, n.socket))
	targets := filepath.Join(n.dir, "kubelet")
	ask := func(ctx context.Context, id string, publish bool) error {
		target := filepath.Join(targets, id, "mount")
		if publish {
			_, err := driver.NodePublishVolume(ctx, request(id, target), grpc.WaitForReady(true))
			return err
		}
		_, err := driver.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}, grpc.WaitForReady(true))
		return err
	}
	must := func(id string, publish bool) { // as kubelet, which asks again when it had no answer
		for {
			err := ask(t.Context(), id, publish)
			if status.Code(err) != codes.Unavailable {
				require.NoError(t, err)
				return
			}
		}
	}
	ids := make([]string, 4)
	for i := range ids {
		ids[i] = fmt.Sprintf("csi-%d", i)
		require.NoError(t, os.MkdirAll(filepath.Join(targets, ids[i]), 0o755))
	}
	for round := range 20 {
		cmd := n.start(t, "--nodeid", "worker-1", "--log-level", "warn")
		must(ids[0], false)
		ctx, cancel := context.WithCancel(t.Context())
		var askers sync.WaitGroup
		for i, id := range ids {
			askers.Go(func() {
				for j := i; ctx.Err() == nil; j++ {
					_ = ask(ctx, id, j%2 == 0)
				}
			})
		}
		time.Sleep(rand.N(20 * time.Millisecond)) //nolint:gosec // any moment will do
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		cancel()
		askers.Wait()

		cmd = n.start(t, "--nodeid", "worker-1", "--log-level", "warn")
		for _, id := range ids {
			must(id, true)
			_, err := n.home.Load(id)
			require.NoError(t, err)
		}
		require.Equal(t, 2*len(ids), mounted(t, targets), "round %d", round)
		for _, id := range ids {
			must(id, false)
		}
		require.Zero(t, mounted(t, targets), "round %d", round)
		require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
		require.NoError(t, cmd.Wait())
	}
	for _, dir := range []string{n.home.Mounts, n.home.Records} {
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func request(id, target string) *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: target,
		VolumeCapability: &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/pod.name": "web-0", "csi.storage.k8s.io/pod.namespace": "shop", "csi.storage.k8s.io/pod.uid": "u1",
			"csi.storage.k8s.io/serviceAccount.name": "default", "csi.storage.k8s.io/ephemeral": "true",
		},
	}
}

// registrar is kubelet's side of the registration, with both programs as in the manifest.
func registrar(t *testing.T, n node) {
	plugins := filepath.Join(n.dir, "registry")
	require.NoError(t, os.Mkdir(plugins, 0o755))
	program := n.start(t, "--registrar", "--plugin-registration-path", plugins, "--kubelet-registration-path", "/var/lib/kubelet/plugins/csi.tigera.io/csi.sock")
	_, err := os.Stat(filepath.Join(plugins, "csi.tigera.io-reg.sock"))
	require.ErrorIs(t, err, fs.ErrNotExist, "there is no driver yet")
	n.start(t, "--nodeid", "worker-1")
	kubelet := registration.NewRegistrationClient(dial(t, filepath.Join(plugins, "csi.tigera.io-reg.sock")))
	info, err := kubelet.GetInfo(t.Context(), &registration.InfoRequest{}, grpc.WaitForReady(true))
	require.NoError(t, err)
	require.Equal(t, "CSIPlugin csi.tigera.io /var/lib/kubelet/plugins/csi.tigera.io/csi.sock [1.0.0]",
		fmt.Sprint(info.GetType(), " ", info.GetName(), " ", info.GetEndpoint(), " ", info.GetSupportedVersions()))
	_, err = kubelet.NotifyRegistrationStatus(t.Context(), &registration.RegistrationStatus{PluginRegistered: true})
	require.NoError(t, err)
	found, err := csi.NewNodeClient(dial(t, n.socket)).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	require.NoError(t, err)
	require.Equal(t, "worker-1", found.GetNodeId())
	require.NoError(t, program.Process.Signal(unix.SIGTERM))
	require.NoError(t, program.Wait())
	left, err := os.ReadDir(plugins)
	require.NoError(t, err)
	require.Empty(t, left, "so that kubelet knows")
}

// words are what the program says when it cannot start.
func words(t *testing.T, n node) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no node":      {[]string{"--endpoint", n.socket}, "setting nodeid: the name of this node is missing"},
		"bad file":     {[]string{"--nodeid", "n", "--nodeagent-config", n.binary}, "the driver's settings in"},
		"no directory": {[]string{"--nodeid", "n", "--endpoint", filepath.Join(n.binary, "x.sock")}, "x.sock"},
	} {
		cmd := exec.Command(n.binary, c.args...)
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit), "%s: %v", name, err)
		require.Contains(t, string(out), c.want, name)
	}
}
