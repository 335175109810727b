package slope

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// series measures every 5 s over 10 minutes.
func series(value func(minutes float64, r *rand.Rand) float64, seed uint64) []Point {
	r := rand.New(rand.NewPCG(seed, 2))
	var out []Point
	for at := time.Duration(0); at < 10*time.Minute; at += 5 * time.Second {
		out = append(out, Point{at, value(at.Minutes(), r)})
	}
	return out
}

func TestLeaksAreFoundAndNothingElse(t *testing.T) {
	const mega = 1e6
	memory := Allowance{Share: 0.10, Amount: 8 * mega}
	count := Allowance{Share: 0.02, Amount: 5}
	// sawtooth is a heap between collections: up to 40 MB above what is in use.
	sawtooth := func(m float64, r *rand.Rand) float64 {
		return 40 * mega * (m*7 - float64(int(m*7))) * (0.8 + 0.4*r.Float64())
	}
	cases := []struct {
		name  string
		leaks bool
		allow Allowance
		value func(m float64, r *rand.Rand) float64
	}{
		{"constant", false, memory, func(float64, *rand.Rand) float64 { return 100 * mega }},
		{"noise", false, memory, func(_ float64, r *rand.Rand) float64 { return 100*mega + 50*mega*r.Float64() }},
		{"sawtooth", false, memory, func(m float64, r *rand.Rand) float64 { return 100*mega + sawtooth(m, r) }},
		{"heap that finds its size in the first two minutes", false, memory, func(m float64, r *rand.Rand) float64 {
			return 60*mega + 40*mega*min(m/2, 1) + 5*mega*r.Float64()
		}},
		{"burst in the middle", false, memory, func(m float64, r *rand.Rand) float64 {
			if m > 4 && m < 6 {
				return 300 * mega
			}
			return 100*mega + 5*mega*r.Float64()
		}},
		{"one high measurement at the end", false, memory, func(m float64, _ *rand.Rand) float64 {
			if m > 9.9 {
				return 900 * mega
			}
			return 100 * mega
		}},
		{"leak of 5 MB a minute", true, memory, func(m float64, r *rand.Rand) float64 { return 100*mega + 5*mega*m + 5*mega*r.Float64() }},
		{"the same under a sawtooth", true, memory, func(m float64, r *rand.Rand) float64 { return 100*mega + 10*mega*m + sawtooth(m, r) }},
		{"the same in steps of a minute", true, memory, func(m float64, _ *rand.Rand) float64 { return 100*mega + 5*mega*float64(int(m)) }},
		{"goroutines that come and go", false, count, func(_ float64, r *rand.Rand) float64 { return 200 + float64(r.IntN(40)) }},
		{"three goroutines a minute", true, count, func(m float64, r *rand.Rand) float64 { return 200 + float64(int(3*m)) + float64(r.IntN(5)) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(50) {
				_, err := Judge("it", series(c.value, seed), c.allow)
				assert.Equal(t, c.leaks, err != nil, "seed %d: %v", seed, err)
			}
		})
	}
}

func TestTooFewMeasurementsAreNoVerdict(t *testing.T) {
	_, err := Judge("it", []Point{{0, 1}, {time.Second, 1}}, Allowance{})
	assert.ErrorContains(t, err, "too few")
}

func TestSlopeIsThatOfTheLine(t *testing.T) {
	trend := Of(series(func(m float64, _ *rand.Rand) float64 { return 7 + 2*m }, 1))
	assert.InDelta(t, 120, trend.PerHour, 1e-6)
	assert.InDelta(t, 0, trend.Noise, 1e-6)
	assert.InDelta(t, 1, trend.Agree, 1e-6)
}
