package view

import (
	"crypto/sha256"
	"fmt"
	"hash/crc32"
)

// Parts is into how many parts Digests sort items.
const Parts = 256

// Digests say what somebody has of a view, in 4 KiB however many items these are: a digest of each part. Two who have the same
// digest of a part have the same items in it, at the same versions. The zero value is that of nothing.
type Digests [Parts]Version

// PartOf is the part that an item belongs to, whatever its version.
func PartOf(k Key) uint8 {
	sum := crc32.Update(crc32.ChecksumIEEE([]byte{byte(k.Kind)}), crc32.IEEETable, []byte(k.ID))
	return uint8(sum)
}

// Add counts an item in.
func (d *Digests) Add(k Key, v Version) {
	part := &d[PartOf(k)]
	*part = part.add(digestOf(k, v))
}

// Remove takes an item out again.
func (d *Digests) Remove(k Key, v Version) {
	part := &d[PartOf(k)]
	*part = part.sub(digestOf(k, v))
}

// digestOf has a zero byte after the id, which has none, so that no two items are written down the same.
func digestOf(k Key, v Version) Version {
	b := make([]byte, 0, 96)
	b = append(append(append(b, byte(k.Kind)), k.ID...), 0)
	sum := sha256.Sum256(append(b, v[:]...))
	return Version(sum[:16])
}

// Differing are the parts of which digests differ, in ascending order.
func (d *Digests) Differing(from *Digests) (parts []uint8) {
	for i := range d {
		if d[i] != from[i] {
			parts = append(parts, uint8(i))
		}
	}
	return parts
}

// Bytes is the digests one after the other; nil for those of nothing.
func (d *Digests) Bytes() []byte {
	if *d == (Digests{}) {
		return nil
	}
	out := make([]byte, 0, len(d)*len(d[0]))
	for _, v := range d {
		out = append(out, v[:]...)
	}
	return out
}

// DigestsOf reads what Bytes wrote; nil are those of nothing.
func DigestsOf(b []byte) (*Digests, error) {
	if len(b) == 0 || before != "" {
		return nil, nil
	}
	var d Digests
	if len(b) != len(d)*len(d[0]) {
		return nil, fmt.Errorf("digests of %d bytes cannot be read; send %d of %d bytes each, or none", len(b), len(d), len(d[0]))
	}
	for i := range d {
		copy(d[i][:], b[i*len(d[0]):])
	}
	return &d, nil
}
