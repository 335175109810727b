package bgp

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Community is a standard community (RFC 1997) or a large one (RFC 8092). It is comparable.
type Community struct {
	Large bool
	Parts [3]uint32 // two parts of 16 bits, or three of 32
}

// GracefulShutdown marks routes that will soon be gone (RFC 8326).
var GracefulShutdown = Community{Parts: [3]uint32{65535, 0}}

// ParseCommunity reads "aa:nn" with parts of 16 bits or "aa:nn:mm" with parts of 32 bits.
func ParseCommunity(s string) (Community, error) {
	fields := strings.Split(s, ":")
	c := Community{Large: len(fields) == 3}
	most := uint64(math.MaxUint16)
	if c.Large {
		most = math.MaxUint32
	}
	if len(fields) != 2 && len(fields) != 3 {
		return Community{}, badCommunity(s)
	}
	for i, f := range fields {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil || n > most {
			return Community{}, badCommunity(s)
		}
		c.Parts[i] = uint32(n)
	}
	return c, nil
}

func badCommunity(s string) error {
	return fmt.Errorf("%q is not a community: write aa:nn with numbers up to 65535, or aa:nn:mm with numbers up to 4294967295", s)
}

// String is the form that ParseCommunity reads.
func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.Parts[0], c.Parts[1], c.Parts[2])
	}
	return fmt.Sprintf("%d:%d", c.Parts[0], c.Parts[1])
}
