//go:build lab

package vm

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s"
)

// TestInTheSecondKernel runs again, in the distribution's kernel, what the kernel of this machine may lack the module ipip
// for: all tests of the IP-in-IP driver, with the module and between the two backends; the whole table of modes, and from whom the
// tunnels take packets, once with the module's tunl0 on every node, and once with half of the nodes on BPF; with tunl0, changes of
// modes under traffic, the MTU that follows the network's, and the repair of what others change of the device. Also the guards of pods'
// sources: before Linux 6.16 their chains come and go with the devices. And the real kube-proxy by IPVS, which the machine's kernel may
// not have. And jumps of the clock, which is the whole machine's, and hard limits of memory, for which the machine may have cgroups of
// version 1.
func TestInTheSecondKernel(t *testing.T) {
	proxy, err := k8s.Build(t.Context(), k8s.Proxy, func(line string) { t.Log(line) }) // in a guest it would take hours
	require.NoError(t, err)
	for _, c := range []struct {
		name, pkg, bpf string
		args           []string
		modules        []string
	}{
		{name: "driver", pkg: "../../felix/dataplane/ipip"},
		{name: "modes by tunl0", pkg: "../suite", args: []string{"-test.run=^TestModes$"}},
		{name: "modes, half of the nodes by BPF", pkg: "../suite", bpf: "worker-1,worker-3", args: []string{"-test.run=^TestModes$"}},
		{name: "guards of sources", pkg: "../../felix/dataplane/rules/nftables", args: []string{"-test.run=^(TestFlowsOfOthersAreGuarded|TestGuardsWaitForDevices)$"}},
		{name: "clock jumps under BGP", pkg: "../../bird", args: []string{"-test.run=^TestClockJumps$"}},
		{name: "clock jumps and hard limits of memory under typha", pkg: "../storm", args: []string{"-test.run=^TestStormsOfTheMachine$"}},
		{name: "mode changes by tunl0", pkg: "../suite", args: []string{"-test.run=^TestModeChanges$"}},
		{name: "services by IPVS", pkg: "../../felix/dataplane/rules", args: []string{"-test.run=^TestServicesByIPVS$"}, modules: []string{"ip_vs", "ip_vs_rr", "dummy"}},
		{name: "MTU and repair of tunl0", pkg: "../suite", args: []string{"-test.run=^(TestMTU|TestDrift)$/^ipip$/tunnel"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			guest := Config{Timeout: 40 * time.Minute, Modules: append(c.modules, "ipip"), Env: append(os.Environ(), "MUSLIN_IPIP_BPF="+c.bpf, "MUSLIN_KUBE_PROXY="+proxy)}
			guest.Test(t, c.pkg, c.args...)
		})
	}
}
