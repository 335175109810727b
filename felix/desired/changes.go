package desired

import "net/netip"

// Changes is what one commit changes on a node, in all that felix programs.
type Changes struct {
	Sysctls   Delta[string, Sysctl] // of the host, by path; those of workload links follow from Links
	Links     Delta[string, WorkloadLink]
	VXLANs    Delta[string, VXLAN]
	IPIPs     Delta[string, IPIP]
	Encaps    Delta[netip.Prefix, Encap] // destinations that are routed through tunl0
	Decaps    Delta[netip.Addr, Decap]   // nodes whose IP-in-IP packets are taken
	Neighbors Delta[NeighborKey, MAC]
	FDB       Delta[FDBKey, netip.Addr]
	Routes    Delta[RouteKey, Route]
	Firewall  FirewallDelta
}
