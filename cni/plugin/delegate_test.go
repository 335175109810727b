package plugin_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// hostLocal builds the real host-local plugin and returns the directory that it is in.
func hostLocal(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "host-local"),
		"github.com/containernetworking/plugins/plugins/ipam/host-local")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return dir
}

// leased are the addresses that host-local holds.
func leased(t *testing.T, data string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "k8s-pod-network", "10.*"))
	require.NoError(t, err)
	for _, f := range files {
		out = append(out, filepath.Base(f))
	}
	return out
}

func TestAddressesOfAnotherIPAMPlugin(t *testing.T) {
	f, path, data := serve(t), hostLocal(t), t.TempDir()
	call := func(verb, version string) invocation {
		i := f.ask(verb, version).with("ipam", map[string]any{
			"type": "host-local", "dataDir": data, "ranges": [][]map[string]string{{{"subnet": "10.9.8.0/24"}}},
		})
		i.path = path
		return i
	}
	out := call("ADD", "1.0.0").succeed(t)
	require.Equal(t, [][]byte{{10, 9, 8, 2}}, f.add.GetConfig().GetAddresses())
	require.False(t, f.add.GetConfig().GetAssignIpv4() || f.add.GetConfig().GetAssignIpv6(), "felix gives none of its own")
	require.Contains(t, out, `"address": "10.9.8.2/32"`, "with a full mask, whatever the range's")
	require.NotContains(t, out, "gateway")
	require.Equal(t, []string{"10.9.8.2"}, leased(t, data))

	var prev map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &prev))
	call("CHECK", "1.0.0").with("prevResult", prev).succeed(t)

	// While felix cannot unwire the pod its address is not given to another.
	f.set(status.Error(codes.Aborted, "felix is stopping"))
	require.Equal(t, uint(11), call("DEL", "1.0.0").fail(t).Code)
	require.Equal(t, []string{"10.9.8.2"}, leased(t, data))
	f.set(nil)
	call("DEL", "1.0.0").succeed(t)
	require.Empty(t, leased(t, data))
	e := call("CHECK", "1.0.0").with("prevResult", prev).fail(t)
	require.Contains(t, e.Msg+e.Details, "host-local", "the other plugin checks too")

	// An ADD that fails gives back what it took.
	f.set(status.Error(codes.Aborted, "felix is not in sync"))
	e = call("ADD", "1.0.0").fail(t)
	require.Equal(t, uint(11), e.Code)
	require.Contains(t, e.Details, "felix is not in sync")
	require.Empty(t, leased(t, data))

	// If that fails too, both are said.
	f.set(status.Error(codes.Aborted, "felix is not in sync"))
	broken := call("ADD", "1.0.0")
	broken.path = withBrokenDel(t, path)
	e = broken.fail(t)
	require.Contains(t, e.Details, "felix is not in sync")
	require.Contains(t, e.Details, "IPAM plugin host-local")
	require.NotEmpty(t, leased(t, data))
}

// The node's own range comes from felix; routes that the plugin gives take the place of the default route.
func TestRangesAndRoutesOfAnotherIPAMPlugin(t *testing.T) {
	f, path, data := serve(t), hostLocal(t), t.TempDir()
	call := func(verb string) invocation {
		i := f.ask(verb, "1.0.0").with("ipam", map[string]any{
			"type": "host-local", "dataDir": data, "subnet": "usePodCidr", "routes": []map[string]string{{"dst": "10.0.0.0/8"}},
		})
		i.path = path
		return i
	}
	e := call("ADD").fail(t)
	require.Equal(t, uint(7), e.Code)
	require.Contains(t, e.Details, "Kubernetes gave the node no such range")

	f.podCIDRs = []string{"10.244.1.0/24"}
	call("ADD").succeed(t)
	require.Equal(t, [][]byte{{10, 244, 1, 2}}, f.add.GetConfig().GetAddresses())
	require.Equal(t, []string{"10.0.0.0/8"}, f.add.GetConfig().GetRoutes())
	call("DEL").succeed(t)
	call("ADD").with("include_default_routes", true).succeed(t)
	require.Equal(t, []string{"0.0.0.0/0", "10.0.0.0/8"}, f.add.GetConfig().GetRoutes())
	call("DEL").succeed(t)
	require.Empty(t, leased(t, data))
}

// withBrokenDel is a host-local that cannot delete.
func withBrokenDel(t *testing.T, real string) string {
	t.Helper()
	dir := t.TempDir()
	script := `#!/bin/sh
[ "$CNI_COMMAND" = DEL ] && { echo '{"cniVersion":"1.0.0","code":5,"msg":"disk is broken"}'; exit 1; }
exec ` + filepath.Join(real, "host-local") + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "host-local"), []byte(script), 0o700)) //nolint:gosec // it must be executable
	return dir
}

// The code that another plugin chose reaches the runtime: it may mean "try again".
func TestTheCodeOfAnotherIPAMPluginIsKept(t *testing.T) {
	f, dir := serve(t), t.TempDir()
	script := "#!/bin/sh\necho '{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"not now\",\"details\":\"the pool is being made\"}'\nexit 1\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other"), []byte(script), 0o700)) //nolint:gosec // it must be executable
	for _, verb := range []string{"ADD", "DEL", "STATUS", "GC"} {
		i := f.ask(verb, "1.1.0").with("ipam", map[string]any{"type": "other"})
		i.path = dir
		e := i.fail(t)
		require.Equal(t, uint(11), e.Code, "%s: %+v", verb, e)
		require.Equal(t, "not now", e.Msg)
	}
	require.Nil(t, f.add, "felix is not asked without an address")
}

// Of another plugin everything may be wrong; the runtime is told what.
func TestAnotherIPAMPluginThatDoesNotDo(t *testing.T) {
	f, dir := serve(t), t.TempDir()
	for name, script := range map[string]string{
		"silent": "exit 3", "loud": "echo out of paper >&2; exit 1", "garbled": "echo '{'",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700)) //nolint:gosec // it must be executable
	}
	for name, want := range map[string]string{
		"silent": "exit status 3", "loud": "exit status 1: out of paper", "garbled": "its result cannot be read",
		"absent": "there is no such plugin in CNI_PATH", "../loud": "is no name of a plugin",
	} {
		i := f.ask("ADD", "1.0.0").with("ipam", map[string]any{"type": name})
		i.path = dir
		e := i.fail(t)
		require.Contains(t, e.Msg+e.Details, want, name)
		require.Contains(t, e.Msg+e.Details, "IPAM plugin "+name)
	}
	require.Nil(t, f.add, "felix is not asked without an address")
}

// A result that names no version has that of the configuration.
func TestAResultOfNoVersion(t *testing.T) {
	f, dir := serve(t), t.TempDir()
	script := "#!/bin/sh\n[ $CNI_COMMAND = ADD ] && echo '{\"ips\": [{\"address\": \"10.7.7.7/24\"}]}'\nexit 0\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "old"), []byte(script), 0o700)) //nolint:gosec // it must be executable
	i := f.ask("ADD", "1.0.0").with("ipam", map[string]any{"type": "old"})
	i.path = dir
	i.succeed(t)
	require.Equal(t, [][]byte{{10, 7, 7, 7}}, f.add.GetConfig().GetAddresses())
}

// A plugin is to start at once: what only servers need is not in it.
func TestThePluginsAreSmall(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../calico", "../calico-ipam").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, dear := range []string{"net/http", "crypto/tls", "google.golang.org/grpc", "google.golang.org/protobuf/proto"} {
		require.NotContains(t, strings.Fields(string(out)), dear)
	}
}
