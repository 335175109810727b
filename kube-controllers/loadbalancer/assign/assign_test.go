package assign

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func pool(name, cidr string, change ...func(*api.IPPool)) *api.IPPool {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: cidr, AllowedUses: []api.IPPoolUse{api.UseLoadBalancer}}}
	p.Name = name
	for _, c := range change {
		c(p)
	}
	return p
}

func service(change ...func(*Service)) *Service {
	s := &Service{Namespace: "shop", Name: "web", UID: "U-1", LoadBalancer: true, Families: []int{4}, Annotations: map[string]string{}}
	for _, c := range change {
		c(s)
	}
	return s
}

func note(name, value string) func(*Service) {
	return func(s *Service) { s.Annotations[name] = value }
}

func dual(s *Service) { s.Families = []int{6, 4} }

func TestHandle(t *testing.T) {
	// base64url of the SHA-256 of "web-shop-u-1", less - and _
	require.Equal(t, service().Handle(), service(func(s *Service) { s.UID = "u-1" }).Handle())
	require.NotEqual(t, service().Handle(), service(func(s *Service) { s.UID = "u-2" }).Handle())
	require.Regexp(t, "^lb-[A-Za-z0-9]{30,43}$", service().Handle())
}

func TestDecide(t *testing.T) {
	manual := func(p *api.IPPool) { p.Spec.AssignmentMode = new(api.AssignManual) }
	workloads := func(p *api.IPPool) { p.Spec.AllowedUses = nil }
	lb4, lb6 := pool("lb4", "10.0.0.0/24"), pool("lb6", "fd00::/120")
	both := []*api.IPPool{lb4, lb6, pool("w", "10.9.0.0/24", workloads), pool("named", "10.1.0.0/24", manual)}
	class := func(c string) func(*Service) { return func(s *Service) { s.Class = c } }
	has4 := addrs("10.0.0.1")
	for name, c := range map[string]struct {
		s         *Service
		has       []netip.Addr
		pools     []*api.IPPool
		requested bool
		want      Step
		wrong     string
	}{
		"first":               {s: service(), pools: both, want: Step{Ours: true, Any: []Any{{Family: 4}}}},
		"has it":              {s: service(), has: has4, pools: both, want: Step{Ours: true, Keep: has4}},
		"has one too many":    {s: service(), has: addrs("10.0.0.2", "10.0.0.1"), pools: both, want: Step{Ours: true, Keep: has4, Return: addrs("10.0.0.2")}},
		"two families":        {s: service(dual), has: has4, pools: both, want: Step{Ours: true, Keep: has4, Any: []Any{{Family: 6}}}},
		"a family less":       {s: service(), has: addrs("10.0.0.1", "fd00::1"), pools: both, want: Step{Ours: true, Keep: has4, Return: addrs("fd00::1")}},
		"no pool":             {s: service(), pools: both[2:], want: Step{Ours: true}},
		"no pool of one":      {s: service(dual), pools: both[:1], want: Step{Ours: true, Any: []Any{{Family: 4}}}},
		"a pool that is gone": {s: service(), has: has4, want: Step{Ours: true, Keep: has4}},
		"another's class":     {s: service(class("metal")), has: has4, pools: both, want: Step{Return: has4}},
		"our class":           {s: service(class("calico")), pools: both, requested: true, want: Step{Ours: true, Any: []Any{{Family: 4}}}},
		"another type":        {s: service(func(s *Service) { s.LoadBalancer = false }), has: has4, pools: both, want: Step{Return: has4}},
		"did not ask":         {s: service(), has: has4, pools: both, requested: true, want: Step{Return: has4}},
		"asked for a pool": {
			s: service(note(AnnotationPools4, `["named"]`)), has: has4, pools: both, requested: true,
			want: Step{Ours: true, Any: []Any{{4, []string{"named"}}}, Return: has4},
		},
		"has one of that pool": {
			s: service(note(AnnotationPools4, `["10.1.0.0/24"]`)), has: addrs("10.1.0.9"), pools: both,
			want: Step{Ours: true, Keep: addrs("10.1.0.9")},
		},
		"asked by field": {
			s: service(func(s *Service) { s.LoadBalancerIP = "10.0.0.7" }), has: has4, pools: both, requested: true,
			want: Step{Ours: true, Take: addrs("10.0.0.7"), Return: has4},
		},
		"the annotation beats the field": {
			s:   service(note(AnnotationAddresses, `["10.0.0.1"]`), func(s *Service) { s.LoadBalancerIP = "10.0.0.7" }),
			has: has4, pools: both, want: Step{Ours: true, Keep: has4},
		},
		"one named of two families": {
			s: service(dual, note(AnnotationAddresses, `["fd00::5"]`)), has: has4, pools: both,
			want: Step{Ours: true, Take: addrs("fd00::5"), Return: has4},
		},
		"no list":         {s: service(note(AnnotationAddresses, "10.0.0.1")), has: has4, pools: both, want: Step{Ours: true, Keep: has4}, wrong: "JSON list"},
		"no address":      {s: service(note(AnnotationAddresses, `["ten"]`)), has: has4, pools: both, want: Step{Ours: true, Keep: has4}, wrong: `"ten" is not an address`},
		"two of a family": {s: service(note(AnnotationAddresses, `["10.0.0.1","10.0.0.2"]`)), want: Step{Ours: true}, wrong: "of one family"},
		"another family":  {s: service(note(AnnotationAddresses, `["fd00::1"]`)), want: Step{Ours: true}, wrong: "spec.ipFamilies"},
	} {
		t.Run(name, func(t *testing.T) {
			mode := api.AssignAllServices
			if c.requested {
				mode = api.AssignRequestedServices
			}
			got := Decide(c.s, c.has, c.pools, mode)
			if c.wrong != "" {
				require.ErrorContains(t, got.Wrong, c.wrong)
			}
			c.want.Wrong = got.Wrong
			if len(c.want.Keep) == 0 && len(got.Keep) == 0 {
				got.Keep, c.want.Keep = nil, nil
			}
			require.Equal(t, c.wrong != "", got.Wrong != nil)
			require.Equal(t, c.want, got)
		})
	}
}

func TestIngress(t *testing.T) {
	shown := []string{"10.0.0.1", "lb.example.org", "203.0.113.1"}
	require.Equal(t, []string{"fd00::5", "10.0.0.2"}, Step{Ours: true, Keep: addrs("10.0.0.2"), Return: addrs("10.0.0.1")}.Ingress(shown, addrs("fd00::5"), []int{6, 4}))
	require.Equal(t, []string{"lb.example.org", "203.0.113.1"}, Step{Return: addrs("10.0.0.1")}.Ingress(shown, nil, []int{4}), "what others show stays")
	require.Equal(t, shown, Step{Ours: true}.Ingress(shown, nil, []int{4}), "without a pool nothing is done")
}

// TestItSettles does what is decided, in random worlds: then there is nothing left to do, and what a service has is what it
// asks for, in whatever order it was told.
func TestItSettles(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	pools := []*api.IPPool{pool("a", "10.0.0.0/28"), pool("b", "10.1.0.0/28"), pool("c", "fd00::/124")}
	some := addrs("10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd00::2")
	for range 500 {
		s := service()
		if r.IntN(2) == 0 {
			dual(s)
		}
		for name, values := range map[string][]string{
			AnnotationPools4: {"", `["a"]`, `["b"]`}, AnnotationAddresses: {"", "", `["10.0.0.2"]`}, AnnotationPools6: {"", `["c"]`},
		} {
			s.Annotations[name] = values[r.IntN(len(values))]
		}
		s.LoadBalancer = r.IntN(5) > 0
		has := map[netip.Addr]bool{}
		for _, a := range some {
			has[a] = r.IntN(3) == 0
		}
		list := func() (out []netip.Addr) {
			for a, is := range has {
				if is {
					out = append(out, a)
				}
			}
			return out
		}
		step := Decide(s, list(), pools, api.AssignAllServices)
		require.Equal(t, step, Decide(s, list(), pools, api.AssignAllServices))
		for _, a := range step.Return {
			delete(has, a)
		}
		for _, a := range step.Take {
			has[a] = true
		}
		for _, any := range step.Any {
			for _, p := range pools {
				if familyOf(p.Prefix().Addr()) == any.Family && (len(any.Pools) == 0 || any.Pools[0] == p.Name) {
					has[p.Prefix().Addr().Next()] = true
					break
				}
			}
		}
		after := Decide(s, list(), pools, api.AssignAllServices)
		require.True(t, after.Nothing(), "%+v after %+v for %+v", after, step, s)
		require.LessOrEqual(t, len(after.Keep), len(s.Families))
	}
}
