//go:build lab

package suite

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// TestStockGobgp: the gobgp command of the distribution shows sessions, tables and policies of a node's speaker, and not the
// passwords. Whatever it would change is refused.
func TestStockGobgp(t *testing.T) {
	t.Parallel()
	c := upRack(t, "suite-gobgp")
	c.router(t, vendorBIRD, theToR, torConf{as: torAS, nodes: ownAS, password: "of this rack"}.text(vendorBIRD))
	c.secret(t, "tor", "key", "of this rack")
	c.apply(t, ownRoutes+peerings(torAS, "filters: [own-routes]", "password: {secretKeyRef: {name: tor, key: key}}"))
	c.awaitToR(t)
	block, own := blockOf(c.pod(t, "pod-2"), false).String(), blockOf(c.pod(t, "pod-1"), false).String()
	c.awaitMesh(t, "worker-1")
	c.awaitRoute(t, "worker-1", outside[false], "10.30.0.1")
	c.awaitRoute(t, "worker-1", outside[true], "fd00:30::1")
	c.awaitRoute(t, "worker-1", blockOf(c.pod(t, "pod-2"), false), "10.30.0.56")
	ask := func(words string) (string, int) {
		t.Helper()
		var said bytes.Buffer
		code, err := c.Exec(within(t, patience), "worker-1", lab.Command{
			Args: append([]string{"gobgp", "--target", "unix:///run/calico/gobgp.sock"}, strings.Fields(words)...), Stdout: &said, Stderr: &said,
		})
		require.NoError(t, err)
		return said.String(), code
	}
	for question, answers := range map[string][]string{
		"neighbor":                              {"10.30.0.1", "10.30.0.56", "fd00:30::1", "Establ"},
		"neighbor 10.30.0.1":                    {"BGP neighbor is 10.30.0.1, remote AS 65001", ", up for 00:0", "graceful-restart"},
		"-j neighbor 10.30.0.1":                 {"redacted"},
		"global":                                {"64512", "10.30.0.206"},
		"global rib":                            {block, own, outside[false].String()},
		"global rib -a ipv6":                    {outside[true].String()},
		"global rib " + outside[false].String(): {"10.30.0.1", "65001"},
		"global rib summary":                    {"Destination:"},
		"neighbor 10.30.0.1 adj-in":             {outside[false].String()},
		"neighbor 10.30.0.1 adj-out":            {own},
		"policy":                                {"import", "export"},
		"policy prefix":                         {"192.168.0.0/16"},
		"global policy":                         {"Import policy", "Export policy"},
	} {
		eventually(t, patience, func() string { // what is in the kernel may be on its way to peers
			said, code := ask(question)
			require.NotContains(t, said, "of this rack")
			for _, words := range answers {
				if code != 0 || !strings.Contains(said, words) {
					return fmt.Sprintf("gobgp %s (%d) does not say %q:\n%s", question, code, words, said)
				}
			}
			return ""
		})
	}
	for _, order := range []string{
		"global rib add 10.66.0.0/24", "global rib del " + own, "global del all", "neighbor add 10.30.0.99 as 65001", "neighbor del 10.30.0.1", "neighbor 10.30.0.1 reset",
		"neighbor 10.30.0.1 softresetin", "neighbor 10.30.0.1 shutdown", "neighbor 10.30.0.1 disable", "policy add mine", "global policy import add default reject",
	} {
		said, code := ask(order)
		assert.NotZero(t, code, "gobgp %s: %s", order, said)
		assert.Contains(t, said, "Unimplemented", "gobgp %s", order)
	}
	after, _ := ask("global rib")
	assert.Contains(t, after, own)
	assert.NotContains(t, after, "10.66.0.0/24")
	assert.Contains(t, c.sessions(t, "worker-1")["10.30.0.1"], "Established")
}
