// Package detect chooses a node's address among those of its interfaces, by the methods that users of Calico know. It is
// pure: the caller lists the interfaces and asks the kernel what the method needs.
package detect

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Interface is an interface of the host.
type Interface struct {
	Name      string
	Index     int
	Addresses []netip.Prefix // in the kernel's order, with the interface's prefix length
}

// Found is the outcome of a detection.
type Found struct {
	Interface string
	Address   netip.Prefix
}

// virtual matches the names of interfaces that never bear a node's address. As in Calico the names are beginnings, so
// "lo" also hides an interface called london0.
var virtual = regexp.MustCompile(`^(docker|podman|cbr|dummy|virbr|lxcbr|veth|lo|br-|cali|tunl|flannel|kube-ipvs|cni|vxlan\.calico|vxlan-v6\.calico|wireguard|wg-v6|nodelocaldns)`)

// Method is one way of choosing.
type Method struct {
	kind  string
	names []*regexp.Regexp // interface=, skip-interface=
	cidrs []netip.Prefix   // cidr=
	// Reach is the host of can-reach=; the caller resolves it to the source address that the kernel would use, and passes
	// that to Choose.
	Reach string
	// Kubernetes says that the address is the one that Kubernetes has for the node, which the caller knows. Choose is not for it.
	Kubernetes bool
}

// ParseMethod reads a value of IP_AUTODETECTION_METHOD. Empty means first-found.
func ParseMethod(text string) (Method, error) {
	kind, value, _ := strings.Cut(text, "=")
	m := Method{kind: cmp.Or(kind, "first-found")}
	bad := func(why string) (Method, error) {
		return Method{}, fmt.Errorf("autodetection method %q: %s; use first-found, interface=NAME,…, skip-interface=NAME,…, cidr=CIDR,…, can-reach=HOST or kubernetes-internal-ip", text, why)
	}
	switch m.kind {
	case "first-found", "kubernetes-internal-ip":
		if value != "" {
			return bad(m.kind + " takes no value")
		}
		m.Kubernetes = m.kind == "kubernetes-internal-ip"
		return m, nil
	case "interface", "skip-interface":
		for part := range strings.SplitSeq(value, ",") {
			re, err := regexp.Compile(strings.TrimSpace(part))
			if err != nil || part == "" {
				return bad(fmt.Sprintf("%q is not a regular expression", part))
			}
			m.names = append(m.names, re)
		}
		return m, nil
	case "cidr":
		for part := range strings.SplitSeq(value, ",") {
			p, err := netip.ParsePrefix(strings.TrimSpace(part))
			if err != nil {
				return bad(fmt.Sprintf("%q is not a CIDR", part))
			}
			m.cidrs = append(m.cidrs, p.Masked())
		}
		return m, nil
	case "can-reach":
		if value == "" {
			return bad("no host is named")
		}
		m.Reach = value
		return m, nil
	}
	return bad("there is no such method")
}

// Choose picks the address. source is the kernel's answer for can-reach, and unused otherwise. The error names what was
// looked at.
func (m Method) Choose(interfaces []Interface, v6 bool, source netip.Addr) (Found, error) {
	// From the highest index down: what was plugged in last is most often the real network.
	list := slices.SortedFunc(slices.Values(interfaces), func(a, b Interface) int { return cmp.Compare(b.Index, a.Index) })
	for _, i := range list {
		if m.skips(i.Name) {
			continue
		}
		for _, a := range i.Addresses {
			if usable(a, v6) && m.takes(a, source) {
				return Found{Interface: i.Name, Address: a}, nil
			}
		}
	}
	return Found{}, fmt.Errorf("autodetection method %s found no IPv%d address on %s; set IP%s to the node's address, or choose another method",
		m, family(v6), seen(list), suffix(v6))
}

// Complete gives an address without mask the prefix length of the interface that has it. ok is false if none has.
func Complete(a netip.Addr, interfaces []Interface) (p netip.Prefix, ok bool) {
	for _, i := range interfaces {
		for _, has := range i.Addresses {
			if has.Addr() == a {
				return has, true
			}
		}
	}
	return netip.PrefixFrom(a, a.BitLen()), false
}

// Reported are the interfaces that go into the Node: real ones, with their addresses of the wanted families.
func Reported(interfaces []Interface, v4, v6 bool) []Interface {
	var out []Interface
	for _, i := range interfaces {
		if virtual.MatchString(i.Name) {
			continue
		}
		keep := Interface{Name: i.Name, Index: i.Index}
		for _, a := range i.Addresses {
			if v4 && usable(a, false) || v6 && usable(a, true) {
				keep.Addresses = append(keep.Addresses, a)
			}
		}
		if len(keep.Addresses) > 0 {
			out = append(out, keep)
		}
	}
	slices.SortFunc(out, func(a, b Interface) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// String is the method as users write it.
func (m Method) String() string {
	var values []string
	for _, re := range m.names {
		values = append(values, re.String())
	}
	for _, p := range m.cidrs {
		values = append(values, p.String())
	}
	if m.Reach != "" {
		values = append(values, m.Reach)
	}
	if len(values) == 0 {
		return m.kind
	}
	return m.kind + "=" + strings.Join(values, ",")
}

func (m Method) skips(name string) bool {
	named := slices.ContainsFunc(m.names, func(re *regexp.Regexp) bool { return re.MatchString(name) })
	switch m.kind {
	case "interface":
		return !named
	case "skip-interface":
		return named || virtual.MatchString(name)
	case "first-found":
		return virtual.MatchString(name)
	}
	return false // cidr and can-reach look at every interface
}

func (m Method) takes(a netip.Prefix, source netip.Addr) bool {
	switch m.kind {
	case "cidr":
		return slices.ContainsFunc(m.cidrs, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
	case "can-reach":
		return a.Addr() == source
	}
	return true
}

func usable(a netip.Prefix, v6 bool) bool {
	return a.Addr().Is6() == v6 && a.Addr().IsGlobalUnicast()
}

func family(v6 bool) int {
	if v6 {
		return 6
	}
	return 4
}

func suffix(v6 bool) string {
	if v6 {
		return "6"
	}
	return ""
}

func seen(list []Interface) string {
	if len(list) == 0 {
		return "this host, which has no interfaces"
	}
	names := make([]string, len(list))
	for n, i := range list {
		names[n] = i.Name
	}
	return strings.Join(names, ", ")
}
