package render_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/felix/render"
)

// TestLogLimit: what is asked for, with a burst that is at least one line and no more than a day's, which xtables would refuse.
func TestLogLimit(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		rate  string
		burst *int
		want  desired.Limit
	}{
		{"", nil, desired.Limit{}},
		{"", new(7), desired.Limit{}},
		{"10/minute", nil, desired.Limit{Rate: 10, Per: time.Minute, Burst: 5}},
		{"9999/second", new(9999), desired.Limit{Rate: 9999, Per: time.Second, Burst: 9999}},
		{"2/hour", new(100), desired.Limit{Rate: 2, Per: time.Hour, Burst: 48}},
		{"1/day", nil, desired.Limit{Rate: 1, Per: day, Burst: 1}},
		{"10/minute", new(0), desired.Limit{Rate: 10, Per: time.Minute, Burst: 1}},
		{"10/week", nil, desired.Limit{}}, // nobody can have written it
	} {
		var f render.Firewall
		change := f.Update(felix(func(s *api.FelixConfigurationSpec) {
			if c.rate != "" {
				s.LogActionRateLimit = &c.rate
			}
			if c.burst != nil {
				s.LogActionRateLimitBurst = c.burst
			}
		}).state())
		assert.Equal(t, c.want, change.Settings.LogLimit, "%q %v", c.rate, c.burst)
	}
}
