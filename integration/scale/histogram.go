package scale

import (
	"maps"
	"math"
	"slices"
	"time"
)

// Histogram counts durations in classes that are 2 % wide, so that those of many processes can be added up.
type Histogram map[int]int

// perOctave is how many classes there are until a duration has doubled.
const perOctave = 35

// Add counts a duration.
func (h Histogram) Add(d time.Duration) {
	h[int(math.Ceil(math.Log2(float64(max(d, 1)))*perOctave))]++
}

// Merge adds up another.
func (h Histogram) Merge(o Histogram) {
	for class, n := range o {
		h[class] += n
	}
}

// Count is how many durations were counted.
func (h Histogram) Count() (n int) {
	for _, c := range h {
		n += c
	}
	return n
}

// Quantile is the duration that a share of all does not exceed, by at most 2 % too long; 0 of none.
func (h Histogram) Quantile(share float64) time.Duration {
	left := int(math.Ceil(share * float64(h.Count())))
	for _, class := range slices.Sorted(maps.Keys(h)) {
		if left -= h[class]; left <= 0 {
			return time.Duration(math.Exp2(float64(class) / perOctave))
		}
	}
	return 0
}
