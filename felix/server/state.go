package server

import (
	"context"
	"slices"
	"strings"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// Dump gives desired beside actual state.
func (s *Server) Dump(ctx context.Context, req *felixv1.DumpRequest) (*felixv1.DumpResponse, error) {
	all, err := s.Agent.Dump(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	all = append(all, s.reserve()...)
	resp := &felixv1.DumpResponse{}
	for _, d := range all {
		wanted := len(req.GetSections()) == 0 || slices.Contains(req.GetSections(), d.Section)
		if !wanted || req.GetDifferencesOnly() && d.Desired == d.Actual {
			continue
		}
		resp.Entries = append(resp.Entries, &felixv1.DumpEntry{
			Section: d.Section, Key: d.Key, Desired: d.Desired, Actual: d.Actual, Error: d.Error,
		})
	}
	return resp, nil
}

// reserve tells of the addresses that the node holds: what an address is for, and who has it.
func (s *Server) reserve() (out []Difference) {
	if s.Reserve == nil {
		return nil
	}
	for a, slot := range s.Reserve.Slots() {
		text := strings.TrimSpace(string(slot.Phase) + " " + slot.Handle)
		out = append(out, Difference{Section: "address", Key: a.String(), Desired: text, Actual: text})
	}
	slices.SortFunc(out, func(x, y Difference) int { return strings.Compare(x.Key, y.Key) })
	return out
}

// Endpoints lists the endpoints of the node, with what applies to them.
func (s *Server) Endpoints(ctx context.Context, req *felixv1.EndpointsRequest) (*felixv1.EndpointsResponse, error) {
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	counted, err := s.counts(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &felixv1.EndpointsResponse{}
	for _, e := range local {
		out := &felixv1.Endpoint{
			Id: e.ID.String(), Interface: e.Interface, Mac: e.MAC, Addresses: bytesOf(e.Addresses), ContainerId: e.ContainerID,
		}
		names := []string{out.GetId(), e.Interface, e.ID.Workload}
		for _, a := range e.Addresses {
			names = append(names, a.String())
		}
		if asked := req.GetEndpoint(); asked != "" && !slices.Contains(names, asked) {
			continue
		}
		applied, err := s.Agent.Applied(ctx, e.Interface)
		if err != nil {
			return nil, statusOf(err)
		}
		out.Closed, out.ClosedBecause, out.Policies = len(applied.Closed) > 0, applied.Closed, policyCounters(applied, counted)
		resp.Endpoints = append(resp.Endpoints, out)
	}
	hosts, err := s.Agent.Hosts(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	for i := range hosts {
		if hosts[i].is(req.GetEndpoint()) {
			resp.Endpoints = append(resp.Endpoints, hosts[i].endpoint(counted))
		}
	}
	slices.SortStableFunc(resp.GetEndpoints(), func(a, b *felixv1.Endpoint) int {
		return strings.Compare(a.GetInterface(), b.GetInterface())
	})
	return resp, nil
}
