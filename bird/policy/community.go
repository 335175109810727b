package policy

import (
	"slices"

	"github.com/muslin-net/muslin/api/bgp"
)

// Community is a standard or large community.
type Community = bgp.Community

// GracefulShutdown marks routes that will soon be gone (RFC 8326).
var gracefulShutdown = bgp.GracefulShutdown

// longLivedStale marks routes of a peer that is away for long (RFC 9494, LLGR_STALE).
var longLivedStale = Community{Parts: [3]uint32{65535, 6}}

// IsLongLivedStale tells whether communities say that a route is of a peer that is away for long: the last choice.
func IsLongLivedStale(communities []Community) bool {
	return slices.Contains(communities, longLivedStale)
}
