// Package slope judges whether a series of measurements grows: a leak goes on, while noise, a heap that finds its size and a
// burst do not.
package slope

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Point is one measurement.
type Point struct {
	At    time.Duration // since the beginning
	Value float64
}

// Trend is what a series does.
type Trend struct {
	PerHour float64 // median of the slopes between all pairs of points (Theil and Sen)
	Level   float64 // median value
	Noise   float64 // median distance from the line through them, which one in many outliers does not change
	Growth  float64 // over the time of the series, by that slope
	Agree   float64 // share of pairs that grow: half for noise, all for a straight line
}

// Of measures a series. It needs points at two times at least.
func Of(points []Point) Trend {
	var slopes []float64
	grow := 0.0
	for i, a := range points {
		for _, b := range points[i+1:] {
			if hours := (b.At - a.At).Hours(); hours > 0 {
				slopes = append(slopes, (b.Value-a.Value)/hours)
				switch {
				case b.Value > a.Value:
					grow++
				case b.Value == a.Value:
					grow += 0.5
				}
			}
		}
	}
	if len(slopes) == 0 {
		return Trend{}
	}
	t := Trend{PerHour: median(slopes), Agree: grow / float64(len(slopes))}
	values, rests := make([]float64, len(points)), make([]float64, len(points))
	for i, p := range points {
		values[i], rests[i] = p.Value, p.Value-t.PerHour*p.At.Hours()
	}
	t.Level = median(values)
	middle := median(rests)
	for i, r := range rests {
		rests[i] = math.Abs(r - middle)
	}
	t.Noise = median(rests)
	t.Growth = t.PerHour * (points[len(points)-1].At - points[0].At).Hours()
	return t
}

// Allowance is growth over a whole series that means nothing: a share of the level, and an amount for what is small.
type Allowance struct {
	Share, Amount float64
}

// Leaks tells whether a series grows beyond an allowance: by more than that and than its noise explains, steadily, and in its
// second half too. A heap that finds its size grows at first only.
func (t Trend) Leaks(a Allowance, second Trend) bool {
	least := max(a.Share*t.Level, a.Amount)
	const steady = 0.75
	return t.Growth > least && t.Growth > 3*t.Noise && t.Agree > steady && second.Growth > least/4 && second.Agree > 0.6
}

// Judge returns an error that tells of a leak, and the trend.
func Judge(name string, points []Point, a Allowance) (Trend, error) {
	t := Of(points)
	if len(points) < 10 {
		return t, fmt.Errorf("%s: %d measurements are too few to judge; measure at least 10", name, len(points))
	}
	if t.Leaks(a, Of(points[len(points)/2:])) {
		return t, fmt.Errorf("%s leaks: it grows by %.0f in an hour, steadily (%.0f of 100 pairs), from about %.0f by %.0f, with noise of %.0f",
			name, t.PerHour, 100*t.Agree, t.Level-t.Growth/2, t.Growth, t.Noise)
	}
	return t, nil
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
