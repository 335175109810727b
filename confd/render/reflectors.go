package render

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// Reflectors that are chosen by the cluster (BGPConfiguration.spec.routeReflectors) stand in for the mesh. Their sessions
// are those of the mesh, with the same parameters: a node that peers with a reflector has nothing to change, and the sessions
// of a node that becomes one stay. What there is now is said by the status, which changes step by step so that no route is
// lost; the spec is for those who choose.
//
// A node with a routeReflectorClusterID is a reflector by hand. It takes no part in any of this: its sessions are those that
// BGPPeers ask for.

// reflects tells whether a node was chosen as a reflector.
func (r *renderer) reflects(n *node) bool {
	return r.reflection != nil && !n.cluster.IsValid() && slices.Contains(r.reflection.Reflectors, n.name)
}

// meets tells whether this node has a session with another without any BGPPeer.
func (r *renderer) meets(n *node) bool {
	if n == r.own || n.cluster.IsValid() || r.own.cluster.IsValid() {
		return false
	}
	if r.reflects(n) || r.reflects(r.own) {
		return true
	}
	return (r.config.NodeToNodeMeshEnabled == nil || *r.config.NodeToNodeMeshEnabled) && (r.reflection == nil || r.reflection.Mesh)
}

// serves tells whether this node reflects the routes of another.
func (r *renderer) serves(n *node) bool {
	return r.reflects(r.own) && !r.reflects(n) && n.as == r.own.as
}

// clusterID is valid if the node reflects routes. Each chosen reflector is a cluster of its own: all of them hear every
// node, and what one says may be kept by the others for when they do not.
func (r *renderer) clusterID(routerID netip.Addr) netip.Addr {
	if r.reflects(r.own) {
		return routerID
	}
	return r.own.cluster
}

// chosen takes in who reflects now.
func (r *renderer) chosen(o *api.BGPConfiguration) {
	if o.Status != nil {
		r.reflection = o.Status.Reflection
	}
}
