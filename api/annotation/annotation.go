// Package annotation reads what pods and namespaces ask of their network by annotations (spec §1.10, §5.6). Whoever sees
// annotations first reads them with it: typha from Kubernetes, the CNI plugin from a runtime that hands them on. It is pure,
// and small, since the plugin is started for each pod.
package annotation

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The annotations, for messages; those of limits are in limits.go.
const (
	prefix          = "cni.projectcalico.org/"
	ipv4Pools       = prefix + "ipv4pools"
	ipv6Pools       = prefix + "ipv6pools"
	ipFamilies      = prefix + "ipFamilies"
	ipAddrs         = prefix + "ipAddrs"
	ipAddrsNoIPAM   = prefix + "ipAddrsNoIpam"
	floatingIPs     = prefix + "floatingIPs"
	hwAddr          = prefix + "hwAddr"
	allowedPrefixes = prefix + "allowedSourcePrefixes"
)

// Request is what annotations ask for. What is not asked for is nil or empty.
type Request struct {
	IPv4Pools, IPv6Pools []string     // CIDRs or names of pools
	Families             []string     // exactly these: "IPv4", "IPv6"
	Addresses            []netip.Addr // assigned by IPAM, at most one of each family
	Unmanaged            []netip.Addr // used as they are, past IPAM; at most one of each family
	Floating             []netip.Addr // addresses outside that lead to the pod, at most one of each family
	MAC                  string       // of the pod's interface, as "aa:bb:cc:dd:ee:ff"
	AllowedSources       []netip.Prefix
	Limits               Limits
}

// Asks tells whether an annotation is one that Pod or Namespace reads.
func Asks(key string) bool {
	switch key {
	case ipv4Pools, ipv6Pools, ipFamilies, ipAddrs, ipAddrsNoIPAM, floatingIPs, hwAddr, allowedPrefixes:
		return true
	}
	return isLimit(key)
}

// Pod reads the annotations of a pod. The error names the annotation, its value and what it should be.
func Pod(annotations map[string]string) (Request, error) {
	r, err := Namespace(annotations)
	if err != nil {
		return r, err
	}
	lists := func(key string, into *[]netip.Addr) error {
		addrs, err := addressesOf(annotations, key)
		*into = addrs
		return err
	}
	if err := firstOf(
		func() error { return list(annotations, ipFamilies, `["IPv4"]`, &r.Families) },
		func() error { return lists(ipAddrs, &r.Addresses) },
		func() error { return lists(ipAddrsNoIPAM, &r.Unmanaged) },
		func() error { return lists(floatingIPs, &r.Floating) },
		func() error { return list(annotations, allowedPrefixes, `["10.1.0.0/16"]`, &r.AllowedSources) },
		func() (err error) { r.Limits, err = limitsOf(annotations); return err },
	); err != nil {
		return r, err
	}
	for _, f := range r.Families {
		if f != "IPv4" && f != "IPv6" {
			return r, bad(ipFamilies, annotations[ipFamilies], `holds a family that there is not; use "IPv4" and "IPv6"`)
		}
	}
	if len(r.Addresses) > 0 && len(r.Unmanaged) > 0 {
		return r, bad(ipAddrsNoIPAM, annotations[ipAddrsNoIPAM], "cannot stand beside "+ipAddrs+"; keep one of them")
	}
	if text := annotations[hwAddr]; text != "" {
		var ok bool
		if r.MAC, ok = MAC(text); !ok {
			return r, bad(hwAddr, text, "is not the Ethernet address of one interface; write it as 02:00:5e:10:00:01")
		}
	}
	return r, nil
}

// Namespace reads the annotations of a namespace: its pods' pools, where a pod names none.
func Namespace(annotations map[string]string) (Request, error) {
	var r Request
	err := firstOf(
		func() error { return list(annotations, ipv4Pools, `["default-ipv4-ippool"]`, &r.IPv4Pools) },
		func() error { return list(annotations, ipv6Pools, `["default-ipv6-ippool"]`, &r.IPv6Pools) },
	)
	return r, err
}

// Within is what a pod asks for in a namespace: its own pools beat the namespace's, for each family.
func (r Request) Within(namespace Request) Request {
	if len(r.IPv4Pools) == 0 {
		r.IPv4Pools = namespace.IPv4Pools
	}
	if len(r.IPv6Pools) == 0 {
		r.IPv6Pools = namespace.IPv6Pools
	}
	return r
}

func firstOf(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// list reads a JSON list; an absent or empty one asks for nothing.
func list[T any](annotations map[string]string, key, example string, into *[]T) error {
	text := annotations[key]
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return bad(key, text, fmt.Sprintf("is not such a JSON list (%v); write it as %s", err, example))
	}
	return nil
}

// addressesOf reads a list with at most one address of each family.
func addressesOf(annotations map[string]string, key string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	if err := list(annotations, key, `["10.1.2.3"]`, &addrs); err != nil {
		return nil, err
	}
	if !OneEach(addrs) {
		return nil, bad(key, annotations[key], "holds several addresses of one family, or one that is none of a host; give at most one IPv4 and one IPv6 address")
	}
	slices.SortFunc(addrs, netip.Addr.Compare) // IPv4 first
	return addrs, nil
}

// OneEach tells whether there is at most one address of each family, each such as a pod may have.
func OneEach(addrs []netip.Addr) bool {
	four, six := 0, 0
	for _, a := range addrs {
		switch {
		case !a.IsValid(), a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.Is4In6(), a.Zone() != "":
			return false
		case a.Is4():
			four++
		default:
			six++
		}
	}
	return four <= 1 && six <= 1
}

// MAC reads the address of one Ethernet interface and writes it in lower case with colons; ok is false if it is none.
func MAC(s string) (mac string, ok bool) {
	s = strings.ToLower(strings.ReplaceAll(s, "-", ":"))
	if len(s) != len("02:00:00:00:00:00") || s == "00:00:00:00:00:00" {
		return "", false
	}
	for i, c := range s {
		if i%3 == 2 && c != ':' || i%3 != 2 && !strings.ContainsRune("0123456789abcdef", c) {
			return "", false
		}
	}
	return s, strings.ContainsRune("02468ace", rune(s[1])) // an odd first byte is a group's address
}

func bad(key, value, why string) error {
	return fmt.Errorf("annotation %s: %q %s", key, value, why)
}
