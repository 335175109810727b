// Package ipip makes the kernel carry packets between nodes in IP-in-IP (RFC 2003), through a device named tunl0, by one
// of two backends that understand each other on the wire:
//
//   - Kernel: tunl0 of the module ipip. It learns the outer destination from the next hop of the route.
//   - BPF, where the kernel has no such module: tunl0 is one end of a veth pair, and two tc programs (bpf/ipip.c) do the
//     work. ipip_out, on the way out of tunl0, looks the destination up in a map, puts the outer header before the
//     packet and sends it out of the device that leads to the node (desired.Decap), with the help of the kernel's routes
//     and neighbours (bpf_redirect_neigh): of the one with the node's own address, or the first uplink if that is the
//     loopback, unless it is told another. ipip_in, on the way in of the device with the node's address and of those by
//     which packets to other nodes leave, unpacks what known nodes sent to the node's own address and has it come in on
//     tunl0, so that rules and routes see the same as with the module.
//
// It owns
//
//   - tunl0, if it is of the module and has no remote end, or is an end of our pair (its peer is called tunl0.peer). Any
//     other device of that name is left alone, and an error names it;
//   - every IPv4 address on it;
//   - the tc filters with priority 80, handle 1 and the names ipip_out and ipip_in, and with them their maps; the qdisc
//     clsact of a device once nobody has a filter in it any more.
//
// # The outer header
//
// Source: the node's address. DF always in BPF, which takes no fragments; as inside by the module, as users know tunl0.
// TTL 64 in BPF; as inside by the module, which with a fixed one would always set DF. TOS as inside, but congestion seen before the tunnel is not told outside, and congestion met on the way is told
// inside (RFC 3168 9.1.1). The identification is random. The device that the module makes by itself cannot be told to: it
// takes no class of service from inside, and sends from the address that the route prefers.
//
// # What makes this harder than it looks
//
// The module makes a device tunl0 in every namespace when it is loaded, and that one cannot be removed: the order to do so
// is taken and ignored. Where felix itself has the module loaded it turns that off for the moment, and makes tunl0 with
// the node's address as local end. (With neither end set a device of ours would take no packets.) A device of the module's
// making is used as it is, and left down and without address when it is not wanted. In the way of BPF it is renamed. While
// our own tunl0 is there, modprobe ipip by hand fails where the module would make one; a restart of felix loads it.
//
// The filters hold the programs and these the maps, so nothing is pinned anywhere: while felix is dead all goes on, and
// the next one finds the programs by the filters, the maps by the programs, and changes what differs. A felix with other
// programs loads them with the old maps, and replaces each filter in one step.
//
// Until kernel 6.19 a packet that ipip_in unpacked may stay marked as one in a tunnel (if GRO put it together, or if it
// came from another namespace of the same machine), so that the kernel refuses to mark it again on its way into the next
// tunnel; ipip_out then adds the header alone. Kernels before 6.3 do not know the flag that says what is removed; ipip_in
// then does without.
//
// # Known limits of BPF
//
// Linux 5.12 or newer, little-endian, root in the initial user namespace, and uplinks that are Ethernet devices (veth,
// VLAN and bond are). Packets that come in by a device by which none leave to other nodes are not taken.
//
// All packets to a node are sent by one device, also if several ways to it are equally good, and counted as sent also if none
// leads there. (bpf_fib_lookup would tell the right one for each packet, but is for programs under the GPL only; so felix
// asks the kernel when routes change.)
//
// Fragments of outer packets are passed up the stack, where nobody takes them: BPF makes no packets that may become some,
// but the module does. Messages about the path's MTU for outer packets are not heeded, as the kernel gives them to nobody
// where it has no module, and nobody could tell the inner sender by a route: the MTU of tunl0 must fit the path.
//
// A packet of 64 KiB that is in another tunnel already (a pod's own VXLAN) and is to be cut by the device is dropped; so
// may be, until kernel 6.19, one that came in by IP-in-IP and leaves by a VXLAN device of the kernel (a service on the
// second node, its pod, of another pool, on the third).
//
// tcpdump sees on tunl0 only what comes in, and the device's own counters stand still: Counters has better ones. Outer
// packets pass no netfilter hook: ipip_in does what rules would (known nodes only).
package ipip
