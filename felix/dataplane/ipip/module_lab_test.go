//go:build lab && secondkernel

package ipip_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/ipip"
	"github.com/muslin-net/muslin/felix/desired"
)

// secondKernel tells that the tests run in the kernel of integration/vm, which has the module, is there for the tests alone,
// and is emulated.
const secondKernel = true

// Where the module makes no device by itself, ours does the same work, and goes.
func TestModuleWithoutFallbackDevice(t *testing.T) {
	const setting = "/proc/sys/net/core/fb_tunnels_only_for_init_net"
	old, err := os.ReadFile(setting)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(setting, []byte("2"), 0))
	t.Cleanup(func() { require.NoError(t, os.WriteFile(setting, old, 0)) })
	t.Run("TestTraffic", TestTraffic)
	t.Run("TestOuterHeader", TestOuterHeader)
	t.Run("TestCongestionIsToldInside", TestCongestionIsToldInside)
	t.Run("TestRestartAdopts", TestRestartAdopts)
	t.Run("TestReaddressed", TestReaddressed)
	t.Run("TestNotWanted", TestNotWanted)
	t.Run("TestBackendsGiveWayToEachOther", TestBackendsGiveWayToEachOther)
}

// When it is felix that has the module loaded, no device is left that nobody can remove. This unloads the module, so it
// is for kernels that are there for the test.
func TestLoadingTheModuleLeavesNoDevice(t *testing.T) {
	run := func(command string) string {
		out, err := exec.Command("sh", "-ec", command).CombinedOutput()
		require.NoError(t, err, "%s\n%s", command, out)
		return string(out)
	}
	run("rmmod ipip")
	const setting = "cat /proc/sys/net/core/fb_tunnels_only_for_init_net"
	before := run(setting)
	d, err := ipip.New(ipip.Config{Backend: ipip.Auto})
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	n := &node{d: d, want: desired.IPIP{
		Name: desired.IPIPDevice, Local: netip.MustParseAddr("192.0.2.9"), Parent: "lo", MTU: 1480, Address: netip.MustParseAddr("192.0.2.10"),
	}}
	backend, err := d.Probe()
	require.NoError(t, err)
	require.Equal(t, ipip.Kernel, backend)
	run("test -e /sys/module/ipip")
	require.NotContains(t, run("ip link"), "tunl0")
	require.Equal(t, before, run(setting), "as it was")

	run("rmmod ipip")
	(&fabric{}).tell(n)
	require.NoError(t, d.Apply(context.Background()))
	require.Contains(t, run("ip -d link show tunl0"), "local 192.0.2.9")
	require.Equal(t, before, run(setting), "as it was")
	var gone desired.Delta[string, desired.IPIP]
	gone.Remove(desired.IPIPDevice)
	d.Update(gone, desired.Delta[netip.Prefix, desired.Encap]{}, desired.Delta[netip.Addr, desired.Decap]{})
	require.NoError(t, d.Apply(context.Background()))
	require.NotContains(t, run("ip link"), "tunl0")
}
