package api

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

var groupVersion = schema.GroupVersion{Group: "projectcalico.org", Version: "v3"}

// kinds is the registry, in the order in which one set of documents is best written: what others refer to comes first.
var kinds = []Kind{
	{Name: "ClusterInformation", Plural: "clusterinformations", Aliases: []string{"clusterinfo", "clusterinfos"}, New: func() Object { return &ClusterInformation{} }},
	{Name: "FelixConfiguration", Plural: "felixconfigurations", Aliases: []string{"felixconfig", "felixconfigs"}, New: func() Object { return &FelixConfiguration{} }},
	{Name: "KubeControllersConfiguration", Plural: "kubecontrollersconfigurations", Aliases: []string{"kubecontrollersconfig", "kcconfig", "kcc", "kccs"}, New: func() Object { return &KubeControllersConfiguration{} }},
	{Name: "IPAMConfiguration", Plural: "ipamconfigurations", Aliases: []string{"ipamconfig", "ipamconfigs"}, New: func() Object { return &IPAMConfiguration{} }},
	{Name: "IPPool", Plural: "ippools", Aliases: []string{"ipp", "ipps", "pool", "pools"}, New: func() Object { return &IPPool{} }},
	{Name: "IPReservation", Plural: "ipreservations", Aliases: []string{"reservation", "reservations"}, New: func() Object { return &IPReservation{} }},
	{Name: "Node", Plural: "nodes", Aliases: []string{"no", "nos"}, New: func() Object { return &Node{} }},
	{Name: "BGPConfiguration", Plural: "bgpconfigurations", Aliases: []string{"bgpconfig", "bgpconfigs"}, New: func() Object { return &BGPConfiguration{} }},
	{Name: "BGPFilter", Plural: "bgpfilters", Aliases: []string{"bgpf", "bgpfs", "bf", "bfs"}, New: func() Object { return &BGPFilter{} }},
	{Name: "BGPPeer", Plural: "bgppeers", Aliases: []string{"bgpp", "bgpps", "bp", "bps"}, New: func() Object { return &BGPPeer{} }},
	{Name: "Tier", Plural: "tiers", New: func() Object { return &Tier{} }},
	{Name: "Profile", Plural: "profiles", Aliases: []string{"pro", "pros"}, New: func() Object { return &Profile{} }},
	{Name: "GlobalNetworkSet", Plural: "globalnetworksets", Aliases: []string{"gnetset", "gnetsets"}, New: func() Object { return &GlobalNetworkSet{} }},
	{Name: "NetworkSet", Plural: "networksets", Aliases: []string{"netset", "netsets"}, Namespaced: true, New: func() Object { return &NetworkSet{} }},
	{Name: "GlobalNetworkPolicy", Plural: "globalnetworkpolicies", Aliases: []string{"gnp", "gnps"}, New: func() Object { return &GlobalNetworkPolicy{} }},
	{Name: "NetworkPolicy", Plural: "networkpolicies", Aliases: []string{"np", "nps", "policy", "policies", "pol", "pols"}, Namespaced: true, New: func() Object { return &NetworkPolicy{} }},
	{Name: "StagedGlobalNetworkPolicy", Plural: "stagedglobalnetworkpolicies", Aliases: []string{"sgnp", "sgnps"}, New: func() Object { return &StagedGlobalNetworkPolicy{} }},
	{Name: "StagedNetworkPolicy", Plural: "stagednetworkpolicies", Aliases: []string{"snp", "snps"}, Namespaced: true, New: func() Object { return &StagedNetworkPolicy{} }},
	{Name: "StagedKubernetesNetworkPolicy", Plural: "stagedkubernetesnetworkpolicies", Aliases: []string{"sknp", "sknps"}, Namespaced: true, New: func() Object { return &StagedKubernetesNetworkPolicy{} }},
	{Name: "HostEndpoint", Plural: "hostendpoints", Aliases: []string{"hep", "heps"}, New: func() Object { return &HostEndpoint{} }},
	{Name: "WorkloadEndpoint", Plural: "workloadendpoints", Aliases: []string{"wep", "weps"}, Namespaced: true, New: func() Object { return &WorkloadEndpoint{} }},
	{Name: "CalicoNodeStatus", Plural: "caliconodestatuses", Aliases: []string{"caliconodestatus", "nodestatus", "nodestatuses"}, New: func() Object { return &CalicoNodeStatus{} }},
	{Name: "IPAMBlock", Plural: "ipamblocks", Internal: true, New: func() Object { return &IPAMBlock{} }},
	{Name: "BlockAffinity", Plural: "blockaffinities", Internal: true, New: func() Object { return &BlockAffinity{} }},
	{Name: "IPAMHandle", Plural: "ipamhandles", Internal: true, New: func() Object { return &IPAMHandle{} }},
	{Name: "Lease", Plural: "leases", Internal: true, New: func() Object { return &Lease{} }},
	{Name: "LiveMigration", Plural: "livemigrations", Namespaced: true, Internal: true, New: func() Object { return &LiveMigration{} }},
}

// Kinds lists every kind, in an order in which documents can be written: what others refer to comes first.
func Kinds() []Kind { return slices.Clone(kinds) }

// KindNames lists the names of all kinds, in the order of Kinds.
func KindNames() []string {
	names := make([]string, len(kinds))
	for i := range kinds {
		names[i] = kinds[i].Name
	}
	return names
}

// LookupKind finds a kind by its name, plural or alias, in any case.
func LookupKind(name string) (Kind, bool) {
	for i := range kinds {
		k := &kinds[i]
		if strings.EqualFold(name, k.Name) || strings.EqualFold(name, k.Plural) ||
			slices.ContainsFunc(k.Aliases, func(a string) bool { return strings.EqualFold(name, a) }) {
			return *k, true
		}
	}
	return Kind{}, false
}

// MustKind is the kind of that exact name; it panics if there is none. It is for names written in code.
func MustKind(name string) Kind {
	for i := range kinds {
		if kinds[i].Name == name {
			return kinds[i]
		}
	}
	panic("api: no kind " + name)
}

// New makes an empty object of a kind, given by its exact name, with apiVersion and kind filled in.
func New(kind string) (Object, error) {
	for i := range kinds {
		if kinds[i].Name == kind {
			return kinds[i].empty(), nil
		}
	}
	return nil, fmt.Errorf("there is no kind %q; the kinds are %s", kind, strings.Join(KindNames(), ", "))
}

// empty is a new object with apiVersion and kind filled in.
func (k Kind) empty() Object {
	o := k.New()
	o.GetObjectKind().SetGroupVersionKind(groupVersion.WithKind(k.Name))
	return o
}

// KindOf gives the kind of an object by its Go type, which is named like the kind. It panics for a type that is not in
// the registry, which only a program that invents an Object of its own can bring about.
func KindOf(o Object) Kind {
	return MustKind(reflect.TypeOf(o).Elem().Name())
}
