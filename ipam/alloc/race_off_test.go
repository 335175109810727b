//go:build !race

package alloc

// seeds is how many interleavings of each kind are tried.
const seeds = 1500
