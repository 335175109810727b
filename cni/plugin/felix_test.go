package plugin_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/cni/plugin"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// asPlugin is the environment variable by which this test binary, started once more, is one of the plugins: a runtime
// starts a process for each call, and so do the tests.
const asPlugin = "MUSLIN_TEST_PLUGIN"

// asPatient is the one by which a plugin is told for how long to wait for felix.
const asPatient = "MUSLIN_TEST_PATIENCE"

const (
	restart = time.Second // for how long plugins wait for a felix that does not come
	patient = time.Minute // and for one that comes
)

func TestMain(m *testing.M) {
	wait, _ := time.ParseDuration(os.Getenv(asPatient))
	switch os.Getenv(asPlugin) {
	case "calico":
		skel.PluginMainFuncs(plugin.Main(wait), plugin.Versions(), "calico")
	case "calico-ipam":
		skel.PluginMainFuncs(plugin.IPAM(wait), plugin.Versions(), "calico-ipam")
	default:
		os.Exit(m.Run())
	}
}

// felix is a felix that answers as told and remembers what it was asked.
type felix struct {
	felixv1.UnimplementedCniServiceServer
	felixv1.UnimplementedIpamServiceServer

	socket string
	during func(context.Context) // what Add does before it answers; may be nil

	mu       sync.Mutex
	err      error // of every call
	reasons  []string
	podCIDRs []string
	add      *felixv1.AddRequest
	del      *felixv1.DeleteRequest
	check    *felixv1.CheckRequest
	gc       *felixv1.GcRequest
	assign   *felixv1.AssignRequest
	unassign *felixv1.UnassignRequest
}

var addresses = [][]byte{
	{192, 168, 226, 64},
	{0xfd, 0x00, 0x00, 0x77, 0, 0, 0, 0, 0x99, 0x05, 0xf0, 0x03, 0xc7, 0xbd, 0xfb, 0},
}

func serve(t *testing.T) *felix {
	t.Helper()
	f := &felix{socket: filepath.Join(t.TempDir(), "cni.sock")}
	f.serve(t)
	return f
}

// serve starts it. It ends with the test, or when the returned function is called.
func (f *felix) serve(t *testing.T) (stop func()) {
	t.Helper()
	l, err := rpc.ListenUnix(f.socket)
	require.NoError(t, err)
	g, err := rpc.NewBrief()
	require.NoError(t, err)
	felixv1.RegisterCniServiceServer(g, f)
	felixv1.RegisterIpamServiceServer(g, f)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	stop = sync.OnceFunc(func() {
		g.Stop()
		require.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

func (f *felix) set(err error, reasons ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.reasons = err, reasons
}

// took keeps a request and gives the error that is due.
func took[M any](f *felix, at *M, m M) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	*at = m
	return f.err
}

func (f *felix) Add(ctx context.Context, m *felixv1.AddRequest) (*felixv1.AddResponse, error) {
	if f.during != nil {
		f.during(ctx)
	}
	given := addresses
	if own := m.GetConfig().GetAddresses(); len(own) > 0 {
		given = own
	}
	return &felixv1.AddResponse{HostInterface: "calic-worker-1-", Mac: "e6:b5:dc:75:d1:d5", Mtu: 1450, Addresses: given}, took(f, &f.add, m)
}

func (f *felix) Delete(_ context.Context, m *felixv1.DeleteRequest) (*felixv1.DeleteResponse, error) {
	return &felixv1.DeleteResponse{}, took(f, &f.del, m)
}

func (f *felix) Check(_ context.Context, m *felixv1.CheckRequest) (*felixv1.CheckResponse, error) {
	return &felixv1.CheckResponse{}, took(f, &f.check, m)
}

func (f *felix) Status(context.Context, *felixv1.StatusRequest) (*felixv1.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &felixv1.StatusResponse{Ready: len(f.reasons) == 0, Reasons: f.reasons}, f.err
}

func (f *felix) Node(context.Context, *felixv1.NodeRequest) (*felixv1.NodeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &felixv1.NodeResponse{PodCidrs: f.podCIDRs}, f.err
}

func (f *felix) Gc(_ context.Context, m *felixv1.GcRequest) (*felixv1.GcResponse, error) {
	return &felixv1.GcResponse{}, took(f, &f.gc, m)
}

func (f *felix) Assign(_ context.Context, m *felixv1.AssignRequest) (*felixv1.AssignResponse, error) {
	return &felixv1.AssignResponse{Addresses: addresses}, took(f, &f.assign, m)
}

func (f *felix) Unassign(_ context.Context, m *felixv1.UnassignRequest) (*felixv1.UnassignResponse, error) {
	return &felixv1.UnassignResponse{}, took(f, &f.unassign, m)
}

// invocation is one call of a plugin by a runtime.
type invocation struct {
	plugin, verb, args, netns, container, ifname, path string
	conf                                               map[string]any
	patience                                           time.Duration // with felix; 0: restart
}

// ask is a call with everything that a runtime gives, for the stub.
func (f *felix) ask(verb, version string) invocation {
	return invocation{
		plugin: "calico", verb: verb, path: "/nowhere", netns: "/var/run/netns/fxp-worker-1-1", container: "c-worker-1-1", ifname: "eth0",
		args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
		conf: map[string]any{
			"cniVersion": version, "name": "k8s-pod-network", "type": "calico", "felix_socket": f.socket,
			"ipam": map[string]any{"type": "calico-ipam", "assign_ipv6": "true"}, "policy": map[string]any{"type": "k8s"},
		},
	}
}

// with changes a key of the configuration.
func (i invocation) with(key string, value any) invocation {
	conf := maps.Clone(i.conf)
	conf[key] = value
	i.conf = conf
	return i
}

// run starts the plugin and returns what it printed; ok tells whether it exited with 0.
func (i invocation) run(t *testing.T) (stdout string, ok bool) {
	t.Helper()
	stdin, err := json.Marshal(i.conf)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = []string{
		asPlugin + "=" + i.plugin, asPatient + "=" + cmp.Or(i.patience, restart).String(), "CNI_COMMAND=" + i.verb, "CNI_CONTAINERID=" + i.container, "CNI_NETNS=" + i.netns,
		"CNI_IFNAME=" + i.ifname, "CNI_ARGS=" + i.args, "CNI_PATH=" + i.path,
		"CNI_NETNS_OVERRIDE=true",  // the namespace is felix's business; here there is none
		"GORACE=atexit_sleep_ms=0", // the race detector lets each process sleep for a second at its end otherwise
	}
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return string(out), err == nil
}

// succeed runs it and returns what it printed.
func (i invocation) succeed(t *testing.T) string {
	t.Helper()
	out, ok := i.run(t)
	require.True(t, ok, out)
	return out
}

// failure is the error object of the CNI specification.
type failure struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details"`
}

// fail runs it and returns the error that it must print.
func (i invocation) fail(t *testing.T) (f failure) {
	t.Helper()
	out, ok := i.run(t)
	require.False(t, ok, out)
	require.NoError(t, json.Unmarshal([]byte(out), &f), out)
	require.NotEmpty(t, f.Msg)
	return f
}
