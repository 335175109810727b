// Package suite proves in the lab, with the real binaries and real packets, what Muslin promises. Its tests carry the
// build tag lab, need root and the binaries of make build (or those in $MUSLIN_BIN), and fail where these are missing. They
// are named after the promise. A test that fails shows the ends of all logs of its lab.
//
// Tests run in the order of their files' names. Those that need a kube-apiserver are in files that come late, since make test
// builds it meanwhile.
package suite
