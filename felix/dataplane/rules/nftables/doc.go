// Package nftables keeps the node's firewall in nftables: one table named calico for each family, owned wholly; others'
// tables are never touched. All changes of one Apply are one transaction, so a packet meets either the former rules or
// the new ones. (Only where the socket's buffer is too small for that, which a privileged process never meets, it is cut
// at the borders of objects.)
//
// A packet's way (priorities and names as Calico's, spec §4.8):
//
//	netdev           what a workload sends under a source that is not its own is dropped, on its device, see guard.go
//	raw-PREROUTING   VXLAN is not tracked
//	filter-INPUT     tunnel packets are admitted from known nodes; a workload's packets to the host: its egress policy, then
//	                 DefaultEndpointToHostAction
//	filter-FORWARD   closed workloads; established flows; then by verdict map the sender's egress and the receiver's
//	                 ingress policy; a workload interface that nobody told of drops everything
//	raw-OUTPUT       VXLAN is not tracked
//	nat-POSTROUTING  outgoing NAT
//
// What host endpoints need is there only while there are any, see hosts.go: raw-PREROUTING and raw-OUTPUT judge without
// tracking, mangle-PREROUTING before destinations are translated, filter-FORWARD around the workloads' policies,
// filter-INPUT and filter-OUTPUT what is local, and mangle-POSTROUTING what the host sent and had translated, since only
// there it is known by which interface it leaves.
//
// Established flows take one rule. Policies are chains of their own, shared by all endpoints they apply to, and so are
// lists of policies: a policy that changes is one chain rewritten, however many endpoints it has. Allowed and passed are
// two bits of the packet mark, see desired.Chain.
//
// Rules carry a comment: what they come from, and a digest of their content. A restart compares comments, and writes
// nothing where they agree. A change by others is seen by the kernel's notifications; the chain or set concerned is then
// compared anew, and a chain whose rules were touched is rewritten even if the comments agree.
//
// Whatever cannot be programmed closes rather than opens: a chain the kernel refuses is replaced by a drop, a rule that
// names a set or chain that is not there drops, a workload whose chains are not there is closed.
package nftables
