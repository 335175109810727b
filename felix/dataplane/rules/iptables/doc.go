// Package iptables keeps the node's firewall in iptables, by either variant of its programs: legacy (xtables) or nft. It says
// what package nftables says, and means the same on every packet; tests hold both to that.
//
// All changes of one Apply to a table are one transaction of iptables-restore --noflush, but that many new chains, which no
// packet comes to yet, are written before in pieces by the nft variant. One run of the program takes many transactions, one
// after the other (feed.go); what it fails at is tried by a run of its own, which says of which line the kernel complains.
// Chains are Calico's (spec §4.5); a jump from each of the kernel's chains that is needed comes first in it, or last where that
// is asked for. Others' rules and chains stay as they are, and see what policy allows; what they leave undecided of it is
// accepted at the end of FORWARD, whatever that chain's policy is.
//
//	raw PREROUTING     tunnel packets are admitted from known nodes; VXLAN is not tracked; what a workload sends under a source
//	                   that is not its own is dropped
//	filter INPUT       a workload's packets to the host: its egress policy, then DefaultEndpointToHostAction
//	filter FORWARD     closed workloads; established flows of workloads; then the sender's egress and the receiver's ingress
//	                   policy; a workload interface that nobody told of drops everything
//	raw OUTPUT         VXLAN is not tracked
//	nat POSTROUTING    outgoing NAT
//
// and where there are host endpoints (hosts.go) also filter OUTPUT, mangle PREROUTING and POSTROUTING. A packet finds the
// chain of its interface by a tree of beginnings of names. An Allow goes to a chain that sets the mark and ends: it so leaves
// the chain of the rule, with one rule where a jump and a return would take two.
//
// Sets are the kernel's ip_set, written by netlink, and hold what they should before rules name them. Many changes of a set
// are made in another that then takes its place. Lists of prefixes in rules are sets too, named by their content.
//
// Each rule has a comment: a hash over its chain up to it, and what it comes from. A restart compares hashes, and writes
// nothing where they agree. xtables and ip_set send no notifications: every 500 ms the headers of our tables and sets are
// compared with what they were, and what is not as it was is read anew. A rule that others replace by one of equal size, under
// the same hash, is found by the words of iptables-save at the next Resync. In the nft variant the kernel's notifications
// tell of it at once; the number of the generation of rules tells our own changes from others'.
//
// Whatever cannot be programmed closes rather than opens: a chain the kernel refuses is replaced by a drop, a rule that
// names a set or chain that is not there drops, and so does one that names a set beyond its limit, which is not written even
// in part; a workload whose chains are not there is closed.
package iptables
