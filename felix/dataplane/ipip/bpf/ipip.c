// SPDX-License-Identifier: Apache-2.0
//
// IP-in-IP (RFC 2003) in two tc programs, for kernels without the ipip module. What they do and why is in the doc of the
// Go package above; names, layouts and counter numbers are shared with its programs.go. `make gen-bpf` compiles this.

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Kernel 6.3 and newer; older ones refuse it.
#define DECAP_L3_IPV4 (1ULL << 7)

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff // more fragments, or an offset
#define ECN 0x03
#define ECN_ECT0 0x02
#define ECN_CE 0x03
#define TTL 64
#define EALREADY 114

enum counter {
	SENT,
	TAKEN,
	DROP_NOT_IPV4,
	DROP_NO_ROUTE,
	DROP_NO_ROOM,
	DROP_CONGESTED,
	PASS_UNKNOWN_NODE,
	PASS_FRAGMENT,
	PASS_MALFORMED,
	COUNTERS
};

struct config {
	__be32 local;  // outer source, and the outer destination that is ours
	__u32 parent;  // index of the device to send by
	__u32 device;  // index of tunl0
	__u8 mac[6];   // of tunl0
	__u16 several; // not 0: to some nodes by another, as ipip_decaps says; else the look-up is spared
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} ipip_config SEC(".maps");

struct destination {
	__u32 bits;
	__be32 addr;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct destination);
	__type(value, __be32);
} ipip_encaps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 16);
	__type(key, __be32);
	__type(value, __u32); // index of the device to send to the node by; 0: the parent
} ipip_decaps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} ipip_counters SEC(".maps");

static __always_inline int counted(__u32 what, int verdict)
{
	__u64 *n = bpf_map_lookup_elem(&ipip_counters, &what);

	if (n)
		++*n;
	return verdict;
}

static __always_inline struct config *config(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&ipip_config, &only);
}

// headers makes len bytes after the Ethernet header readable and returns them.
static __always_inline void *headers(struct __sk_buff *skb, __u32 len)
{
	if ((void *)(long)skb->data + ETH_HLEN + len > (void *)(long)skb->data_end &&
	    (bpf_skb_pull_data(skb, ETH_HLEN + len) ||
	     (void *)(long)skb->data + ETH_HLEN + len > (void *)(long)skb->data_end))
		return NULL;
	return (void *)(long)skb->data + ETH_HLEN;
}

// sum is the Internet checksum of a header without options; 0 if that contains the right one.
static __always_inline __u16 sum(const struct iphdr *ip)
{
	const __u16 *half = (const __u16 *)ip;
	__u32 s = 0;

#pragma unroll
	for (int i = 0; i < (int)(sizeof(*ip) / 2); i++)
		s += half[i];
	s = (s & 0xffff) + (s >> 16);
	s += s >> 16;
	return ~s;
}

// ipip_out is on the way out of tunl0: it puts the outer header before the packet and sends it out of the device that leads
// to the node.
SEC("tc")
int ipip_out(struct __sk_buff *skb)
{
	struct destination to = { .bits = 32 };
	struct iphdr *inner, outer = {};
	struct config *cfg = config();
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	__be32 *remote;
	__u32 len, *by;
	__u8 tos;
	long err;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return counted(DROP_NOT_IPV4, TC_ACT_SHOT);
	inner = headers(skb, sizeof(*inner));
	if (!inner || !cfg)
		return counted(DROP_NOT_IPV4, TC_ACT_SHOT);
	to.addr = inner->daddr;
	remote = bpf_map_lookup_elem(&ipip_encaps, &to);
	if (!remote)
		return counted(DROP_NO_ROUTE, TC_ACT_SHOT);

	// Congestion seen inside is not told again outside (RFC 3168 9.1.1).
	tos = inner->tos;
	if ((tos & ECN) == ECN_CE)
		tos = (tos & ~ECN) | ECN_ECT0;
	outer.version = 4;
	outer.ihl = sizeof(outer) / 4;
	outer.tos = tos;
	len = skb->len - ETH_HLEN + sizeof(outer);
	outer.tot_len = len > 0xffff ? 0 : bpf_htons(len); // such are cut into segments, which get their own
	outer.id = bpf_get_prandom_u32();
	outer.frag_off = bpf_htons(IP_DF); // ipip_in takes no fragments: no router is to make any
	outer.ttl = TTL;
	outer.protocol = IPPROTO_IPIP;
	outer.saddr = cfg->local;
	outer.daddr = *remote;
	outer.check = sum(&outer);

	err = bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	// A packet that came out of a tunnel here may still be marked as one in a tunnel, with the right offsets: the
	// header alone is missing.
	if (err == -EALREADY)
		err = bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, flags);
	if (err || bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		return counted(DROP_NO_ROOM, TC_ACT_SHOT);
	counted(SENT, 0);
	by = cfg->several ? bpf_map_lookup_elem(&ipip_decaps, remote) : NULL;
	return bpf_redirect_neigh(by && *by ? *by : cfg->parent, NULL, 0, 0);
}

// ipip_in is on the way in of the uplinks: what a known node sent to us in IP-in-IP is unpacked and comes in on tunl0.
// Everything else goes on its way as if the program were not there.
SEC("tc")
int ipip_in(struct __sk_buff *skb)
{
	struct iphdr *outer, *inner;
	struct config *cfg;
	__be32 from;
	__u8 seen, tos;

	outer = headers(skb, sizeof(*outer));
	if (!outer || outer->protocol != IPPROTO_IPIP)
		return TC_ACT_UNSPEC;
	cfg = config();
	if (!cfg || outer->daddr != cfg->local)
		return TC_ACT_UNSPEC;
	from = outer->saddr;
	if (!bpf_map_lookup_elem(&ipip_decaps, &from))
		return counted(PASS_UNKNOWN_NODE, TC_ACT_UNSPEC);
	if (outer->frag_off & bpf_htons(IP_FRAGMENT))
		return counted(PASS_FRAGMENT, TC_ACT_UNSPEC);
	outer = headers(skb, sizeof(*outer) + sizeof(*inner));
	if (!outer || outer->version != 4 || outer->ihl != sizeof(*outer) / 4 || sum(outer))
		return counted(PASS_MALFORMED, TC_ACT_UNSPEC);
	inner = outer + 1;
	if (inner->version != 4)
		return counted(PASS_MALFORMED, TC_ACT_UNSPEC);

	// Congestion met on the way is told inside (RFC 3168 9.1.1); who cannot be told is told by the loss.
	seen = outer->tos & ECN;
	tos = inner->tos;
	if (seen == ECN_CE && !(tos & ECN))
		return counted(DROP_CONGESTED, TC_ACT_SHOT);
	if (seen == ECN_CE && (tos & ECN) != ECN_CE) {
		const __u32 at = ETH_HLEN + sizeof(*outer);

		// By a helper: a program that writes to packets itself has every cloned packet copied before it starts.
		seen |= tos;
		if (bpf_skb_store_bytes(skb, at + offsetof(struct iphdr, tos), &seen, sizeof(seen), 0) ||
		    bpf_l3_csum_replace(skb, at + offsetof(struct iphdr, check), bpf_htons(tos), bpf_htons(seen), 2))
			return counted(DROP_NO_ROOM, TC_ACT_SHOT);
	}
	if (bpf_skb_adjust_room(skb, -(int)sizeof(*outer), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | DECAP_L3_IPV4) &&
	    bpf_skb_adjust_room(skb, -(int)sizeof(*outer), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return counted(DROP_NO_ROOM, TC_ACT_SHOT);
	// A packet to another's MAC address would be taken for one overheard.
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_dest), cfg->mac, ETH_ALEN, 0))
		return counted(DROP_NO_ROOM, TC_ACT_SHOT);
	counted(TAKEN, 0);
	return bpf_redirect(cfg->device, BPF_F_INGRESS);
}

char copying[] SEC("license") = "Apache-2.0";
