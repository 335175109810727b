package kubernetes

import (
	"math/bits"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/types"
)

// ReversedUID is the uid of an object that is made of another: that one's with the bits of each byte reversed, but for the two
// bytes that say which kind of UUID it is. Reversing it again gives the first one back. What is no UUID stays what it is.
func ReversedUID(uid types.UID) types.UID {
	id, err := uuid.Parse(string(uid))
	if err != nil {
		return uid
	}
	for i := range id {
		if i != 6 && i != 8 {
			id[i] = bits.Reverse8(id[i])
		}
	}
	return types.UID(id.String())
}
