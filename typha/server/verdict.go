package server

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// nodeView is what a node knows, as the evaluation of policies asks for it.
type nodeView struct {
	views *views.Store
	scope views.Scope
}

func (n nodeView) List(id string) (view.PolicyList, bool) {
	return item[view.PolicyList](n, view.KindPolicyList, id)
}

func (n nodeView) Policy(id string) (view.Policy, bool) {
	return item[view.Policy](n, view.KindPolicy, id)
}

func (n nodeView) Contains(id string, a netip.Addr) bool { return n.contains(id, a, 0, 0) }

func (n nodeView) ContainsPort(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	return n.contains(id, a, protocol, port)
}

// contains goes through a set once, as no more is asked.
func (n nodeView) contains(id string, a netip.Addr, protocol view.Protocol, port uint16) bool {
	set, _ := item[view.IPSet](n, view.KindIPSet, id)
	return slices.ContainsFunc(set.Members, func(m view.Member) bool {
		return m.Prefix.Contains(a) && m.Protocol == protocol && m.Port == port
	})
}

func item[T view.Item](n nodeView, kind view.Kind, id string) (T, bool) {
	e := n.views.Get(n.scope, view.Key{Kind: kind, ID: id})
	if e == nil {
		var none T
		return none, false
	}
	it, ok := e.Item().(T)
	return it, ok
}
