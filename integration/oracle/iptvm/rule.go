package iptvm

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/integration/oracle"
)

// rule reads a rule's criteria and its target.
func (vm *VM) rule(words []string) (r rule, err error) {
	not, module := false, ""
	next := func() string {
		if len(words) == 0 {
			err = fmt.Errorf("something is missing at the end")
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	for len(words) > 0 && err == nil {
		w := next()
		if w == "!" {
			not = true
			continue
		}
		if w == "-m" {
			module = next()
			continue
		}
		var c func(*Packet) bool
		switch w {
		case "-j", "-g":
			r.target, r.isGoto = next(), w == "-g"
			continue
		case "--comment", "--log-prefix", "--log-level", "--reject-with", "--to-source", "--to-ports":
			next()
			continue
		case "--notrack", "--random-fully", "--random", "--nowildcard", "--return-nomatch":
			continue
		case "--set-xmark", "--set-mark":
			r.mark, err = xmark(next())
			continue
		case "-i":
			c = named(next(), func(p *Packet) string { return p.In })
		case "-o":
			c = named(next(), func(p *Packet) string { return p.Out })
		case "-s":
			c, err = within(next(), func(p *Packet) netip.Addr { return p.Source })
		case "-d":
			c, err = within(next(), func(p *Packet) netip.Addr { return p.Destination })
		case "-p":
			c, err = protocol(next())
		case "--mark":
			mark := func(p *Packet) uint32 { return p.Mark }
			if module == "connmark" {
				mark = func(p *Packet) uint32 { return p.ConnMark }
			}
			c, err = marked(next(), mark)
		case "--ctstate":
			states := strings.Split(next(), ",")
			c = func(p *Packet) bool { return slices.Contains(states, p.State) }
		case "--ctstatus": // nothing is translated here
			next()
			c = func(*Packet) bool { return false }
		case "--sports":
			c, err = ports(next(), func(p *Packet) uint16 { return p.SourcePort })
		case "--dports":
			c, err = ports(next(), func(p *Packet) uint16 { return p.DestinationPort })
		case "--dport":
			c, err = ports(next(), func(p *Packet) uint16 { return p.DestinationPort })
		case "--icmp-type", "--icmpv6-type":
			c, err = icmp(next())
		case "--match-set":
			c, err = vm.inSet(next(), next())
		case "--dst-type":
			if t := next(); t != "LOCAL" {
				err = fmt.Errorf("destination type %s", t)
			}
			c = func(p *Packet) bool { return p.ToLocal }
		case "--invert": // of rpfilter: no route back; all packets here have one
			c = func(*Packet) bool { return false }
		default:
			err = fmt.Errorf("%q is not known here", w)
			continue
		}
		if c != nil {
			if plain := c; not {
				c = func(p *Packet) bool { return !plain(p) }
			}
			r.criteria = append(r.criteria, c)
		}
		not = false
	}
	return r, err
}

// named matches an interface; a + at the end stands for any end.
func named(want string, of func(*Packet) string) func(*Packet) bool {
	if prefix, wild := strings.CutSuffix(want, "+"); wild {
		return func(p *Packet) bool { return strings.HasPrefix(of(p), prefix) }
	}
	return func(p *Packet) bool { return of(p) == want }
}

func within(text string, of func(*Packet) netip.Addr) (func(*Packet) bool, error) {
	n, err := netip.ParsePrefix(text)
	if err != nil {
		a, failed := netip.ParseAddr(text)
		if failed != nil {
			return nil, err
		}
		n = netip.PrefixFrom(a, a.BitLen())
	}
	return func(p *Packet) bool { return n.Contains(of(p)) }, nil
}

func protocol(text string) (func(*Packet) bool, error) {
	numbers := map[string]uint8{
		"tcp": oracle.TCP, "udp": oracle.UDP, "icmp": oracle.ICMP, "ipv6-icmp": oracle.ICMPv6, "sctp": oracle.SCTP, "udplite": oracle.UDPLite,
		"dccp": 33,
	}
	n, known := numbers[text]
	if !known {
		v, err := strconv.ParseUint(text, 10, 8)
		if err != nil {
			return nil, err
		}
		n = uint8(v)
	}
	return func(p *Packet) bool { return p.Protocol == n }, nil
}

// pair reads value/mask.
func pair(text string) (value, mask uint32, err error) {
	v, m, masked := strings.Cut(text, "/")
	a, err := strconv.ParseUint(v, 0, 32)
	if err != nil || !masked {
		return uint32(a), ^uint32(0), err
	}
	b, err := strconv.ParseUint(m, 0, 32)
	return uint32(a), uint32(b), err
}

func xmark(text string) (func(uint32) uint32, error) {
	value, mask, err := pair(text)
	return func(mark uint32) uint32 { return mark&^mask ^ value }, err
}

func marked(text string, of func(*Packet) uint32) (func(*Packet) bool, error) {
	value, mask, err := pair(text)
	return func(p *Packet) bool { return of(p)&mask == value }, err
}

func ports(text string, of func(*Packet) uint16) (func(*Packet) bool, error) {
	var ranges []view.PortRange
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, ":")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		b, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("ports %s", text)
		}
		ranges = append(ranges, view.PortRange{First: uint16(a), Last: uint16(b)})
	}
	return func(p *Packet) bool {
		return slices.ContainsFunc(ranges, func(r view.PortRange) bool { return r.First <= of(p) && of(p) <= r.Last })
	}, nil
}

func icmp(text string) (func(*Packet) bool, error) {
	t, c, coded := strings.Cut(text, "/")
	kind, err := strconv.ParseUint(t, 10, 8)
	if err != nil || !coded {
		return func(p *Packet) bool { return p.Type == uint8(kind) }, err
	}
	code, err := strconv.ParseUint(c, 10, 8)
	return func(p *Packet) bool { return p.Type == uint8(kind) && p.Code == uint8(code) }, err
}

// inSet matches the members of a set: networks by an address, or addresses with protocol and port.
func (vm *VM) inSet(name, of string) (func(*Packet) bool, error) {
	members, ok := vm.sets[name]
	if !ok {
		return nil, fmt.Errorf("set %s is not there", name)
	}
	address := func(p *Packet) netip.Addr { return p.Source }
	port := func(p *Packet) uint16 { return p.SourcePort }
	if strings.HasPrefix(of, "dst") {
		address = func(p *Packet) netip.Addr { return p.Destination }
		port = func(p *Packet) uint16 { return p.DestinationPort }
	}
	switch of {
	case "src", "dst":
		return func(p *Packet) bool {
			return slices.ContainsFunc(members, func(m view.Member) bool { return m.Prefix.Contains(address(p)) })
		}, nil
	case "src,src", "dst,dst":
		return func(p *Packet) bool {
			return slices.ContainsFunc(members, func(m view.Member) bool {
				return m.Prefix.Addr() == address(p) && uint8(m.Protocol) == p.Protocol && m.Port == port(p)
			})
		}, nil
	}
	return nil, fmt.Errorf("set matched by %s", of)
}
