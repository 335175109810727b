// Package suite proves in the lab, with the real binaries and real packets, what Muslin promises. Its tests carry the
// build tag lab, need root and the binaries of make build, and fail where these are missing. They are named after the
// promise.
package suite
