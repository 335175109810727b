package migrate

import (
	"strings"

	"github.com/muslin-net/muslin/api"
)

// tunnelHandles begin the handles of addresses that belong to a node; its name follows.
var tunnelHandles = []string{"ipip-tunnel-addr-", "vxlan-tunnel-addr-", "vxlan-v6-tunnel-addr-", "wireguard-tunnel-addr-", "wireguard-v6-tunnel-addr-"}

// reserveHandle begins the handle of the addresses that a node holds ready.
const reserveHandle = "warm-"

// of is a node's name in Kubernetes.
func (n nodeNames) of(name string) string {
	if other, ok := n[name]; ok {
		return other
	}
	return name
}

// rename returns the object with the names that nodes have in Kubernetes.
func (n nodeNames) rename(o api.Object) api.Object {
	if len(n) == 0 {
		return o
	}
	o = o.DeepCopyObject().(api.Object)
	switch o := o.(type) {
	case *api.Node:
		o.Name = n.of(o.Name)
	case *api.BGPPeer:
		o.Spec.Node = n.of(o.Spec.Node)
	case *api.HostEndpoint:
		o.Spec.Node = n.of(o.Spec.Node)
	case *api.CalicoNodeStatus:
		o.Spec.Node = n.of(o.Spec.Node)
	case *api.FelixConfiguration:
		o.Name = n.configuration(o.Name)
	case *api.BGPConfiguration:
		o.Name = n.configuration(o.Name)
	case *api.BlockAffinity:
		n.affinity(o)
	case *api.IPAMBlock:
		n.block(o)
	case *api.IPAMHandle:
		o.Spec.HandleID = n.handle(o.Spec.HandleID)
		o.Name = o.Spec.HandleID
	}
	return o
}

// configuration is the name of an object that may be one node's.
func (n nodeNames) configuration(name string) string {
	if node, ok := strings.CutPrefix(name, api.NodeConfigPrefix); ok {
		return api.NodeConfigPrefix + n.of(node)
	}
	return name
}

func (n nodeNames) affinity(a *api.BlockAffinity) {
	kind, _, cidr, err := api.ParseAffinityName(a.Name)
	if err != nil || kind != api.AffinityHost {
		return
	}
	a.Spec.Node = n.of(a.Spec.Node)
	a.Name = api.AffinityName(kind, a.Spec.Node, cidr)
}

func (n nodeNames) block(b *api.IPAMBlock) {
	if b.Spec.Affinity != nil {
		if node, ok := strings.CutPrefix(*b.Spec.Affinity, "host:"); ok {
			b.Spec.Affinity = new("host:" + n.of(node))
		}
	}
	for i := range b.Spec.Attributes {
		a := &b.Spec.Attributes[i]
		if a.HandleID != nil {
			a.HandleID = new(n.handle(*a.HandleID))
		}
		for _, owner := range []map[string]string{a.Owner, a.AlternateOwner} {
			if node, ok := owner[api.OwnerNode]; ok {
				owner[api.OwnerNode] = n.of(node)
			}
		}
	}
}

func (n nodeNames) handle(id string) string {
	for _, prefix := range tunnelHandles {
		if node, ok := strings.CutPrefix(id, prefix); ok {
			return prefix + n.of(node)
		}
	}
	// What a node holds ready is named by it and its epoch, which has no dash.
	if rest, ok := strings.CutPrefix(id, reserveHandle); ok {
		if dash := strings.LastIndexByte(rest, '-'); dash > 0 {
			return reserveHandle + n.of(rest[:dash]) + rest[dash:]
		}
	}
	return id
}
