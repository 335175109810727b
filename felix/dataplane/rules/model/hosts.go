package model

import (
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// Station is a place on a packet's way where host endpoints judge: a layer, a direction, and in it the pass. desired.Host says
// what a packet meets there.
type Station struct {
	Layer desired.Layers
	Pass  desired.HostPass
	Dir   desired.Direction
}

// The stations.
var (
	UntrackedIn  = Station{desired.Raw, desired.Untracked, desired.Ingress}
	UntrackedOut = Station{desired.Raw, desired.Untracked, desired.Egress}
	PreDNATIn    = Station{desired.Mangle, desired.PreDNAT, desired.Ingress}
	NormalIn     = Station{desired.Filter, desired.Normal, desired.Ingress}
	NormalOut    = Station{desired.Filter, desired.Normal, desired.Egress}
	NormalLater  = Station{desired.Mangle, desired.Normal, desired.Egress} // where it is known by which interface a packet leaves
	ForwardIn    = Station{desired.Filter, desired.Forward, desired.Ingress}
	ForwardOut   = Station{desired.Filter, desired.Forward, desired.Egress}
)

// Stations are all there are.
func Stations() []Station {
	return []Station{UntrackedIn, UntrackedOut, PreDNATIn, NormalIn, NormalOut, NormalLater, ForwardIn, ForwardOut}
}

// Chain is the name of an interface's chain at the station (spec §4.5), in two parts: how long the second may be is the
// driver's affair.
func (s Station) Chain(iface string) (prefix, suffix string) {
	if iface == desired.AnyInterface {
		iface = "any-interface-at-all" // an interface's name has 15 characters at most, so this is none
	}
	if s.Pass == desired.Forward {
		return [2]string{"cali-fhfw-", "cali-thfw-"}[s.Dir], iface
	}
	return [2]string{"cali-fh-", "cali-th-"}[s.Dir], iface
}

// Failsafe is the chain of what the station lets through without a word; none for forwarded packets.
func (s Station) Failsafe() string {
	switch {
	case s.Pass == desired.Forward:
		return ""
	case s.Layer == desired.Raw:
		return [2]string{desired.FailsafeUntrackedIn, desired.FailsafeUntrackedOut}[s.Dir]
	}
	return [2]string{desired.FailsafeIn, desired.FailsafeOut}[s.Dir]
}

// Judges tells whether a host judges at the station: in the Normal pass it always does.
func (s Station) Judges(h desired.Host) bool {
	return s.Pass == desired.Normal || h.Of(s.Pass).Of(s.Dir) != ""
}

// Counts names the chain of staged policies at the station, if any.
func (s Station) Counts(h desired.Host) string {
	if s.Pass == desired.Normal {
		return ""
	}
	return h.Counted[s.Pass].Of(s.Dir)
}

// Stops tells whether a host has anything to do at the station: to judge, or to count.
func (s Station) Stops(h desired.Host) bool { return s.Judges(h) || s.Counts(h) != "" }

// Needs tells whether any host has anything to do at a station.
func (m *Model) Needs(s Station) bool { return m.any(s.Stops) }

// Judges tells whether any host judges at a station.
func (m *Model) Judges(s Station) bool { return m.any(s.Judges) }

func (m *Model) any(is func(desired.Host) bool) bool {
	for _, h := range m.Hosts {
		if is(h) {
			return true
		}
	}
	return false
}

// Early tells whether hosts have anything to do with packets that come in before these come to the filter layer.
func (m *Model) Early() bool { return m.Needs(UntrackedIn) || m.Needs(PreDNATIn) }

// Marked tells whether packets may have been accepted before they come to the filter layer.
func (m *Model) Marked() bool { return m.Judges(UntrackedIn) || m.Judges(PreDNATIn) }

// SourcePorts is the part of a range of ports, by default the unprivileged ones, that translated UDP may come from while VXLAN
// has a port: the wider one that leaves it out, since the answer would be taken for a tunnel packet and dropped.
func SourcePorts(vxlan uint16, of view.PortRange) view.PortRange {
	if of == (view.PortRange{}) {
		of = view.PortRange{First: 1024, Last: 65535}
	}
	switch {
	case vxlan < of.First || vxlan > of.Last || of.First == of.Last:
		return of
	case vxlan-of.First > of.Last-vxlan:
		return view.PortRange{First: of.First, Last: vxlan - 1}
	}
	return view.PortRange{First: vxlan + 1, Last: of.Last}
}

// MergePorts sorts ranges and joins those that touch.
func MergePorts(in []view.PortRange) (out []view.PortRange) {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b view.PortRange) int { return int(a.First) - int(b.First) })
	for _, r := range in {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}
