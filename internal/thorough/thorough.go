// Package thorough says how far tests of random changes go. The race detector makes such a test ten times as slow, and finds
// nothing in one that runs on a single goroutine; so they go a part of the way under it (make unit), and all of it without
// (make property).
package thorough

// Rounds is how many rounds to go: some under the race detector, all without it.
func Rounds(some, all int) int {
	if race {
		return some
	}
	return all
}
