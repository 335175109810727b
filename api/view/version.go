package view

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/bits"
)

// encoding is the number of the canonical encoding that versions are computed over. It changes when the meaning of a
// field changes, never when one is added.
const encoding = 1

// before is set by the linker, -X github.com/muslin-net/muslin/api/view.before=yes, for tests of upgrades: the program is one of the
// version of the protocol before then, as far as it is asked for views. That version knows no digests (DigestsOf), and endpoints have no
// floating addresses in what their versions are made of.
var before string

// withoutNATs is an endpoint as the version before encodes it.
type withoutNATs struct {
	WorkloadEndpoint
	NATs *struct{} `json:",omitempty"` // hides that of the endpoint
}

// Version identifies content: 16 bytes, equal for equal content on every replica.
type Version [16]byte

// String is the version in hexadecimal.
func (v Version) String() string { return hex.EncodeToString(v[:]) }

// VersionOf computes an item's version: the first 16 bytes of SHA-256 over kind, encoding number and the canonical
// encoding (JSON with fields in declaration order and sorted map keys). An IPSet's version is the sum of its members'
// hashes instead, so that it can be kept up by difference; see AddMember.
func VersionOf(it Item) Version {
	if s, ok := it.(IPSet); ok {
		return setVersion(s)
	}
	var canonical any = it
	if r, ok := it.(Resource); ok {
		canonical = r.Object
	}
	if w, ok := it.(WorkloadEndpoint); ok && before != "" {
		canonical = withoutNATs{WorkloadEndpoint: w}
	}
	return hash(it.Key().Kind, canonical)
}

// AddMember returns the version of a set after a member joined it. The version of an empty set is EmptySet of its type.
func (v Version) AddMember(m Member) Version { return v.add(hash(KindIPSet, m)) }

// RemoveMember returns the version of a set after a member left it.
func (v Version) RemoveMember(m Member) Version { return v.sub(hash(KindIPSet, m)) }

// EmptySet is the version of a set without members.
func EmptySet(t SetType) Version { return hash(KindIPSet, t) }

func setVersion(s IPSet) Version {
	v := EmptySet(s.Type)
	for _, m := range s.Members {
		v = v.AddMember(m)
	}
	return v
}

func hash(kind Kind, content any) Version {
	body, err := json.Marshal(content)
	if err != nil {
		panic(fmt.Sprintf("view: %T has no canonical encoding: %v", content, err)) // plain data always has one
	}
	h := sha256.New()
	h.Write([]byte{byte(kind), encoding})
	h.Write(body)
	return Version(h.Sum(nil)[:16])
}

func (v Version) add(w Version) Version {
	lo, carry := bits.Add64(v.lo(), w.lo(), 0)
	hi, _ := bits.Add64(v.hi(), w.hi(), carry)
	return join(hi, lo)
}

func (v Version) sub(w Version) Version {
	lo, borrow := bits.Sub64(v.lo(), w.lo(), 0)
	hi, _ := bits.Sub64(v.hi(), w.hi(), borrow)
	return join(hi, lo)
}

func (v Version) hi() uint64 { return binary.BigEndian.Uint64(v[:8]) }
func (v Version) lo() uint64 { return binary.BigEndian.Uint64(v[8:]) }

func join(hi, lo uint64) (v Version) {
	binary.BigEndian.PutUint64(v[:8], hi)
	binary.BigEndian.PutUint64(v[8:], lo)
	return v
}
