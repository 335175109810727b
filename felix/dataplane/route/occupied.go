package route

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// OccupiedError says that another's route is in the place of one of felix's. Felix does not touch what is not its own.
type OccupiedError struct {
	Route desired.Route // the zero route: one of a kind that felix does not know
}

// Error names the route and its owner.
func (e *OccupiedError) Error() string {
	if !e.Route.Dst.IsValid() {
		return "another's route is in its place, which felix does not touch; find it with ip route show, and remove it"
	}
	return fmt.Sprintf("another's route is in its place, which felix does not touch: %s, of protocol %s; remove it if it is not wanted",
		e.Route, protocolName(e.Route.Protocol))
}

// protocolName is the name of who writes routes of a protocol (rt_protos of iproute2).
func protocolName(p int) string {
	names := map[int]string{
		unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot", unix.RTPROT_STATIC: "static", unix.RTPROT_RA: "ra",
		unix.RTPROT_ZEBRA: "zebra", unix.RTPROT_BIRD: "bird", unix.RTPROT_DHCP: "dhcp", unix.RTPROT_BGP: "bgp",
		unix.RTPROT_ISIS: "isis", unix.RTPROT_OSPF: "ospf", unix.RTPROT_RIP: "rip", unix.RTPROT_EIGRP: "eigrp",
	}
	if name, ok := names[p]; ok {
		return name
	}
	return fmt.Sprint(p)
}

type ownership uint8

const (
	others ownership = iota
	ours
	guests    // others' on a workload interface
	intruders // others' in the place of a desired route
)

// owner tells whose a route is.
func (t *Table) owner(r desired.Route) ownership {
	want, wanted := t.routes.Desired(r.Key())
	switch {
	case wanted && r.Equal(want):
		return ours
	case r.Protocol == unix.RTPROT_KERNEL, r.Protocol == unix.RTPROT_REDIRECT, r.Protocol == unix.RTPROT_RA:
		if wanted {
			return intruders
		}
		return others
	case r.Protocol == desired.ProtocolMuslin:
		return ours
	case t.cfg.DeviceProtocol != desired.ProtocolBoot && r.Protocol == t.cfg.DeviceProtocol:
		return ours // a protocol chosen for felix is felix's wherever it is
	}
	for _, h := range r.NextHops {
		if slices.Contains(t.cfg.TunnelDevices, h.Link) &&
			(r.Protocol == t.cfg.DeviceProtocol || r.Protocol == desired.ProtocolBIRD) {
			return ours
		}
		if t.onWorkload(h) {
			switch {
			case wanted:
				return ours
			case !t.cfg.KeepExternal:
				return guests
			}
		}
	}
	switch {
	case !wanted:
		return others
	case r.Protocol == desired.ProtocolBIRD: // what a BIRD left that ran here before is taken over
		return ours
	case r.Protocol == desired.ProtocolBoot && want.Dst.IsSingleIP() && slices.ContainsFunc(want.NextHops, t.onWorkload):
		return ours // a local workload wins over a stale route to its address
	}
	return intruders
}

func (t *Table) onWorkload(h desired.NextHop) bool {
	return slices.ContainsFunc(t.cfg.WorkloadPrefixes, func(p string) bool { return strings.HasPrefix(h.Link, p) })
}

// occupy records the intruders that were found where no route of ours is.
func (t *Table) occupy(found map[desired.RouteKey]desired.Route) {
	clear(t.occupied)
	for k, r := range found {
		if _, there := t.routes.Actual(k); !there {
			t.occupied[k] = r
		}
	}
}

// contested tells whether felix takes its place back: from a route made by hand (protocol boot) that took the place of one
// of felix's, but not for ever: then it gives way until that goes. Otherwise the occupant stays, and that is said once.
func (t *Table) contested(k desired.RouteKey, now time.Time) bool {
	by := t.occupied[k]
	if _, ousted := t.ousted[k]; ousted && by.Protocol == desired.ProtocolBoot {
		if t.contests.Enter(k, now) {
			return true
		}
		delete(t.ousted, k)
	}
	if why := (&OccupiedError{by}).Error(); t.told[k] != why {
		t.told[k] = why
		t.cfg.Log.Warn("a route is not programmed", "route", k.String(), "because", why)
	}
	return false
}

// vacate forgets the occupant of a place, and tells whether there was one.
func (t *Table) vacate(k desired.RouteKey) bool {
	_, was := t.occupied[k]
	delete(t.occupied, k)
	t.contests.Forget(k)
	delete(t.told, k)
	return was
}
