package dump_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/muslin-net/muslin/internal/dump"
)

func TestWhole(t *testing.T) {
	no := errors.New("no")
	for name, c := range map[string]struct {
		overtaken int // listings before one that ends with err
		err       error
		want      error
		asked     int
	}{
		"at once":           {0, nil, nil, 1},
		"the third time":    {2, nil, nil, 3},
		"another error":     {1, no, no, 2},
		"overtaken forever": {1000, nil, netlink.ErrDumpInterrupted, 10},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			all, err := dump.Whole(func() ([]int, error) {
				if asked++; asked <= c.overtaken {
					return []int{asked}, netlink.ErrDumpInterrupted
				}
				return []int{asked}, c.err
			})
			require.Equal(t, c.asked, asked)
			require.Equal(t, []int{asked}, all)
			require.ErrorIs(t, err, c.want)
		})
	}
}
