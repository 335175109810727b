package block

import (
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api"
)

// Purpose is what an address was given out for, as far as what is stored with it tells.
type Purpose int

// The purposes. Unknown is everything that somebody else may have invented; it is never judged.
const (
	Unknown  Purpose = iota
	Workload         // a pod or container on a node
	Tunnel           // a tunnel device of a node
	Warm             // held ready for pods of a node
	Machine          // a KubeVirt machine, which may move between nodes
	Service          // a load-balancer service
	Windows          // kept by Calico for a Windows host
	Cooling          // released a short while ago
)

// String is the purpose in words.
func (p Purpose) String() string {
	return [...]string{"unknown", "workload", "tunnel", "warm pool", "virtual machine", "service", "Windows host", "cool-down"}[p]
}

// typesOfTunnels are what api.OwnerType holds for tunnels.
var typesOfTunnels = map[string]string{
	"ipipTunnelAddress":        "IP-in-IP tunnel",
	"vxlanTunnelAddress":       "VXLAN tunnel",
	"vxlanV6TunnelAddress":     "VXLAN tunnel (IPv6)",
	"wireguardTunnelAddress":   "WireGuard tunnel",
	"wireguardV6TunnelAddress": "WireGuard tunnel (IPv6)",
}

// Purpose tells what an address was given out for. An address of a workload has a handle and a node.
func (a Allocation) Purpose() Purpose {
	kind := a.Owner[api.OwnerType]
	_, tunnel := typesOfTunnels[kind]
	switch {
	case a.Cooling():
		return Cooling
	case strings.ToLower(a.Handle) == windowsHandle:
		return Windows
	case tunnel:
		return Tunnel
	case kind == api.TypeWarmPool:
		return Warm
	case kind != "":
		return Unknown
	case a.Owner[api.OwnerMachine] != "":
		return Machine
	case a.Owner[api.OwnerService] != "" || strings.HasPrefix(a.Handle, "lb-") && a.Owner[api.OwnerNode] == "":
		return Service
	case a.Handle != "" && a.Owner[api.OwnerNode] != "":
		return Workload
	}
	return Unknown
}

// WarmEpoch is the epoch of the journal by which a node holds a warm address; false if the handle is not of that form.
func (a Allocation) WarmEpoch() (uint64, bool) {
	text, ok := strings.CutPrefix(a.Handle, "warm-"+a.Owner[api.OwnerNode]+"-")
	epoch, err := strconv.ParseUint(text, 10, 64)
	return epoch, ok && err == nil
}

// Whom says for whom an address is, for people: "pod shop/web-0 on node a".
func (a Allocation) Whom() string {
	node := a.Owner[api.OwnerNode]
	on := ""
	if node != "" {
		on = " on node " + node
	}
	switch a.Purpose() {
	case Cooling:
		return "nobody, cooling down since " + a.Released.UTC().Format("15:04:05 UTC")
	case Windows:
		return "the Windows host of the block"
	case Tunnel:
		return "the " + typesOfTunnels[a.Owner[api.OwnerType]] + on
	case Warm:
		return "no pod yet: node " + node + " holds it ready (warm pool)"
	case Machine:
		return "virtual machine " + a.Owner[api.OwnerNamespace] + "/" + a.Owner[api.OwnerMachine]
	case Service:
		return strings.TrimSpace("service " + a.Owner[api.OwnerNamespace] + "/" + a.Owner[api.OwnerService])
	case Workload:
		if a.Owner[api.OwnerPod] != "" {
			return "pod " + a.Owner[api.OwnerNamespace] + "/" + a.Owner[api.OwnerPod] + on
		}
		return "a workload" + on
	}
	return "an unknown owner" + on
}
