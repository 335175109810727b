//go:build lab

package ipip_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/ipip"
)

// What others do to tunl0 is undone three times at once, then ever later; what felix itself is told to change is changed at once.
func TestFightsEnd(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend ipip.Backend) {
		for name, c := range map[string]struct{ damage, would string }{
			"MTU":     {"ip link set tunl0 mtu 1300", "set MTU of tunl0 to 1480"},
			"down":    {"ip link set tunl0 down", "set tunl0 up"},
			"address": {"ip addr add 10.7.7.7/32 dev tunl0", "remove address 10.7.7.7/32"},
		} {
			t.Run(name, func(t *testing.T) {
				f := build(t, backend, backend)
				n := f.nodes[0]
				damage := func() error {
					n.Run(t, c.damage)
					n.d.Resync()
					return n.In(func() error { return n.d.Apply(context.Background()) })
				}
				state := func() string { // without what the kernel itself sets a moment later
					return n.Run(t, `ip -o link show tunl0 | grep -o 'mtu [0-9]*\|[<,]UP[,>]'; ip -o -4 addr show tunl0`)
				}
				whole := state()
				var err error
				for tries := range 9 { // more than three on a machine so slow that felix is over its first pauses
					if err = damage(); tries >= 3 && err != nil {
						break
					}
					require.NoError(t, err)
					require.Equal(t, whole, state())
				}
				require.ErrorContains(t, err, "link tunl0: somebody else keeps undoing what felix does")
				require.ErrorContains(t, err, "it would "+c.would)
				require.NotEqual(t, whole, state())

				n.want.MTU = 1400
				f.tell(n)
				n.apply(t)
				assert.Contains(t, n.Run(t, "ip link show tunl0"), "mtu 1400")
				n.want.MTU = 1480
				f.tell(n)
				n.apply(t)
				assert.Equal(t, whole, state())
			})
		}
	})
}
