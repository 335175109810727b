package host

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOurs(t *testing.T) {
	for name, want := range map[string]bool{
		"cali0123456789a": true, "tunl0": true, "vxlan.calico": true, "vxlan-v6.calico": true, "lo": true,
		"eth0": false, "london0": false, "vxlan.calico2": false, "docker0": false,
	} {
		require.Equal(t, want, ours(name), name)
	}
}
