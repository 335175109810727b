package foreign

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOnlyAPolicyThatNothingLiftsIsAnObstacle(t *testing.T) {
	for name, c := range map[string]struct {
		rules []string
		want  bool
	}{
		"no chain":      {nil, false},
		"accepts":       {[]string{"-P FORWARD ACCEPT"}, false},
		"drops":         {[]string{"-P FORWARD DROP", "-A FORWARD -o docker0 -j DOCKER"}, true},
		"drops, lifted": {[]string{"-P FORWARD DROP", "-A FORWARD -i cali+ -j ACCEPT", "-A FORWARD -o cali+ -j ACCEPT"}, false},
	} {
		require.Equal(t, c.want, dropsByPolicy(c.rules), name)
	}
}
