// Package leak decides which addresses, endpoints and blocks nobody needs any more. It is pure: it is shown what is stored,
// again and again, and returns what to ask nodes, and what may be released. Package ipamgc does it.
//
// An address is released when it is proven that nobody has it, never because it has looked so for long:
//
//   - The node that it was given to is not registered any more. Deleting a Node says that the machine is gone; all that it
//     had is fenced.
//   - Or the node is there, and felix, asked after the address had been missing for the whole grace period, has reported
//     all its endpoints, and it is none of theirs. A node that is cut off cannot answer, nor can one whose typha is gone:
//     its pods live on, and so do their addresses, for as long as it takes.
//
// Between being given out and being reported an address is missing too; an ADD ends within a minute, and the grace period
// is longer. Addresses that a node holds ready (warm pool) may have been given to pods while the node is cut off: they are
// the node's as long as it is registered.
package leak

import (
	"net/netip"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

// Life is what is known of whoever has an address.
type Life int

// The answers.
const (
	Untold  Life = iota // nobody can tell: it is left alone
	Alive               // somebody has it
	Missing             // nobody is known to have it, on a node that is registered
	Gone                // it was given to a node that is not registered any more
	Nobody              // it belongs to nobody by design: it cools down, or a Windows host keeps it free
)

// Owners tells whether whoever an address was given to is still there. Reported is the one for clusters whose workloads only
// their nodes know.
type Owners interface {
	Life(a block.Allocation) Life
}

// Reported judges by the registered nodes and the endpoints that they report.
type Reported struct {
	Nodes     map[string]*api.Node
	Endpoints map[netip.Addr]bool // addresses of endpoints on registered nodes
}

// Life tells what is known of an address's owner.
func (r Reported) Life(a block.Allocation) Life {
	name := a.Owner[api.OwnerNode]
	node := r.Nodes[name]
	switch purpose := a.Purpose(); {
	case purpose == block.Cooling || purpose == block.Windows:
		return Nobody
	case purpose != block.Workload && purpose != block.Tunnel && purpose != block.Warm || name == "":
		return Untold
	case r.Endpoints[a.Addr]:
		return Alive
	case node == nil:
		return Gone
	case purpose == block.Workload && a.Owner[api.OwnerEndpoint] == "":
		return Untold // another plugin may have wired it, which reports nothing
	case purpose == block.Workload, purpose == block.Warm && ended(node, a):
		return Missing
	}
	return Alive
}

// ended tells whether a warm address is of a journal that the node has no more. Its node's epochs only grow, and nothing
// that an earlier one held can be given to a pod any more.
func ended(node *api.Node, a block.Allocation) bool {
	epoch, ok := a.WarmEpoch()
	return ok && epoch < node.IPAMEpoch()
}
