package policy

import "github.com/muslin-net/muslin/api/bgp"

// Community is a standard or large community.
type Community = bgp.Community

// GracefulShutdown marks routes that will soon be gone (RFC 8326).
var gracefulShutdown = bgp.GracefulShutdown
