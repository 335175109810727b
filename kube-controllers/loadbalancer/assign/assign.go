// Package assign decides which addresses services of type LoadBalancer get. It is pure: it is shown the services, the addresses
// that they have and the pools, and returns what to take, what to show, and what to give back.
//
// A service keeps what it has for as long as that is what is asked for.
package assign

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// Annotations of services, each a JSON list.
const (
	AnnotationPools4    = "projectcalico.org/ipv4pools"
	AnnotationPools6    = "projectcalico.org/ipv6pools"
	AnnotationAddresses = "projectcalico.org/loadBalancerIPs"
)

// Class is the loadBalancerClass that is served here.
const Class = "calico"

// Service is what of a service matters.
type Service struct {
	Namespace, Name, UID string
	LoadBalancer         bool              // its type
	Class                string            // empty: none
	Families             []int             // 4 and 6, in the order of the service
	Annotations          map[string]string // those above
	LoadBalancerIP       string            // spec.loadBalancerIP
	Ingress              []string          // what its status shows: addresses, or names of hosts
	Complaint            string            // and why it does not have what it asks for
}

// Handle is the handle of a service's addresses, as Calico makes it.
func (s *Service) Handle() string {
	sum := sha256.Sum256([]byte(strings.ToLower(s.Name + "-" + s.Namespace + "-" + s.UID)))
	return "lb-" + strings.NewReplacer("-", "", "_", "").Replace(base64.RawURLEncoding.EncodeToString(sum[:]))
}

// Step is what to do for one service.
type Step struct {
	Ours   bool         // it gets its addresses here
	Keep   []netip.Addr // it has, and keeps
	Take   []netip.Addr // it asks for by name, and has not yet
	Any    []Any        // any address will do, and it has none
	Return []netip.Addr // it has, and is to have no more
	Wrong  error        // in what it asks for; what it has it keeps meanwhile
}

// Any is a request for any address of a family.
type Any struct {
	Family int      // 4 or 6
	Pools  []string // names or CIDRs; none: all that are for load balancers
}

// Nothing tells whether there is nothing to take or to return.
func (s Step) Nothing() bool { return len(s.Take)+len(s.Any)+len(s.Return) == 0 }

// Decide says what to do for a service that has these addresses. pools are all there are.
func Decide(s *Service, has []netip.Addr, pools []*api.IPPool, mode api.AssignIPs) Step {
	has = slices.Clone(has)
	slices.SortFunc(has, netip.Addr.Compare)
	if !s.asks(mode) {
		return Step{Return: has}
	}
	want, err := s.read()
	if err != nil {
		return Step{Ours: true, Keep: has, Wrong: err}
	}
	step := Step{Ours: true}
	for _, family := range s.Families {
		var mine []netip.Addr
		for _, a := range has {
			if familyOf(a) == family {
				mine = append(mine, a)
			}
		}
		switch named, any := want.named[family], len(want.named) == 0; {
		case named.IsValid() && slices.Contains(mine, named):
			step.Keep = append(step.Keep, named)
		case named.IsValid():
			step.Take = append(step.Take, named)
		case any:
			i := slices.IndexFunc(mine, func(a netip.Addr) bool { return within(a, want.pools[family], pools) })
			switch {
			case i >= 0:
				step.Keep = append(step.Keep, mine[i])
			case len(want.pools[family]) > 0 || served(family, pools):
				step.Any = append(step.Any, Any{family, want.pools[family]})
			}
		}
	}
	for _, a := range has {
		if !slices.Contains(step.Keep, a) {
			step.Return = append(step.Return, a)
		}
	}
	return step
}

// asks tells whether a service gets its addresses here.
func (s *Service) asks(mode api.AssignIPs) bool {
	switch {
	case !s.LoadBalancer || s.Class != "" && s.Class != Class:
		return false
	case mode != api.AssignRequestedServices || s.Class == Class || s.LoadBalancerIP != "":
		return true
	}
	for _, a := range []string{AnnotationPools4, AnnotationPools6, AnnotationAddresses} {
		if s.Annotations[a] != "" {
			return true
		}
	}
	return false
}

// request is what a service asks for.
type request struct {
	named map[int]netip.Addr // by family
	pools map[int][]string   // by family
}

func (s *Service) read() (r request, err error) {
	r = request{named: map[int]netip.Addr{}, pools: map[int][]string{}}
	var named []string
	for _, l := range []struct {
		annotation string
		into       func([]string)
	}{
		{AnnotationPools4, func(list []string) { r.pools[4] = list }},
		{AnnotationPools6, func(list []string) { r.pools[6] = list }},
		{AnnotationAddresses, func(list []string) { named = list }},
	} {
		text := s.Annotations[l.annotation]
		if text == "" {
			continue
		}
		var list []string
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return r, fmt.Errorf(`annotation %s: %q is not a JSON list; write it like ["a","b"]`, l.annotation, text)
		}
		l.into(list)
	}
	where := "annotation " + AnnotationAddresses
	if len(named) == 0 && s.LoadBalancerIP != "" {
		named, where = []string{s.LoadBalancerIP}, "spec.loadBalancerIP"
	}
	for _, text := range named {
		a, err := netip.ParseAddr(text)
		family := familyOf(a)
		switch {
		case err != nil:
			return r, fmt.Errorf("%s: %q is not an address", where, text)
		case r.named[family].IsValid():
			return r, fmt.Errorf("%s: %s and %s are of one family; name one address of each family", where, r.named[family], a)
		case !slices.Contains(s.Families, family):
			return r, fmt.Errorf("%s: %s is an IPv%d address, and the service has no spec.ipFamilies for it; name another, or make the service dual-stack", where, a, family)
		}
		r.named[family] = a
	}
	return r, nil
}

func familyOf(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 4
	}
	return 6
}

// within tells whether an address is in one of the pools named, by name or CIDR; without names, wherever it is.
func within(a netip.Addr, named []string, pools []*api.IPPool) bool {
	return len(named) == 0 || slices.ContainsFunc(pools, func(p *api.IPPool) bool {
		return p.Prefix().Contains(a) && (slices.Contains(named, p.Name) || slices.Contains(named, p.Spec.CIDR))
	})
}

// served tells whether there is a pool for load balancers of a family that gives addresses to who does not name it.
func served(family int, pools []*api.IPPool) bool {
	return slices.ContainsFunc(pools, func(p *api.IPPool) bool {
		manual := p.Spec.AssignmentMode != nil && *p.Spec.AssignmentMode == api.AssignManual
		return p.Allows(api.UseLoadBalancer) && !manual && familyOf(p.Prefix().Addr()) == family
	})
}

// Ingress is what the status of a service is to show when it has got what it asked for. What others have put there stays if the
// service gets nothing here.
func (s Step) Ingress(shown []string, got []netip.Addr, families []int) []string {
	var out []string
	all := slices.Concat(s.Keep, got)
	slices.SortStableFunc(all, func(a, b netip.Addr) int {
		return cmp.Compare(slices.Index(families, familyOf(a)), slices.Index(families, familyOf(b)))
	})
	for _, a := range all {
		out = append(out, a.String())
	}
	if s.Ours && len(out) > 0 {
		return out
	}
	return slices.DeleteFunc(slices.Clone(shown), func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err == nil && slices.Contains(s.Return, a)
	})
}
