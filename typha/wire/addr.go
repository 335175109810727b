package wire

import (
	"fmt"
	"net"
	"net/netip"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// macLength is the length of an Ethernet address in bytes.
const macLength = 6

// EncodePrefix returns a prefix's message, nil for an invalid (unset) prefix. Bits after the length are kept: a node's
// address is written as a prefix of its subnet.
func EncodePrefix(p netip.Prefix) *typhav1.Prefix {
	if !p.IsValid() {
		return nil
	}
	return &typhav1.Prefix{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

// DecodePrefix returns the prefix of a message, the invalid prefix for none.
func DecodePrefix(m *typhav1.Prefix) (netip.Prefix, error) {
	if m == nil {
		return netip.Prefix{}, nil
	}
	a, err := DecodeAddr(m.GetAddress())
	if err != nil {
		return netip.Prefix{}, err
	}
	if !a.IsValid() || m.GetLength() > uint32(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix length %d does not fit the address %v", m.GetLength(), a)
	}
	return netip.PrefixFrom(a, int(m.GetLength())), nil
}

// EncodeAddrs returns the bytes of addresses, nil for none.
func EncodeAddrs(addrs []netip.Addr) [][]byte {
	var out [][]byte
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}

// DecodeAddr returns the address of 4 or 16 bytes, the invalid address for none. An IPv4 address written in 16 bytes is
// an error, so that equal addresses always compare equal.
func DecodeAddr(b []byte) (netip.Addr, error) {
	if len(b) == 0 {
		return netip.Addr{}, nil
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%x is no address: write 4 bytes for IPv4, 16 for IPv6", b)
	}
	return a, nil
}

// DecodeAddrs returns the addresses of a list, of which none may be empty; nil for none.
func DecodeAddrs(list [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range list {
		a, err := DecodeAddr(b)
		if err == nil && !a.IsValid() {
			err = fmt.Errorf("an address in a list is empty")
		}
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// DecodeMAC returns an Ethernet address as text, empty for none.
func DecodeMAC(b []byte) (string, error) {
	if len(b) == 0 {
		return "", nil
	}
	if len(b) != macLength {
		return "", fmt.Errorf("%x is no Ethernet address: it must have 6 bytes", b)
	}
	return net.HardwareAddr(b).String(), nil
}

// EncodePrefixes writes a list.
func EncodePrefixes(prefixes []netip.Prefix) []*typhav1.Prefix {
	var out []*typhav1.Prefix
	for _, p := range prefixes {
		out = append(out, EncodePrefix(p))
	}
	return out
}

// DecodePrefixes reads a list, of which none may be empty.
func DecodePrefixes(list []*typhav1.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, m := range list {
		p, err := requiredPrefix(m)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func requiredPrefix(m *typhav1.Prefix) (netip.Prefix, error) {
	p, err := DecodePrefix(m)
	if err == nil && !p.IsValid() {
		err = fmt.Errorf("a prefix is missing")
	}
	return p, err
}
