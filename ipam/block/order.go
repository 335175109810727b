package block

import (
	"hash/fnv"
	"iter"
	"math/big"
	"math/rand"
	"net/netip"
	"time"
)

// Order is the sequence in which a node tries the block positions of one pool: from a start that depends on the node's
// name upwards, round the end, each once. All allocators of a node must agree on it, or concurrent requests scatter over
// several blocks; it is Calico's order, so that both can work on one cluster. It is a convention, not a safeguard.
type Order struct {
	pool  netip.Prefix
	bits  int    // prefix length of a block
	n     number // positions
	start number // index of the first one
}

// NewOrder returns the order for a pool cut into blocks of prefix length bits. The start is a uniform draw below n from
// math/rand's classic source, seeded with the FNV-1 hash of the bare node name, and made anew for each walk. Blocks of
// one address have no neighbours to converge on, so there the seed is the time.
func NewOrder(pool netip.Prefix, bits int, node string, now time.Time) Order {
	pool = pool.Masked()
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-pool.Bits()))
	seed := now.UnixNano()
	if bits < pool.Addr().BitLen() {
		h := fnv.New32()
		h.Write([]byte(node))
		seed = int64(h.Sum32())
	}
	start := new(big.Int).Rand(rand.New(rand.NewSource(seed)), n)
	return Order{pool: pool, bits: bits, n: numberOfBig(n), start: numberOfBig(start)}
}

// Positions yields the positions in order, without those that are wholly reserved. It is as long as the pool is wide:
// callers stop at the first one that will do. Reserved stretches cost nothing, however wide.
func (o Order) Positions(reserved Reserved) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if o.stretch(o.start, o.n, reserved, yield) {
			o.stretch(number{}, o.start, reserved, yield)
		}
	}
}

// stretch yields the positions with index from up to but without end, and returns whether to go on.
func (o Order) stretch(from, end number, reserved Reserved, yield func(netip.Prefix) bool) bool {
	for i := from; i.cmp(end) < 0; {
		p := o.position(i)
		if in, ok := reserved.at(p.Addr()); ok && last(p).Compare(in.to) <= 0 {
			// Leap behind the last position that is wholly inside this reserved range.
			inside := number{lo: 1}.shl(o.shift()).sub(number{lo: 1})
			i = numberOf(in.to).sub(numberOf(o.pool.Addr())).sub(inside).shr(o.shift()).add(number{lo: 1})
			continue
		}
		if !yield(p) {
			return false
		}
		i = i.add(number{lo: 1})
	}
	return true
}

// Compare orders two positions of the pool by the time at which the walk reaches them.
func (o Order) Compare(a, b netip.Prefix) int { return o.rank(a).cmp(o.rank(b)) }

func (o Order) rank(p netip.Prefix) number {
	i := numberOf(p.Addr()).sub(numberOf(o.pool.Addr())).shr(o.shift())
	if i.cmp(o.start) < 0 {
		i = i.add(o.n)
	}
	return i.sub(o.start)
}

func (o Order) position(i number) netip.Prefix {
	base := o.pool.Addr()
	return netip.PrefixFrom(numberOf(base).add(i.shl(o.shift())).addr(base), o.bits)
}

// shift is the number of address bits inside a block.
func (o Order) shift() int { return o.pool.Addr().BitLen() - o.bits }
