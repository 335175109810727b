// Package rules programs the node's firewall by one of its drivers, and moves it from one to another while packets flow.
//
// The choice follows the configuration (desired.Rules); where that leaves it open, kube-proxy: nftables if kube-proxy has
// its table there, iptables of the variant in which it has its chains, and nftables if there is no kube-proxy, as nftables
// needs no lock and a change costs what changes. What is found counts when it was found twice, 15 s apart, but at the start.
//
// Moving leaves no gap: the new driver is told all that the old one was, and commits it beside the old; for that moment both
// judge each packet, so one passes only if both let it, which they do as they are told the same. Then the old one's tables,
// or its jumps, chains and sets, are removed. Each has sets of its own. The bits of packet marks they share, and need not
// have twice as many:
//
//   - MarkAccept and MarkPass are cleared before each evaluation, and read behind it in the same hook. Between the hooks that
//     follow each other at one priority they tell the second driver what the first allowed, which it would allow too.
//   - MarkAccept of host endpoints' passes before connection tracking, MarkLater and MarkSent live on to a later hook. Both
//     drivers write them there by the same model, and whichever writes last writes what the other did.
//
// A change that comes with a move counts when the move is done. A switch that fails half-way leaves both in place, which
// closes rather than opens, and is tried again with the next Apply.
//
// What a former felix left by another driver goes when the first Apply has succeeded.
package rules
