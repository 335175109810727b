package server

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestExcess(t *testing.T) {
	for _, c := range []struct{ own, total, replicas, move int }{
		{0, 0, 3, 0},
		{10, 10, 1, 0},
		{1, 1, 3, 0}, // a client has to be somewhere
		{2, 2, 3, 0},
		{3, 3, 3, 1},
		{4, 10, 3, 0},
		{10, 20, 3, 2}, // 3.3 too many; the other full one moves as many
		{340, 1000, 3, 0},
		{366, 1000, 3, 0}, // within the slack
		{500, 1000, 3, 83},
		{1000, 1000, 3, 333},
	} {
		assert.Equal(t, c.move, excess(c.own, c.total, c.replicas), "%+v", c)
	}
	// However few are too many at a time, replicas that look one after the other come to an end near their share.
	own := []int{0, 1000, 0}
	for range 20 {
		for i := range own {
			n := excess(own[i], 1000, 3)
			own[i] -= n
			own[(i+1)%3] += n / 2
			own[(i+2)%3] += n - n/2
		}
	}
	for _, n := range own {
		assert.InDelta(t, 333, n, 35)
	}
}
