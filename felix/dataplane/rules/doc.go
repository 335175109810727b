// Package rules programs the node's firewall by one of its drivers, and moves it from one to another while packets flow.
//
// The choice follows the configuration (desired.Rules); where that leaves it open, kube-proxy: nftables if kube-proxy has
// its table there, iptables of the variant in which it has its chains, and nftables if there is no kube-proxy, as nftables
// needs no lock and a change costs what changes. What is found counts when it was found twice, 15 s apart, but at the start.
//
// Moving leaves no gap: the new driver is told all that the old one was, and commits it beside the old; for that moment both
// judge each packet, so one passes only if both let it, which they do as they are told the same. Then the old one's tables,
// or its jumps, chains and sets, are removed. Each has sets of its own. Packet marks they share: a verdict is written and
// read within one hook by the same driver, and where one lives on to a later hook (host endpoints' passes before connection
// tracking) both write the same. A switch that fails half-way leaves both in place, which closes rather than opens, and is
// tried again with the next Apply.
//
// What a former felix left by another driver goes when the first Apply has succeeded.
package rules
