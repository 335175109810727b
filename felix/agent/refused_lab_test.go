//go:build lab

package agent_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/state"
)

// A policy that the kernel refuses keeps no pod from starting that is not under it, and the failure names its driver.
func TestAPodStartsBesideWhatTheKernelRefuses(t *testing.T) {
	for name, by := range map[string]desired.Rules{
		"nftables": {NFTables: desired.Use},
		"iptables": {NFTables: desired.Avoid, Backend: desired.LegacyBackend, SetLimit: 2},
	} {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread() // not unlocked: the thread and its namespace end with the test
			require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "this test needs root")
			d, err := agent.OpenDrivers(&tunl0{t: t}, inside(t), slog.New(slog.DiscardHandler))
			require.NoError(t, err)
			defer d.Close()
			d.Whole()
			d.RoutesWhole()
			rules := func(iface string) string {
				if err := d.Holds(state.Endpoint{Interface: iface, Leaving: true}); err != nil { // nothing but rules is asked for
					return err.Error()
				}
				return ""
			}
			chain := func(c *desired.Changes, name string, rules ...desired.Rule) {
				c.Firewall.Chains.Put(name, desired.Chain{Name: name, Rules: rules})
			}
			under := func(c *desired.Changes, iface, list string) {
				c.Firewall.Workloads.Put(iface, desired.Workload{
					Endpoint: "k8s/test/" + iface, Ingress: desired.ListChain(list, desired.Ingress), Egress: desired.ListChain(list, desired.Egress),
				})
			}
			allow := desired.Rule{Do: desired.Allow, Comment: "allow"}
			var c desired.Changes
			c.Firewall.Settings = &desired.Settings{WorkloadPrefixes: []string{"cali"}, Rules: by}
			chain(&c, "cali-tw-open", allow)
			chain(&c, "cali-fw-open", allow)
			under(&c, "caligood", "open")
			d.Update(c)
			require.NoError(t, d.Apply(t.Context()))
			require.Empty(t, rules("caligood"))

			// Two chains that call each other: the kernel allows no loops.
			c = desired.Changes{}
			chain(&c, "cali-pi-a", desired.Rule{Do: desired.Jump, Target: "cali-pi-b", Comment: "b"})
			chain(&c, "cali-pi-b", desired.Rule{Do: desired.Jump, Target: "cali-pi-a", Comment: "a"})
			chain(&c, "cali-tw-loop", desired.Rule{Do: desired.Jump, Target: "cali-pi-a", Comment: "a"}, allow)
			chain(&c, "cali-fw-loop", allow)
			under(&c, "calibad", "loop")
			under(&c, "calinext", "open")
			d.Update(c)
			err = d.Apply(t.Context())
			require.Error(t, err)
			var one *dataplane.DriverError
			require.True(t, errors.As(err, &one), "%v", err)
			require.Equal(t, "rules", one.Driver)
			require.Empty(t, rules("caligood"))
			require.Empty(t, rules("calinext"), "it came with what is refused: %v", err)
			c = desired.Changes{}
			chain(&c, "cali-pi-b")
			d.Update(c)
			require.NoError(t, d.Apply(t.Context()))
			require.Empty(t, rules("calibad"))
			if by.SetLimit == 0 {
				return
			}

			c = desired.Changes{}
			c.Firewall.Sets.Put("s:big", desired.Set{Type: view.SetNet, Members: []view.Member{
				{Prefix: netip.MustParsePrefix("10.0.0.1/32")}, {Prefix: netip.MustParsePrefix("10.0.0.2/32")}, {Prefix: netip.MustParsePrefix("10.0.0.3/32")},
			}})
			under(&c, "califree", "open")
			d.Update(c)
			err = d.Apply(t.Context())
			var large *dataplane.SetLimitError
			require.True(t, errors.As(err, &large), "%v", err)
			require.Equal(t, dataplane.SetLimitError{Members: 3, Limit: 2}, *large)
			require.Empty(t, rules("califree"))
		})
	}
}
