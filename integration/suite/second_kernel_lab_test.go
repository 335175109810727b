//go:build lab

package suite

import (
	"os"
	"testing"
	"time"

	"github.com/muslin-net/muslin/integration/vm"
)

// TestInTheSecondKernel runs again, in Debian's kernel, what the kernel of this machine may lack the module ipip for: all
// tests of the IP-in-IP driver, with both backends and between them, and the whole table of modes, once with the module's
// tunl0 on every node, and once with half of the nodes on BPF.
func TestInTheSecondKernel(t *testing.T) {
	for _, c := range []struct {
		name, pkg, bpf string
		args           []string
	}{
		{name: "driver", pkg: "../../felix/dataplane/ipip"},
		{name: "modes by tunl0", pkg: ".", args: []string{"-test.run=^TestModes$"}},
		{name: "modes, half of the nodes by BPF", pkg: ".", bpf: "worker-1,worker-3", args: []string{"-test.run=^TestModes$"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			guest := vm.Config{Timeout: 15 * time.Minute, Modules: []string{"ipip"}, Env: append(os.Environ(), envBPF+"="+c.bpf)}
			guest.Test(t, c.pkg, c.args...)
		})
	}
}
