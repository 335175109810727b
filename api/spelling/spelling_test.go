package spelling_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api/spelling"
)

func TestDistance(t *testing.T) {
	for pair, want := range map[[2]string]int{
		{"", ""}: 0, {"", "mtu"}: 3, {"mtuu", "mtu"}: 1, {"Order", "oder"}: 1, {"oder", "order"}: 1, {"kitten", "sitting"}: 3, {"MTU", "mtu"}: 0,
	} {
		assert.Equal(t, want, spelling.Distance(pair[0], pair[1]), pair)
		assert.Equal(t, want, spelling.Distance(pair[1], pair[0]), pair)
	}
}
