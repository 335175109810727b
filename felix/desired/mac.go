package desired

import (
	"fmt"
	"strconv"
	"strings"
)

// MAC is an Ethernet address. The zero value means none is known or wanted.
type MAC [6]byte

// HostMAC is the address of the host side of every workload's veth pair. It is the same everywhere, so that a pod's
// neighbour entry for its gateway stays right when the pod moves. Its IPv6 link-local address is HostLinkLocal.
var HostMAC = MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// ParseMAC reads "66:0a:…": six bytes in hexadecimal, separated by colons. The empty text is the zero MAC.
func ParseMAC(s string) (MAC, error) {
	if s == "" {
		return MAC{}, nil
	}
	parts := strings.Split(s, ":")
	if len(parts) != len(MAC{}) {
		return MAC{}, fmt.Errorf("address %q has %d parts, want 6 such as 66:12:34:56:78:9a", s, len(parts))
	}
	var m MAC
	for i, p := range parts {
		b, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) != 2 {
			return MAC{}, fmt.Errorf("address %q: part %q is not two hexadecimal digits", s, p)
		}
		m[i] = byte(b)
	}
	return m, nil
}

// String is the address in hexadecimal with colons, and "" for the zero MAC.
func (m MAC) String() string {
	if m.IsZero() {
		return ""
	}
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// IsZero tells whether no address is given.
func (m MAC) IsZero() bool { return m == MAC{} }
