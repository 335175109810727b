package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/muslin-net/muslin/api/bgp"
)

// Normalize fills defaults in. It changes c in place and is idempotent.
func (c *Config) Normalize() {
	orElse(&c.ListenPort, DefaultPort)
	orElse(&c.RestartDeferral, DefaultRestartDeferral)
	orElse(&c.NormalPriority4, DefaultNormalPriority)
	orElse(&c.NormalPriority6, DefaultNormalPriority)
	for i := range c.Peers {
		p := &c.Peers[i]
		orElse(&p.Port, DefaultPort)
		orElse(&p.RestartTime, DefaultRestartTime)
		orElse(&p.HoldTime, DefaultHoldTime)
		orElse(&p.KeepaliveTime, p.HoldTime/3)
	}
}

func orElse[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate judges a normalized configuration. All that is wrong is listed, each entry naming the field and the fix.
func (c *Config) Validate() error {
	v := validator{}
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		v.add("router_id", "%v is not an IPv4 address other than 0.0.0.0", c.RouterID)
	}
	if c.ASNumber == 0 {
		v.add("as_number", "is missing; give 1 to 4294967295")
	}
	if c.ClusterID.IsValid() && !c.ClusterID.Is4() {
		v.add("cluster_id", "%v does not have the form of an IPv4 address", c.ClusterID)
	}
	v.duration("restart_deferral", c.RestartDeferral, time.Second, time.Hour)
	switch c.LogLevel {
	case "", "debug", "info", "warning":
	default:
		v.add("log_level", "%q is none of debug, info, warning", c.LogLevel)
	}
	if c.NormalPriority4 >= MaxPreference || c.NormalPriority6 >= MaxPreference {
		v.add("normal_priority", "%d and %d are not both in range; give 1 to %d", c.NormalPriority4, c.NormalPriority6, MaxPreference-1)
	}
	for i, r := range c.StaticRoutes {
		if !r.Prefix.IsValid() || !r.Gateway.IsValid() || r.Prefix.Addr().Is4() != r.Gateway.Is4() {
			v.add(fmt.Sprintf("static_routes[%d]", i), "%s by %s: the gateway is no address of the prefix's family", r.Prefix, r.Gateway)
		}
	}
	names := map[string]bool{}
	for i := range c.Peers {
		v.peer(&c.Peers[i], names)
	}
	filters := map[string]bool{}
	for i := range c.Filters {
		f := &c.Filters[i]
		if f.Name == "" || filters[f.Name] {
			v.add(fmt.Sprintf("filters[%d].name", i), "%q is empty or given twice", f.Name)
		}
		filters[f.Name] = true
		for _, list := range []struct{ v6, export bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
			for j, r := range f.Rules(list.v6, list.export) {
				v.rule(where(f.Name, list.v6, list.export, j), &r, list.v6)
			}
		}
	}
	return errors.Join(v.errs...)
}

type validator struct{ errs []error }

func (v *validator) add(field, format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf("%s: "+format, append([]any{field}, args...)...))
}

func (v *validator) duration(field string, d, lo, hi time.Duration) {
	if d < lo || d > hi {
		v.add(field, "%s is out of range; give %s to %s", d, lo, hi)
	}
}

func (v *validator) peer(p *Peer, names map[string]bool) {
	field := fmt.Sprintf("peers[%s].", p.Name)
	if p.Name == "" || names[p.Name] {
		v.add(field+"name", "is empty or given twice; every session needs a name of its own")
	}
	names[p.Name] = true
	if p.Type < PeerGlobal || p.Type > PeerMesh {
		v.add(field+"type", "is missing")
	}
	if !p.Address.IsValid() || p.Address.IsUnspecified() || p.Address.IsMulticast() {
		v.add(field+"address", "%v is not the address of a host", p.Address)
	}
	if p.Address.Is6() && p.Address.IsLinkLocalUnicast() {
		v.add(field+"address", "%v is link-local, which is not supported; give a global address", p.Address)
	}
	if p.SourceAddress.IsValid() && p.SourceAddress.Is4() != p.Address.Is4() {
		v.add(field+"source_address", "%v is not of the peer's family", p.SourceAddress)
	}
	if p.ASNumber == 0 {
		v.add(field+"as_number", "is missing; give 1 to 4294967295")
	}
	if p.AllowedOwnAS > 255 {
		v.add(field+"allowed_own_as", "%d is too large; give 0 to 255", p.AllowedOwnAS)
	}
	if len(p.Password) > 80 {
		v.add(field+"password", "has %d bytes; TCP MD5 takes at most 80", len(p.Password))
	}
	v.bfd(field, p.BFD)
	v.duration(field+"restart_time", p.RestartTime, time.Second, 4095*time.Second)
	v.duration(field+"hold_time", p.HoldTime, 3*time.Second, 65535*time.Second)
	v.duration(field+"keepalive_time", p.KeepaliveTime, time.Second, p.HoldTime)
	if p.LongLivedStaleTime != 0 {
		v.duration(field+"long_lived_stale_time", p.LongLivedStaleTime, time.Second, 1<<24*time.Second)
	}
}

func (v *validator) rule(field string, r *bgp.Rule, v6 bool) {
	switch {
	case r.Operator == bgp.NoPrefix && r.Prefix != (netip.Prefix{}), r.Operator != bgp.NoPrefix && !r.Prefix.IsValid():
		v.add(field, "prefix and operator come together or not at all")
	case r.Operator != bgp.NoPrefix && r.Prefix.Addr().Is6() != v6:
		v.add(field, "prefix %s is of the other family", r.Prefix)
	}
	if (r.Operator == bgp.Equal || r.Operator == bgp.NotEqual) && (r.MinLength != 0 || r.MaxLength != 0) {
		v.add(field, "a range of lengths makes sense with In and NotIn only")
	}
	if !r.Accept && len(r.Operations) > 0 {
		v.add(field, "operations change accepted routes; this rule rejects")
	}
	if r.Priority >= MaxPreference {
		v.add(field, "priority %d is out of range; give 1 to %d", r.Priority, MaxPreference-1)
	}
	if r.Community != nil {
		v.community(field, *r.Community)
	}
	for _, op := range r.Operations {
		if op.SetPriority >= MaxPreference {
			v.add(field, "priority %d is out of range; give 1 to %d", op.SetPriority, MaxPreference-1)
		}
		if op.AddCommunity != nil {
			v.community(field, *op.AddCommunity)
		}
	}
}

func (v *validator) community(field string, c Community) {
	if c.Large && c.Parts[0] == TagAdmin {
		v.add(field, "community %s begins with %d, a reserved AS number that bird marks routes with", c, uint32(TagAdmin))
	}
}
