package policy

import "time"

// Defaults of BFD's parameters.
const (
	DefaultBFDInterval   = 300 * time.Millisecond
	DefaultBFDMultiplier = 3
)

// BFD is how the path to a peer is watched (RFC 5880). The zero value is: not at all.
type BFD struct {
	MinTx      time.Duration // interval of transmission wanted
	MinRx      time.Duration // interval of reception accepted
	Multiplier uint8         // packets that may be missed in a row; 0: no BFD
	Multihop   bool          // RFC 5883, else one hop (RFC 5881)
}

// Enabled tells whether there is BFD with the peer.
func (b BFD) Enabled() bool { return b.Multiplier > 0 }

func (v *validator) bfd(field string, b BFD) {
	if b.Enabled() {
		v.duration(field+"bfd.min_tx", b.MinTx, 10*time.Millisecond, time.Minute)
		v.duration(field+"bfd.min_rx", b.MinRx, 10*time.Millisecond, time.Minute)
	}
}
