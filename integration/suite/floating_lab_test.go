//go:build lab

package suite

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// floating: an address of a pool of each kind leads to a pod from every node, from itself too, while the pod is there and as long as
// the configuration wants it.
func (c *cluster) floating(t *testing.T) {
	wants := func(mode string) {
		c.apply(t, "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {floatingIPs: "+mode+"}}")
	}
	leads := func(to netip.Addr, from ...string) {
		for _, f := range from {
			c.reaches(t, f, to)
		}
	}
	gone := func(to netip.Addr, from string) {
		eventually(t, patience, func() string {
			if out, err := c.Run(within(t, patience), from, "ping", "-c", "1", "-W", "1", to.String()); err == nil {
				return "there is an answer still: " + out
			}
			return ""
		})
	}
	c.conflist(t, "worker-1", "1.0.0", func(plugin map[string]any) []any {
		plugin["feature_control"] = map[string]bool{"floating_ips": true}
		return nil
	})
	six := netip.MustParseAddr("fd00:192::ffff:7")
	for pool, external := range map[string]netip.Addr{
		poolIPIP: netip.MustParseAddr("192.168.63.254"), poolVXLAN: netip.MustParseAddr("192.168.127.254"), poolDirect: netip.MustParseAddr("192.168.191.254"),
	} {
		if pool == poolDirect {
			c.run(t, "router", "ip", "route", "replace", external.String(), "via", "10.30.0.206")
		}
		asked, err := json.Marshal([]netip.Addr{external, six})
		require.NoError(t, err)
		_, err = c.PodAdd(within(t, patience), lab.Pod{
			Name: "floats", Namespace: "default", Node: "worker-1", Annotations: map[string]string{"cni.projectcalico.org/floatingIPs": string(asked)},
		})
		require.NoError(t, err, pool)
		gone(external, pool+"-1")
		wants("Enabled")
		leads(external, "floats", pool+"-1", pool+"-2", pool+"-3", "worker-1", "worker-3")
		leads(six, "floats", pool+"-2", pool+"-3")
		assert.Contains(t, c.run(t, "worker-1", "ip", "route", "get", external.String()), "dev cali", pool)
		wants("Disabled")
		gone(external, pool+"-3")
		wants("Enabled")
		leads(external, pool+"-3")
		c.del(t, "floats")
		gone(external, pool+"-3")
		wants("Disabled")
	}
}
