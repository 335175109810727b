package compute

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// The oracle computes the views of a world from nothing, with loops over everything and no index, no refcount and no
// memory. It shares with the engine the translation of single rules (which has its own tests), nothing else.

type oracleView map[view.Key]view.Item

func (v oracleView) add(it view.Item) { v[it.Key()] = it }

// thing is anything with labels.
type thing struct {
	labels   map[string]string
	nets     []netip.Prefix
	ports    []port
	profiles []string
}

func oracleViews(w *world) map[views.Scope]oracleView {
	out := map[views.Scope]oracleView{}
	for _, n := range worldNodes {
		out[nodeView(n)], out[bgpView(n)] = oracleView{}, oracleView{}
	}
	oracleCommon(w, out)
	oracleRoutes(w, out)
	oracleFelix(w, out)
	oraclePolicy(w, out)
	oracleOriginations(w, out)
	oracleSecrets(w, out)
	return out
}

func oracleCommon(w *world, out map[views.Scope]oracleView) {
	for s, v := range out {
		for _, o := range of[*api.IPPool](w) {
			p := &api.IPPool{Spec: o.Spec}
			p.Name = o.Name
			p.Default()
			v.add(view.Resource{Object: typed(p, "IPPool")})
		}
		for _, o := range of[*api.Node](w) {
			if s.View == views.BGPView {
				n := &api.Node{}
				n.Name, n.Labels, n.Spec.BGP = o.Name, o.Labels, o.Spec.BGP
				v.add(view.Resource{Object: typed(n, "Node")})
			} else {
				v.add(nodeItem(o))
			}
		}
		if s.View != views.BGPView {
			continue
		}
		for _, o := range of[*api.BGPPeer](w) {
			v.add(view.Resource{Object: typed(o.DeepCopy(), "BGPPeer")})
		}
		for _, o := range of[*api.BGPConfiguration](w) {
			v.add(view.Resource{Object: typed(o.DeepCopy(), "BGPConfiguration")})
		}
	}
}

func typed(o api.Object, kind string) api.Object {
	o.GetObjectKind().SetGroupVersionKind(api.MustKind(kind).New().GetObjectKind().GroupVersionKind())
	bare(o)
	return o
}

func oracleRoutes(w *world, out map[views.Scope]oracleView) {
	owners := map[netip.Prefix]string{}
	pending := map[string]bool{}
	for _, a := range of[*api.BlockAffinity](w) {
		pending[a.Spec.Node+" "+a.Spec.CIDR] = a.Spec.State == api.AffinityPending
	}
	var all []view.Route
	for _, b := range of[*api.IPAMBlock](w) {
		if b.Spec.Deleted || b.Spec.Affinity == nil || !strings.HasPrefix(*b.Spec.Affinity, "host:") {
			continue
		}
		node := strings.TrimPrefix(*b.Spec.Affinity, "host:")
		if !pending[node+" "+b.Name] {
			owners[netip.MustParsePrefix(b.Name)] = node
		}
	}
	for cidr, node := range owners {
		all = append(all, view.Route{Dst: cidr, Type: view.RouteBlock, Node: node})
	}
	for _, b := range of[*api.IPAMBlock](w) {
		if b.Spec.Deleted {
			continue
		}
		addr := netip.MustParsePrefix(b.Name).Addr()
		for _, index := range b.Spec.Allocations {
			if index != nil {
				owner := b.Spec.Attributes[*index].Owner
				if node := owner["node"]; node != "" && owner["type"] == "" && node != owners[netip.MustParsePrefix(b.Name)] {
					all = append(all, view.Route{Dst: netip.PrefixFrom(addr, addr.BitLen()), Type: view.RouteWorkload, Node: node})
				}
			}
			addr = addr.Next()
		}
	}
	for _, n := range of[*api.Node](w) {
		v := nodeItem(n)
		for _, a := range []netip.Addr{v.IPIPAddr, v.VXLANAddr4, v.VXLANAddr6} {
			inside := !a.IsValid()
			for cidr, node := range owners {
				inside = inside || node == n.Name && cidr.Contains(a)
			}
			if !inside {
				all = append(all, view.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Type: view.RouteTunnel, Node: n.Name})
			}
		}
	}
	all = append(all, oracleFloating(w)...)
	for _, r := range all {
		r.Receive = []view.Tunnel{view.TunnelNone}
		bits := -1
		for _, p := range of[*api.IPPool](w) {
			cidr := netip.MustParsePrefix(p.Spec.CIDR)
			if cidr.Contains(r.Dst.Addr()) && cidr.Bits() <= r.Dst.Bits() && cidr.Bits() > bits {
				bits = cidr.Bits()
				t := TransportOf(p)
				r.Pool, r.Send, r.CrossSubnet, r.Receive = p.Name, t.Send, t.CrossSubnet, t.Receive
			}
		}
		for s, v := range out {
			if had, ok := v[r.Key()].(view.Route); ok && had.Type < r.Type {
				continue
			}
			if s.View == views.NodeView {
				v.add(r)
			} else if r.Type == view.RouteBlock && r.Node == s.Node {
				v.add(r)
			}
		}
	}
}

// oracleFloating are the routes to floating addresses: to who has the lowest address of all who claim one that is in a pool, unless IPAM has given it.
func oracleFloating(w *world) (out []view.Route) {
	given := map[netip.Addr]bool{}
	for _, b := range of[*api.IPAMBlock](w) {
		addr := netip.MustParsePrefix(b.Name).Addr()
		for _, index := range b.Spec.Allocations {
			given[addr] = given[addr] || index != nil && !b.Spec.Deleted
			addr = addr.Next()
		}
	}
	pooled := func(a netip.Addr) bool {
		return slices.ContainsFunc(of[*api.IPPool](w), func(p *api.IPPool) bool { return netip.MustParsePrefix(p.Spec.CIDR).Contains(a) })
	}
	type claim struct{ internal, node string }
	claims := map[netip.Addr][]claim{}
	for _, o := range of[*api.WorkloadEndpoint](w) {
		for _, n := range o.Spec.IPNATs {
			if external := netip.MustParseAddr(n.ExternalIP); len(o.Spec.IPNetworks) > 0 && !given[external] && pooled(external) {
				claims[external] = append(claims[external], claim{n.InternalIP, o.Spec.Node})
			}
		}
	}
	for external, all := range claims {
		best := slices.MinFunc(all, func(a, b claim) int { return cmp.Or(cmp.Compare(a.internal, b.internal), cmp.Compare(a.node, b.node)) })
		out = append(out, view.Route{Dst: netip.PrefixFrom(external, external.BitLen()), Type: view.RouteWorkload, Node: best.node})
	}
	return out
}

// worldFelix is the configuration where nothing is configured.
var worldFelix = api.EffectiveFelix()

func oracleFelix(w *world, out map[views.Scope]oracleView) {
	configs := of[*api.FelixConfiguration](w)
	for _, n := range of[*api.Node](w) {
		var layers []*api.FelixConfigurationSpec
		for _, o := range configs {
			if o.Name == "default" {
				layers = append(layers, &o.Spec)
			}
		}
		for _, o := range slices.Backward(configs) {
			if strings.HasPrefix(o.Name, "zone") && o.Spec.NodeSelector != nil && n.Labels["app"] == "a" {
				layers = append(layers, &o.Spec)
			}
		}
		for _, o := range configs {
			if o.Name == "node."+n.Name {
				layers = append(layers, &o.Spec)
			}
		}
		// What the fields that the world sets come to; the rest is what it is for everyone.
		c := &api.FelixConfiguration{Spec: *worldFelix.DeepCopy()}
		for _, l := range layers {
			c.Spec.LogPrefix = cmp.Or(l.LogPrefix, c.Spec.LogPrefix)
			c.Spec.LogSeverityScreen = cmp.Or(l.LogSeverityScreen, c.Spec.LogSeverityScreen)
		}
		c.Name = n.Name
		out[nodeView(n.Name)].add(view.Resource{Object: typed(c, "FelixConfiguration")})
	}
}

// oracleLabels are the labels of something with its profiles' beneath.
func oracleLabels(w *world, o api.Object, profiles []string, fixed map[string]string) map[string]string {
	all := map[string]string{}
	for _, name := range slices.Backward(profiles) {
		if p, ok := w.objects[api.Key{Kind: "Profile", Name: name}].(*api.Profile); ok && name != api.ProfileDefaultAllow {
			maps.Copy(all, p.Spec.LabelsToApply)
		}
	}
	for k, v := range o.GetLabels() {
		if o.GetNamespace() == "" || !strings.HasPrefix(k, "pcns.") && !strings.HasPrefix(k, "pcsa.") {
			all[k] = v
		}
	}
	maps.Copy(all, fixed)
	return all
}

func oracleWorkload(w *world, o *api.WorkloadEndpoint) thing {
	fixed := map[string]string{"projectcalico.org/namespace": o.Namespace, "projectcalico.org/orchestrator": "k8s"}
	if o.Spec.ServiceAccountName != "" {
		fixed["projectcalico.org/serviceaccount"] = o.Spec.ServiceAccountName
	}
	t := thing{labels: oracleLabels(w, o, o.Spec.Profiles, fixed), nets: parsePrefixes(o.Spec.IPNetworks), profiles: o.Spec.Profiles}
	for _, p := range o.Spec.Ports {
		n, _ := p.Protocol.Number()
		t.ports = append(t.ports, port{p.Name, view.Protocol(n), p.Port})
	}
	return t
}

func oracleHost(w *world, o *api.HostEndpoint) thing {
	t := thing{labels: oracleLabels(w, o, o.Spec.Profiles, nil), nets: parsePrefixes(o.Spec.ExpectedIPs), profiles: o.Spec.Profiles}
	for _, p := range o.Spec.Ports {
		n, _ := p.Protocol.Number()
		t.ports = append(t.ports, port{p.Name, view.Protocol(n), p.Port})
	}
	return t
}

func oracleThings(w *world) []thing {
	var all []thing
	for _, o := range of[*api.WorkloadEndpoint](w) {
		all = append(all, oracleWorkload(w, o))
	}
	for _, o := range of[*api.HostEndpoint](w) {
		all = append(all, oracleHost(w, o))
	}
	for _, o := range of[*api.NetworkSet](w) {
		labels := oracleLabels(w, o, []string{"kns." + o.Namespace}, map[string]string{"projectcalico.org/namespace": o.Namespace})
		all = append(all, thing{labels: labels, nets: parsePrefixes(o.Spec.Nets)})
	}
	for _, o := range of[*api.GlobalNetworkSet](w) {
		all = append(all, thing{labels: oracleLabels(w, o, nil, nil), nets: parsePrefixes(o.Spec.Nets)})
	}
	return all
}

// oracleTier is where a tier comes, and what ends it.
func oracleTier(w *world, name string) (rank float64, order float64, action view.Action) {
	switch name {
	case "default":
		return 0, 1_000_000, view.Deny
	case "kube-baseline":
		return 0, 10_000_000, view.Pass
	}
	o, ok := w.objects[api.Key{Kind: "Tier", Name: name}].(*api.Tier)
	if !ok {
		return 1, 0, view.Deny
	}
	order, action = 1_000_000, view.Deny
	if o.Spec.Order != nil {
		order = *o.Spec.Order
	}
	if o.Spec.DefaultAction != nil && *o.Spec.DefaultAction == api.Pass {
		action = view.Pass
	}
	return 0, order, action
}

func oraclePolicy(w *world, out map[views.Scope]oracleView) {
	var policies []*policy
	for _, o := range w.objects {
		if p := parsePolicy(api.KeyOf(o).Kind, o); p != nil {
			policies = append(policies, p)
		}
	}
	slices.SortFunc(policies, func(p, q *policy) int {
		a, b := p.rules.item.Tier, q.rules.item.Tier
		ra, oa, _ := oracleTier(w, a)
		rb, ob, _ := oracleTier(w, b)
		place := func(rank, order float64, tier string, p *policy) string {
			first := fmt.Sprintf("%v %012.0f %s", rank, order, tier)
			if math.IsInf(p.order, 1) {
				return first + " ~ " + p.tie
			}
			return first + fmt.Sprintf(" %012.0f ", p.order) + p.tie
		}
		return strings.Compare(place(ra, oa, a, p), place(rb, ob, b, q))
	})
	byID := map[string]*rules{}
	for _, p := range policies {
		byID[p.rules.item.ID] = p.rules
	}
	known := map[string]bool{}
	allow := &api.Profile{}
	allow.Name = api.ProfileDefaultAllow
	allow.Spec.Ingress, allow.Spec.Egress = []api.Rule{{Action: api.Allow}}, []api.Rule{{Action: api.Allow}}
	for _, o := range append(of[*api.Profile](w), allow) {
		known[o.Name] = true
		byID["pro/"+o.Name] = parseProfile(o)
	}
	things := oracleThings(w)

	// reach puts a policy and its sets into a view.
	reach := func(v oracleView, id string) {
		r := byID[id]
		v.add(r.item)
		for _, spec := range r.sets {
			v.add(oracleSet(w, spec, things))
		}
	}
	// alike is what workloads have in common that share a list.
	alike := func(t thing, profiles []string) string {
		var text []byte
		word := func(s string) { text = append(binary.AppendUvarint(text, uint64(len(s))), s...) }
		for _, label := range []string{"projectcalico.org/namespace", "projectcalico.org/orchestrator", "projectcalico.org/serviceaccount"} {
			value, has := t.labels[label]
			text = append(text, map[bool]byte{true: 1}[has])
			word(value)
		}
		hold := map[string]bool{}
		for _, p := range policies {
			rest := p.subject.Rest(func(label string) bool {
				return strings.HasPrefix(label, "pcns.") || strings.HasPrefix(label, "pcsa.") || slices.Contains(systemLabels, label)
			})
			if rest != nil && p.subject.Matches(t.labels) {
				hold[rest.String()] = true
			}
		}
		text = binary.AppendUvarint(text, uint64(len(hold)))
		for _, rest := range slices.Sorted(maps.Keys(hold)) {
			word(rest)
		}
		for _, name := range profiles {
			word(name)
		}
		return fmt.Sprintf("%x", sha256.Sum256(text))[:32]
	}
	list := func(v oracleView, id string, t thing, profiles []string, endPass bool, ingressOnly bool, takes func(view.Policy) bool) string {
		l := view.PolicyList{ID: id}
		for _, p := range policies {
			if !p.subject.Matches(t.labels) || !takes(p.rules.item) || ingressOnly && !p.ingress {
				continue
			}
			_, _, action := oracleTier(w, p.rules.item.Tier)
			if endPass {
				action = view.Pass
			}
			if n := len(l.Tiers); n == 0 || l.Tiers[n-1].Name != p.rules.item.Tier {
				l.Tiers = append(l.Tiers, view.TierPolicies{Name: p.rules.item.Tier, DefaultAction: action})
			}
			tp := &l.Tiers[len(l.Tiers)-1]
			if p.ingress {
				tp.Ingress = append(tp.Ingress, p.rules.item.ID)
			}
			if p.egress && !ingressOnly {
				tp.Egress = append(tp.Egress, p.rules.item.ID)
			}
			reach(v, p.rules.item.ID)
		}
		if len(l.Tiers) == 0 && profiles == nil {
			return ""
		}
		for _, name := range profiles {
			l.Profiles = append(l.Profiles, "pro/"+name)
			reach(v, "pro/"+name)
		}
		if l.ID == "" {
			l.ID = view.VersionOf(l).String()
		}
		v.add(l)
		return l.ID
	}
	split := func(names []string) (ok, missing []string) {
		ok = []string{}
		for _, n := range names {
			if known[n] {
				ok = append(ok, n)
			} else {
				missing = append(missing, "profile "+n)
			}
		}
		return ok, missing
	}
	plain := func(p view.Policy) bool { return !p.DoNotTrack && !p.PreDNAT }

	for _, o := range of[*api.WorkloadEndpoint](w) {
		if len(o.Spec.IPNetworks) == 0 {
			continue
		}
		v, t := out[nodeView(o.Spec.Node)], oracleWorkload(w, o)
		ok, missing := split(t.profiles)
		item := view.WorkloadEndpoint{
			ID:          view.EndpointID{Orchestrator: "k8s", Workload: o.Namespace + "/" + o.Spec.Pod, Endpoint: "eth0"},
			ContainerID: o.Spec.ContainerID,
			PolicyList:  list(v, alike(t, ok), t, ok, false, false, plain),
			Incomplete:  missing,
		}
		for _, n := range t.nets {
			item.Addresses = append(item.Addresses, n.Addr())
		}
		for _, n := range o.Spec.IPNATs {
			item.NATs = append(item.NATs, view.NAT{External: netip.MustParseAddr(n.ExternalIP), Internal: netip.MustParseAddr(n.InternalIP)})
		}
		oraclePeerings(w, out, t, o.Spec.Node, &item)
		v.add(item)
	}
	for _, o := range of[*api.HostEndpoint](w) {
		v, t := out[nodeView(o.Spec.Node)], oracleHost(w, o)
		ok, missing := split(t.profiles)
		item := view.HostEndpoint{
			Name: o.Name, Interface: o.Spec.InterfaceName, Incomplete: missing,
			Normal:  list(v, "", t, ok, false, false, plain),
			PreDNAT: list(v, "", t, nil, true, true, func(p view.Policy) bool { return p.PreDNAT }),
			Forward: list(v, "", t, nil, false, false, func(p view.Policy) bool { return plain(p) && p.ApplyOnForward }),
		}
		if o.Spec.InterfaceName != "*" {
			item.Untracked = list(v, "", t, nil, true, false, func(p view.Policy) bool { return p.DoNotTrack })
		}
		for _, n := range t.nets {
			item.ExpectedIPs = append(item.ExpectedIPs, n.Addr())
		}
		v.add(item)
	}
	for _, n := range of[*api.Node](w) {
		for _, p := range policies {
			if p.hint {
				reach(out[nodeView(n.Name)], p.rules.item.ID)
			}
		}
	}
}

func oracleSet(w *world, spec setSpec, things []thing) view.IPSet {
	set := view.IPSet{ID: spec.id, Type: spec.kind}
	seen := map[view.Member]bool{}
	add := func(m view.Member) {
		if !seen[m] {
			seen[m] = true
			set.Members = append(set.Members, m)
		}
	}
	for _, slice := range w.slices {
		for _, ep := range slice.Endpoints {
			for _, a := range ep.Addresses {
				for _, p := range slice.Ports {
					switch {
					case spec.service == "" || slice.Service != spec.service:
					case spec.kind == view.SetNet:
						add(view.Member{Prefix: netip.PrefixFrom(a, a.BitLen())})
					default:
						add(view.Member{Prefix: netip.PrefixFrom(a, a.BitLen()), Protocol: p.Protocol, Port: p.Port})
					}
				}
			}
		}
	}
	for _, t := range things {
		if spec.selector == nil || !spec.selector.MatchesLabels(selector.Map(t.labels)) {
			continue
		}
		for _, n := range t.nets {
			if spec.kind == view.SetNet {
				add(view.Member{Prefix: n})
				continue
			}
			for _, p := range t.ports {
				if p.name == spec.port && (spec.protocol == 0 || spec.protocol == p.protocol) {
					add(view.Member{Prefix: n, Protocol: p.protocol, Port: p.number})
				}
			}
		}
	}
	slices.SortFunc(set.Members, views.CompareMembers)
	return set
}
