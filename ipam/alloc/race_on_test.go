//go:build race

package alloc

// seeds is how many interleavings of each kind are tried. The race detector makes them slow and has little to find in
// goroutines that run one at a time.
const seeds = 200
