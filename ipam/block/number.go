package block

import (
	"encoding/binary"
	"math/big"
	"math/bits"
	"net/netip"
)

// number is an unsigned 128-bit integer: an address, or a distance between two. IPv4 addresses use the low 32 bits.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	if a.Is4() {
		b := a.As4()
		return number{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr turns n back into an address of family's family.
func (n number) addr(family netip.Addr) netip.Addr {
	if family.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n number) add(m number) number {
	lo, carry := bits.Add64(n.lo, m.lo, 0)
	hi, _ := bits.Add64(n.hi, m.hi, carry)
	return number{hi, lo}
}

func (n number) sub(m number) number {
	lo, borrow := bits.Sub64(n.lo, m.lo, 0)
	hi, _ := bits.Sub64(n.hi, m.hi, borrow)
	return number{hi, lo}
}

func (n number) cmp(m number) int {
	if n.hi != m.hi {
		if n.hi < m.hi {
			return -1
		}
		return 1
	}
	switch {
	case n.lo < m.lo:
		return -1
	case n.lo > m.lo:
		return 1
	}
	return 0
}

// shl is n << k for k of 0 to 128.
func (n number) shl(k int) number {
	if k >= 64 {
		return number{hi: n.lo << (k - 64)}
	}
	return number{hi: n.hi<<k | n.lo>>(64-k), lo: n.lo << k}
}

// shr is n >> k for k of 0 to 128.
func (n number) shr(k int) number {
	if k >= 64 {
		return number{lo: n.hi >> (k - 64)}
	}
	return number{hi: n.hi >> k, lo: n.lo>>k | n.hi<<(64-k)}
}

func (n number) big() *big.Int {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return new(big.Int).SetBytes(b[:])
}

func numberOfBig(b *big.Int) number {
	var buf [16]byte
	b.FillBytes(buf[:])
	return number{binary.BigEndian.Uint64(buf[:8]), binary.BigEndian.Uint64(buf[8:])}
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	a := p.Addr()
	size := number{lo: 1}.shl(a.BitLen() - p.Bits())
	return numberOf(p.Masked().Addr()).add(size).sub(number{lo: 1}).addr(a)
}

// Addresses is the number of addresses of a prefix.
func Addresses(p netip.Prefix) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits()))
}
