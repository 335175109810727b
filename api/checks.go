package api

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/muslin-net/muslin/api/selector"
)

// The checks of values that several kinds share. Each reports at most one entry for a value, and takes an empty optional
// string for not given.

// maxSelector is how long a selector field may be, in bytes.
const maxSelector = 1024

// family is an IP version that a value must have.
type family int

const (
	anyFamily family = 0
	ipv4      family = 4
	ipv6      family = 6
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string {
	switch f {
	case ipv4:
		return "IPv4"
	case ipv6:
		return "IPv6"
	}
	return "IP"
}

// article begins a noun: "an IPv4 ".
func (f family) article() string { return "an " + f.String() + " " }

// example is an address of the family, for fixes.
func (f family) example() string {
	if f == ipv6 {
		return "fd00:10::7"
	}
	return "10.0.0.7"
}

// network is a network of the family, for fixes.
func (f family) network() string {
	if f == ipv6 {
		return "fd00:10::/64"
	}
	return "10.0.0.0/24"
}

// ParseNet reads a CIDR or a bare address, which stands for itself alone. Bits after the prefix are kept.
func ParseNet(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%s has a zone", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// net checks a network: no bits after the prefix. It returns the network if it is one.
func (c *checker) net(at path, s string, f family) (netip.Prefix, bool) {
	p, ok := c.cidr(at, s, f)
	if ok && p != p.Masked() {
		c.bad(at, s, "has bits set after its prefix", "write "+p.Masked().String())
		return p, false
	}
	return p, ok
}

// cidr checks a CIDR or address, whose bits after the prefix may be set.
func (c *checker) cidr(at path, s string, f family) (netip.Prefix, bool) {
	p, err := ParseNet(s)
	switch {
	case err != nil:
		c.bad(at, s, "is not "+f.article()+"CIDR or address", "write it like "+f.network())
		return p, false
	case f != anyFamily && familyOf(p.Addr()) != f:
		c.bad(at, s, "is not "+f.article()+"network", "write it like "+f.network())
		return p, false
	}
	return p, true
}

// nets checks a list of networks with c.net or c.cidr, and that none is there twice.
func (c *checker) nets(at path, list []string, f family, check func(path, string, family) (netip.Prefix, bool)) {
	for i, s := range list {
		check(at.index(i), s, f)
	}
	unique(c, at, list)
}

// ip checks an address without prefix or zone.
func (c *checker) ip(at path, s string, f family) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || (f != anyFamily && familyOf(a) != f) {
		c.bad(at, s, "is not "+f.article()+"address", "write it like "+f.example())
		return a, false
	}
	return a, true
}

func (c *checker) optionalIP(at path, s string, f family) {
	if s != "" {
		c.ip(at, s, f)
	}
}

var macForm = regexp.MustCompile(`^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$`)

func (c *checker) optionalMAC(at path, s string) {
	if s != "" && !macForm.MatchString(s) {
		c.bad(at, s, "is not an Ethernet address", "write it like 66:aa:bb:cc:dd:01")
	}
}

// selector checks a selector that cannot say global(), unless allowGlobal, and then only alone.
func (c *checker) selector(at path, s string, allowGlobal bool) {
	if len(s) > maxSelector {
		c.bad(at, s, fmt.Sprintf("has %d characters, %d are allowed", len(s), maxSelector), "shorten it, for instance by a label that stands for several")
		return
	}
	parsed, err := selector.Parse(s)
	switch {
	case err != nil:
		reason := "is not a selector"
		if syntax := (*selector.SyntaxError)(nil); errors.As(err, &syntax) {
			reason = fmt.Sprintf("is not a selector: at position %d: found %s, expected %s", syntax.Position, syntax.Found, syntax.Expected)
		}
		c.bad(at, s, reason, "correct the selector there")
	case !parsed.UsesGlobal():
	case !allowGlobal:
		c.bad(at, s, "uses global(), which only the namespaceSelector of a rule can", "remove global()")
	case !parsed.IsGlobal():
		c.bad(at, s, "combines global() with something else", "write global() alone, or leave it out")
	}
}

// oneOf checks an enumeration; the empty value is for the caller to have excluded.
func oneOf[T ~string](c *checker, at path, value T, choices ...T) {
	if !slices.Contains(choices, value) {
		names := make([]string, len(choices))
		for i, choice := range choices {
			names[i] = string(choice)
		}
		c.bad(at, string(value), "is not one of the values of this field", "write "+strings.Join(names, " or "))
	}
}

func optionalOneOf[T ~string](c *checker, at path, value T, choices ...T) {
	if value != "" {
		oneOf(c, at, value, choices...)
	}
}

// unique checks that a list has nothing twice.
func unique[T comparable](c *checker, at path, list []T) {
	seen := make(map[T]int, len(list))
	for i, item := range list {
		if first, ok := seen[item]; ok {
			c.bad(at.index(i), item, fmt.Sprintf("is already in the list, at index %d", first), "remove one of the two")
			continue
		}
		seen[item] = i
	}
}

// between checks a number.
func between[T ~int | ~int32 | ~int64 | ~uint8 | ~uint16 | ~uint32](c *checker, at path, value, low, high T) {
	if value < low || value > high {
		c.bad(at, value, "is out of range", fmt.Sprintf("write a number from %d to %d", low, high))
	}
}

// atMost checks the length of a list.
func (c *checker) atMost(at path, length, most int) {
	if length > most {
		c.bad(at, length, fmt.Sprintf("is the number of items, but %d is the most", most), "split the list over several objects or rules")
	}
}

// name checks the name of some object.
func (c *checker) name(at path, s string) {
	if problems := validation.IsDNS1123Subdomain(s); problems != nil {
		c.bad(at, s, "is not a valid name", "write lower-case letters, digits, - and ., at most 253 characters, beginning and ending with a letter or digit")
	}
}

func (c *checker) optionalName(at path, s string) {
	if s != "" {
		c.name(at, s)
	}
}

var (
	interfaceName   = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,15}$`)
	interfaceFilter = regexp.MustCompile(`^[a-zA-Z0-9:._+-]{1,15}$`)
	interfaceGlob   = regexp.MustCompile(`^[a-zA-Z0-9_.*-]{1,15}$`)
)

// iface checks the name of an interface.
func (c *checker) iface(at path, s string) {
	if !interfaceName.MatchString(s) {
		c.bad(at, s, "is not the name of an interface", "write 1 to 15 letters, digits, _ . -")
	}
}

// protocol checks a protocol.
func (c *checker) protocol(at path, p Protocol) {
	if _, ok := p.Number(); !ok {
		c.bad(at, string(p), "is not a protocol", "write TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255")
	}
}

// portedProtocol checks a protocol that has ports.
func (c *checker) portedProtocol(at path, p Protocol) {
	if !p.SupportsPorts() {
		c.bad(at, string(p), "is not a protocol with ports", "write TCP, UDP or SCTP")
	}
}

// portName checks the name of a port.
func (c *checker) portName(at path, s string) {
	if validation.IsValidPortName(s) != nil {
		c.bad(at, s, "is not the name of a port", "write 1 to 15 lower-case letters, digits and -, with at least one letter, beginning and ending with a letter or digit")
	}
}

// port checks a port, range or name.
func (c *checker) port(at path, p Port) {
	switch {
	case p.Name != "":
		c.portName(at, p.Name)
	case p.First == 0:
		c.bad(at, p.String(), "is not a port", "write a number from 1 to 65535, or a range such as \"8000:8080\"")
	case p.First > p.Last:
		c.bad(at, p.String(), "is a range that runs backwards", fmt.Sprintf("write \"%d:%d\"", p.Last, p.First))
	}
}

// community checks a community value.
func (c *checker) community(at path, v string) {
	if !isCommunity(v) {
		c.bad(at, v, "is not a community", "write aa:nn with parts up to 65535, or aa:nn:mm with parts up to 4294967295")
	}
}

func isCommunity(v string) bool {
	parts := strings.Split(v, ":")
	bits := map[int]int{2: 16, 3: 32}[len(parts)]
	return bits != 0 && !slices.ContainsFunc(parts, func(part string) bool {
		_, err := strconv.ParseUint(part, 10, bits)
		return err != nil
	})
}

// duration checks that a time span, if given, is not negative.
func (c *checker) duration(at path, d *metav1.Duration) {
	if d != nil && d.Duration < 0 {
		c.bad(at, d.Duration, "is negative", "write a duration such as 90s")
	}
}

// regexp checks a regular expression.
func (c *checker) regexp(at path, s string) {
	if _, err := regexp.Compile(s); err != nil {
		c.bad(at, s, "is not a regular expression: "+err.Error(), "correct it (the syntax is RE2)")
	}
}

// labels checks a map of labels.
func (c *checker) labels(at path, labels map[string]string) {
	for _, key := range sortedKeys(labels) {
		if problems := validation.IsQualifiedName(key); problems != nil {
			c.bad(at.key(key), key, "is not a label key: "+problems[0], "write [prefix/]name with letters, digits, - _ .")
		}
		if problems := validation.IsValidLabelValue(labels[key]); problems != nil {
			c.bad(at.key(key), labels[key], "is not a label value: "+problems[0], "write at most 63 letters, digits, - _ .")
		}
	}
}

// maxAnnotations is how many bytes an object's annotations may have together, keys and values.
const maxAnnotations = 256 << 10

// annotations checks a map of annotations.
func (c *checker) annotations(at path, annotations map[string]string) {
	total := 0
	for _, key := range sortedKeys(annotations) {
		total += len(key) + len(annotations[key])
		if problems := validation.IsQualifiedName(strings.ToLower(key)); problems != nil {
			c.bad(at.key(key), key, "is not an annotation key: "+problems[0], "write [prefix/]name with letters, digits, - _ .")
		}
	}
	if total > maxAnnotations {
		c.bad(at, total, "is the size of the annotations in bytes", fmt.Sprintf("keep them under %d bytes together", maxAnnotations))
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// choice checks an enumeration whose values may be in any case; empty is not given.
func (c *checker) choice(at path, value string, choices []string) {
	if value != "" && !slices.ContainsFunc(choices, func(choice string) bool { return strings.EqualFold(choice, value) }) {
		c.bad(at, value, "is not one of the values of this field", "write "+strings.Join(choices, " or "))
	}
}
