// Package desired is the vocabulary in which felix says what the kernel of its node should hold: routes, neighbours,
// devices, links, sysctls and the firewall. It is pure data with a few pure functions over it. felix/render produces it,
// the drivers under felix/dataplane make the kernel agree with it.
//
// Values are immutable: whoever receives one must not change what its slices point to. Everything is keyed by what the
// kernel keys it by, so that "add" and "replace" are one verb, and a restart can adopt what is already there.
package desired
