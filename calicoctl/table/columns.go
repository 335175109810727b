package table

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// netsWidth is how much of a list of networks a table shows.
const netsWidth = 80

// builtinTierOrder is the order of a tier that gives none.
const builtinTierOrder = 1_000_000

// columnsOf are the columns of a kind.
func columnsOf(kind api.Kind, opts Options) []column {
	var out []column
	if opts.Namespaces && kind.Namespaced {
		out = append(out, column{"NAMESPACE", func(o api.Object, _ Options) string { return o.GetNamespace() }})
	}
	normal, wide := kindColumns(kind)
	if opts.Wide && wide != nil {
		return append(out, wide...)
	}
	return append(out, normal...)
}

var name = column{"NAME", func(o api.Object, _ Options) string { return o.GetName() }}

// of is a column over one Go type.
func of[T api.Object](title string, value func(T) string) column {
	return column{title, func(o api.Object, _ Options) string { return value(o.(T)) }}
}

// kindColumns are the default columns of a kind, and the wide ones if they differ.
func kindColumns(kind api.Kind) (normal, wide []column) {
	switch kind.Name {
	case "BGPConfiguration":
		normal = []column{
			name,
			of("LOGSEVERITY", func(o *api.BGPConfiguration) string { return o.Spec.LogSeverityScreen }),
			of("MESHENABLED", func(o *api.BGPConfiguration) string { return dash(o.Spec.NodeToNodeMeshEnabled) }),
			of("ASNUMBER", func(o *api.BGPConfiguration) string { return dash(o.Spec.ASNumber) }),
		}
	case "BGPFilter":
		count := func(title string, n func(*api.BGPFilter) int) column {
			return of(title, func(o *api.BGPFilter) string { return strconv.Itoa(n(o)) })
		}
		normal = []column{
			name,
			count("NUMEXPORTV4", func(o *api.BGPFilter) int { return len(o.Spec.ExportV4) }),
			count("NUMIMPORTV4", func(o *api.BGPFilter) int { return len(o.Spec.ImportV4) }),
			count("NUMEXPORTV6", func(o *api.BGPFilter) int { return len(o.Spec.ExportV6) }),
			count("NUMIMPORTV6", func(o *api.BGPFilter) int { return len(o.Spec.ImportV6) }),
		}
	case "BGPPeer":
		normal = []column{
			name,
			of("PEERIP", func(o *api.BGPPeer) string { return o.Spec.PeerIP }),
			of("NODE", peerNode),
			of("ASN", func(o *api.BGPPeer) string { return o.Spec.ASNumber.String() }),
		}
	case "CalicoNodeStatus":
		normal = []column{name, of("NODE", func(o *api.CalicoNodeStatus) string { return o.Spec.Node })}
		wide = append(slices.Clone(normal), of("CLASSES", func(o *api.CalicoNodeStatus) string { return joined(o.Spec.Classes) }))
	case "ClusterInformation":
		normal = []column{
			name,
			of("CLUSTERGUID", func(o *api.ClusterInformation) string { return o.Spec.ClusterGUID }),
			of("CLUSTERTYPE", func(o *api.ClusterInformation) string { return o.Spec.ClusterType }),
			of("CALICOVERSION", func(o *api.ClusterInformation) string { return o.Spec.CalicoVersion }),
			of("DATASTOREREADY", func(o *api.ClusterInformation) string { return dash(o.Spec.DatastoreReady) }),
		}
	case "GlobalNetworkPolicy":
		return policy(func(o *api.GlobalNetworkPolicy) api.NetworkPolicySpec { return o.Spec.NetworkPolicySpec })
	case "NetworkPolicy":
		return policy(func(o *api.NetworkPolicy) api.NetworkPolicySpec { return o.Spec })
	case "StagedGlobalNetworkPolicy":
		return policy(func(o *api.StagedGlobalNetworkPolicy) api.NetworkPolicySpec { return o.Spec.NetworkPolicySpec })
	case "StagedNetworkPolicy":
		return policy(func(o *api.StagedNetworkPolicy) api.NetworkPolicySpec { return o.Spec.NetworkPolicySpec })
	case "StagedKubernetesNetworkPolicy":
		normal = []column{name}
		wide = []column{name, of("PODSELECTOR", func(o *api.StagedKubernetesNetworkPolicy) string {
			return metav1.FormatLabelSelector(&o.Spec.PodSelector)
		})}
	case "GlobalNetworkSet":
		normal = []column{name}
		wide = []column{name, of("NETS", func(o *api.GlobalNetworkSet) string { return nets(o.Spec.Nets) })}
	case "NetworkSet":
		normal = []column{name}
		wide = []column{name, of("NETS", func(o *api.NetworkSet) string { return nets(o.Spec.Nets) })}
	case "HostEndpoint":
		normal = []column{name, of("NODE", func(o *api.HostEndpoint) string { return o.Spec.Node })}
		wide = append(slices.Clone(normal),
			of("INTERFACE", func(o *api.HostEndpoint) string { return o.Spec.InterfaceName }),
			of("IPS", func(o *api.HostEndpoint) string { return joined(o.Spec.ExpectedIPs) }),
			of("PROFILES", func(o *api.HostEndpoint) string { return joined(o.Spec.Profiles) }))
	case "IPAMConfiguration":
		normal = []column{
			name,
			of("STRICTAFFINITY", func(o *api.IPAMConfiguration) string { return strconv.FormatBool(o.Spec.StrictAffinity) }),
			of("AUTOALLOCATEBLOCKS", func(o *api.IPAMConfiguration) string { return dash(o.Spec.AutoAllocateBlocks) }),
		}
		wide = append(slices.Clone(normal), of("MAXBLOCKSPERHOST", func(o *api.IPAMConfiguration) string {
			return strconv.Itoa(int(o.Spec.MaxBlocksPerHost))
		}))
	case "IPPool":
		return pool()
	case "IPReservation":
		normal = []column{name}
		wide = []column{name, of("CIDRS", func(o *api.IPReservation) string { return nets(o.Spec.ReservedCIDRs) })}
	case "Node":
		normal = []column{name}
		wide = []column{name, {"ASN", nodeAS}, of("IPV4", nodeIPv4), of("IPV6", nodeIPv6)}
	case "Profile":
		normal = []column{name}
		wide = []column{name, of("LABELS", func(o *api.Profile) string { return labels(o.Spec.LabelsToApply) })}
	case "Tier":
		normal = []column{name, {"ORDER", func(o api.Object, _ Options) string { return fmt.Sprint(tierOrder(o)) }}}
	case "WorkloadEndpoint":
		return workloadEndpoint()
	default:
		normal = []column{name}
	}
	return normal, wide
}

func policy[T api.Object](spec func(T) api.NetworkPolicySpec) (normal, wide []column) {
	normal = []column{name, of("TIER", func(o T) string { return spec(o).Tier })}
	wide = append(slices.Clone(normal),
		of("ORDER", func(o T) string {
			if order := spec(o).Order; order != nil {
				return fmt.Sprint(*order)
			}
			return "<nil>"
		}),
		of("SELECTOR", func(o T) string { return spec(o).Selector }))
	return normal, wide
}

func pool() (normal, wide []column) {
	cidr := of("CIDR", func(o *api.IPPool) string { return o.Spec.CIDR })
	selector := of("SELECTOR", func(o *api.IPPool) string { return o.Spec.NodeSelector })
	flag := func(title string, value func(api.IPPoolSpec) bool) column {
		return of(title, func(o *api.IPPool) string { return strconv.FormatBool(value(o.Spec)) })
	}
	return []column{name, cidr, selector}, []column{
		name, cidr,
		flag("NAT", func(s api.IPPoolSpec) bool { return s.NATOutgoing }),
		of("IPIPMODE", func(o *api.IPPool) string { return or(string(o.Spec.IPIPMode), "Never") }),
		of("VXLANMODE", func(o *api.IPPool) string { return or(string(o.Spec.VXLANMode), "Never") }),
		flag("DISABLED", func(s api.IPPoolSpec) bool { return s.Disabled }),
		flag("DISABLEBGPEXPORT", func(s api.IPPoolSpec) bool { return s.DisableBGPExport }),
		selector,
		of("ASSIGNMENTMODE", func(o *api.IPPool) string {
			if o.Spec.AssignmentMode == nil {
				return string(api.AssignAutomatic)
			}
			return string(*o.Spec.AssignmentMode)
		}),
	}
}

func workloadEndpoint() (normal, wide []column) {
	normal = []column{
		of("WORKLOAD", func(o *api.WorkloadEndpoint) string { return or(o.Spec.Pod, o.Spec.Workload) }),
		of("NODE", func(o *api.WorkloadEndpoint) string { return o.Spec.Node }),
		of("NETWORKS", func(o *api.WorkloadEndpoint) string { return joined(o.Spec.IPNetworks) }),
		of("INTERFACE", func(o *api.WorkloadEndpoint) string { return o.Spec.InterfaceName }),
	}
	wide = append([]column{name}, normal...)
	wide = append(wide,
		of("PROFILES", func(o *api.WorkloadEndpoint) string { return joined(o.Spec.Profiles) }),
		of("NATS", func(o *api.WorkloadEndpoint) string {
			var out []string
			for _, n := range o.Spec.IPNATs {
				out = append(out, n.InternalIP+"->"+n.ExternalIP)
			}
			return joined(out)
		}))
	return normal, wide
}

func peerNode(o *api.BGPPeer) string {
	switch {
	case o.Spec.Node != "":
		return o.Spec.Node
	case o.Spec.NodeSelector != "":
		return o.Spec.NodeSelector
	}
	return "(global)"
}

func nodeAS(o api.Object, opts Options) string {
	if bgp := o.(*api.Node).Spec.BGP; bgp != nil && bgp.ASNumber != nil {
		return bgp.ASNumber.String()
	}
	return "(" + opts.DefaultAS.String() + ")" // inherited
}

func nodeIPv4(o *api.Node) string {
	if o.Spec.BGP == nil {
		return ""
	}
	return o.Spec.BGP.IPv4Address
}

func nodeIPv6(o *api.Node) string {
	if o.Spec.BGP == nil {
		return ""
	}
	return o.Spec.BGP.IPv6Address
}

func tierOrder(o api.Object) float64 {
	if order := o.(*api.Tier).Spec.Order; order != nil {
		return *order
	}
	return builtinTierOrder
}

func nets(list []string) string {
	text := joined(list)
	if len(text) > netsWidth {
		return text[:netsWidth-3] + "..."
	}
	return text
}

func labels(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return joined(out)
}

func joined[T ~string](list []T) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return strings.Join(out, ",")
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// dash is the value, or a dash where none is given.
func dash[T any](p *T) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprint(*p)
}
