package api

import "fmt"

// Backend says who brings routes to the nodes: the key calico_backend of a cluster's configuration, which reaches each
// process of a node as CALICO_NETWORKING_BACKEND.
type Backend string

// The backends.
const (
	BackendBird  Backend = "bird"  // BGP: bird and confd run on each node
	BackendVXLAN Backend = "vxlan" // no BGP; what Typha tells is all there is
	BackendNone  Backend = "none"  // policy only: no BGP, and nodes have no addresses of ours
)

// ParseBackend reads a backend; empty is bird.
func ParseBackend(text string) (Backend, error) {
	switch b := Backend(text); b {
	case "":
		return BackendBird, nil
	case BackendBird, BackendVXLAN, BackendNone:
		return b, nil
	}
	return "", fmt.Errorf("%q is no backend; use bird, vxlan or none", text)
}

// BGP tells whether nodes speak it: without it neither bird nor confd has anything to do.
func (b Backend) BGP() bool { return b == BackendBird }

// Speaker is which program speaks BGP on a node (setting CALICO_BGP_SPEAKER of its confd and felix).
type Speaker string

// The speakers.
const (
	SpeakerMuslin Speaker = "muslin" // our bird
	SpeakerBIRD2  Speaker = "bird2"  // BIRD 2, which writes the routes of pools without a tunnel itself
)

// ParseSpeaker reads a speaker; empty is our own.
func ParseSpeaker(text string) (Speaker, error) {
	switch s := Speaker(text); s {
	case "":
		return SpeakerMuslin, nil
	case SpeakerMuslin, SpeakerBIRD2:
		return s, nil
	}
	return "", fmt.Errorf("%q is no BGP speaker; use muslin or bird2", text)
}
