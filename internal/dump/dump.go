// Package dump has the kernel list what others change meanwhile.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts bound how often a listing is asked for again.
const attempts = 10

// Whole asks for a listing until nothing changed while the kernel gave it, a few times at most: of one that was overtaken anything
// may be missing, also what did not change. If all were, what the last has is returned with netlink.ErrDumpInterrupted.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range attempts {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
