package audit

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/block"
)

// Report is a check as a file, in the form of Calico's. Two of them, some time apart, tell what is lost from what is just
// being assigned.
type Report struct {
	Version         string `json:"version"` // of the program that made it
	ClusterGUID     string `json:"clusterGUID"`
	DatastoreLocked bool   `json:"datastoreLocked"`
	// ClusterInfoRevision is the revision of the ClusterInformation. It changes whenever the datastore is locked or
	// unlocked, so that a report which has the present one was made since then.
	ClusterInfoRevision string                        `json:"clusterInformationRevision"`
	ClusterType         string                        `json:"clusterType"`
	Allocations         map[string][]ReportAllocation `json:"allocations"`
	LeakedHandles       []ReportHandle                `json:"leakedHandles,omitempty"`
	// Problems are all findings in words. It is an addition to Calico's report.
	Problems map[Kind][]string `json:"problems,omitempty"`
}

// ReportAllocation is an address that is given out.
type ReportAllocation struct {
	IP                string   `json:"ip"`
	Handle            string   `json:"handle,omitempty"`
	SequenceNumber    *uint64  `json:"sequenceNumber,omitempty"`
	Pod               string   `json:"pod,omitempty"`
	Namespace         string   `json:"namespace,omitempty"`
	Node              string   `json:"node,omitempty"`
	Type              string   `json:"type,omitempty"`
	CreationTimestamp string   `json:"creationTimestamp,omitempty"`
	InUse             bool     `json:"inUse"`
	Borrowed          bool     `json:"borrowed,omitempty"`
	Owners            []string `json:"owners"`
}

// ReportHandle is a handle without addresses, at the revision at which it was seen. It is spelled as Calico spells it.
type ReportHandle struct {
	ID       string
	UID      *string
	Revision string
}

// NewReport is the report of a check.
func NewReport(version string, info *api.ClusterInformation, facts Facts, f Findings) Report {
	r := Report{
		Version: version, ClusterGUID: info.Spec.ClusterGUID, DatastoreLocked: info.Locked(),
		ClusterInfoRevision: info.ResourceVersion, ClusterType: info.Spec.ClusterType,
		Allocations: map[string][]ReportAllocation{}, Problems: map[Kind][]string{},
	}
	for _, a := range f.Allocations {
		r.Allocations[a.Addr.String()] = append(r.Allocations[a.Addr.String()], ReportAllocation{
			IP: a.Addr.String(), Handle: a.Handle, SequenceNumber: &a.Sequence, Pod: a.Owner[api.OwnerPod], Namespace: a.Owner[api.OwnerNamespace],
			Node: a.Node(), Type: a.Owner[api.OwnerType], CreationTimestamp: a.Owner[api.OwnerTimestamp],
			InUse: len(a.Users) > 0, Borrowed: a.Borrowed(), Owners: a.Users,
		})
	}
	for _, p := range f.Problems {
		r.Problems[p.Kind] = append(r.Problems[p.Kind], p.Subject+" "+p.Text)
	}
	orphan := map[string]bool{}
	for _, p := range f.Of(OrphanHandle) {
		orphan[p.Subject] = true
	}
	for _, h := range byName(facts.Handles) {
		if orphan[h.Name] {
			r.LeakedHandles = append(r.LeakedHandles, ReportHandle{ID: h.Name, Revision: h.ResourceVersion})
		}
	}
	return r
}

// Lost is what several reports agree on: addresses that nothing had in any of them, and that were not given out anew in
// between, and handles that had no addresses and did not change. Only reports of one cluster may be compared.
func Lost(reports ...Report) (addrs []block.Release, handles []ReportHandle, err error) {
	if len(reports) == 0 {
		return nil, nil, errors.New("no report is given")
	}
	type given struct {
		ip, handle string
		sequence   uint64
	}
	lost := map[given]int{} // in how many reports
	orphans := map[ReportHandle]int{}
	for _, r := range reports {
		for _, list := range r.Allocations {
			for _, a := range list {
				if !a.InUse && a.SequenceNumber != nil {
					lost[given{a.IP, a.Handle, *a.SequenceNumber}]++
				}
			}
		}
		for _, h := range r.LeakedHandles {
			orphans[ReportHandle{ID: h.ID, Revision: h.Revision}]++
		}
	}
	for g, n := range lost {
		if n < len(reports) {
			continue
		}
		a, err := netip.ParseAddr(g.ip)
		if err != nil {
			return nil, nil, fmt.Errorf("the report names %q, which is no address; make a new one", g.ip)
		}
		addrs = append(addrs, block.Release{Addr: a, Handle: g.handle, Sequence: &g.sequence})
	}
	maps.DeleteFunc(orphans, func(_ ReportHandle, n int) bool { return n < len(reports) })
	slices.SortFunc(addrs, func(x, y block.Release) int { return x.Addr.Compare(y.Addr) })
	handles = slices.SortedFunc(maps.Keys(orphans), func(x, y ReportHandle) int { return cmp.Compare(x.ID, y.ID) })
	return addrs, handles, nil
}
