package check

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The largest size that fits is found in few rounds, whatever it is.
func TestTheIntervalShrinksToOne(t *testing.T) {
	for _, wanted := range []int{smallSize, 1280, 1500, 9001, 65535} {
		for fits := smallSize; fits < wanted; fits += 1 + wanted/97 {
			low, high, rounds := smallSize, wanted, 0
			for high-low > 1 {
				sizes := between(low, high)
				require.True(t, slices.IsSortedFunc(sizes, func(a, b int) int { return b - a }))
				require.NotEmpty(t, sizes)
				require.LessOrEqual(t, len(sizes), guesses)
				for _, size := range sizes {
					require.True(t, low < size && size < high)
				}
				for _, size := range sizes {
					if size <= fits {
						low = size
						break
					}
					high = size
				}
				rounds++
			}
			require.Equal(t, fits, low)
			require.LessOrEqual(t, rounds, 4)
		}
	}
}

func TestChecksum(t *testing.T) {
	require.Equal(t, uint16(0x220d), checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7})) // RFC 1071 §3: the sum is ddf2
	require.Equal(t, ^uint16(0x0100), checksum([]byte{1}))
}
