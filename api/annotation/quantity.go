package annotation

import (
	"math/bits"
	"strconv"
	"strings"
)

// suffixes are what a quantity may end with: it is multiplied by factor and divided by 10^tens.
var suffixes = map[string]struct {
	factor uint64
	tens   int
}{
	"": {1, 0}, "n": {1, 9}, "u": {1, 6}, "m": {1, 3},
	"k": {1e3, 0}, "M": {1e6, 0}, "G": {1e9, 0}, "T": {1e12, 0}, "P": {1e15, 0}, "E": {1e18, 0},
	"Ki": {1 << 10, 0}, "Mi": {1 << 20, 0}, "Gi": {1 << 30, 0}, "Ti": {1 << 40, 0}, "Pi": {1 << 50, 0}, "Ei": {1 << 60, 0},
}

// Quantity reads a number as Kubernetes writes quantities: "1500", "10M", "1.5Gi", "2e6". What is finer than one is rounded
// up. ok is false if it is none, is negative, or has more than 19 digits or does not fit.
func Quantity(s string) (n uint64, ok bool) {
	s = strings.TrimPrefix(s, "+")
	suffix := strings.TrimLeft(s, "0123456789.")
	whole, fraction, _ := strings.Cut(s[:len(s)-len(suffix)], ".")
	unit, ok := suffixes[suffix]
	if !ok {
		exponent, err := strconv.Atoi(suffix[1:])
		if suffix[0] != 'e' && suffix[0] != 'E' || err != nil || exponent > 18 || exponent < -18 {
			return 0, false
		}
		unit.factor, unit.tens = pow10(max(exponent, 0)), max(-exponent, 0)
	}
	digits, err := strconv.ParseUint(whole+fraction, 10, 64)
	unit.tens += len(fraction)
	if err != nil || unit.tens > 19 {
		return 0, false
	}
	high, low := bits.Mul64(digits, unit.factor)
	divisor := pow10(unit.tens)
	if high >= divisor {
		return 0, false
	}
	n, rest := bits.Div64(high, low, divisor)
	if rest > 0 {
		n++
	}
	return n, true
}

// pow10 is 10^n, for n up to 19.
func pow10(n int) uint64 {
	out := uint64(1)
	for range n {
		out *= 10
	}
	return out
}
