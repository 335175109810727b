// Package loadbalancer gives addresses to services of type LoadBalancer, out of pools that are for that, and shows them in the
// services' status. Package assign decides. The addresses belong to no node: their blocks are those of a virtual node.
//
// For a service whose address changes, the new one is taken and shown before the old one is given back. What a service has is
// known from the blocks alone: what a process that died half-way took is found by its handle.
package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/loadbalancer/assign"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// gather is for how long changes are put together.
const gather = 100 * time.Millisecond

// Kubernetes is where the services are.
type Kubernetes interface {
	// Service looks at the API server itself; nil if there is none.
	Service(ctx context.Context, namespace, name string) (*assign.Service, error)
	// ShowService makes these the addresses in a service's status, if it is still that service. wrong is why it does not have
	// what it asks for; nil if nobody has to be told.
	ShowService(ctx context.Context, s *assign.Service, ingress []string, wrong error) error
}

// Run gives addresses to services until ctx ends.
func Run(ctx context.Context, store *loop.Store, k Kubernetes, services loop.Table[assign.Service], mode api.AssignIPs, log *slog.Logger) error {
	log = log.With("part", "loadbalancer")
	r := &run{store: store, alloc: alloc.New(store, alloc.Options{Log: log}), api: k, services: services, mode: mode, log: log}
	config := loop.Config{Kinds: []string{"IPPool", "IPAMBlock"}, Sources: []loop.Source{r.services}, Gather: gather, Log: log}
	return loop.Run(ctx, store, config, r.decide)
}

type run struct {
	store    *loop.Store
	alloc    *alloc.Allocator
	api      Kubernetes
	services loop.Table[assign.Service]
	mode     api.AssignIPs
	log      *slog.Logger
}

// held is an address that was given out under a handle.
type held struct {
	addr            netip.Addr
	namespace, name string // of the service, as far as is stored
}

func (r *run) decide(ctx context.Context, all loop.Objects) (time.Duration, error) {
	pools := slices.Collect(loop.Of[*api.IPPool](all))
	has := r.held(all)
	var errs []error
	for _, s := range sorted(r.services.All()) {
		if err := r.serve(ctx, s, has[s.Handle()], pools); err != nil {
			errs = append(errs, fmt.Errorf("service %s/%s: %w", s.Namespace, s.Name, err))
		}
		delete(has, s.Handle())
	}
	for _, handle := range slices.Sorted(maps.Keys(has)) {
		if err := r.orphan(ctx, handle, has[handle]); err != nil {
			errs = append(errs, fmt.Errorf("addresses of a service that is gone, handle %s: %w", handle, err))
		}
	}
	return 0, errors.Join(errs...)
}

func sorted(all map[string]*assign.Service) (list []*assign.Service) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, all[name])
	}
	return list
}

// held finds the addresses of services, by handle.
func (r *run) held(all loop.Objects) map[string][]held {
	out := map[string][]held{}
	for o := range loop.Of[*api.IPAMBlock](all) {
		if o.Spec.Deleted {
			continue
		}
		b, err := block.Of(o.DeepCopy())
		if err != nil {
			r.log.Warn("leaving out a block", "block", o.Name, "error", err)
			continue
		}
		for a := range b.All() {
			if !a.Cooling() && strings.HasPrefix(a.Handle, "lb-") && a.Owner[api.OwnerNode] == "" {
				out[a.Handle] = append(out[a.Handle], held{a.Addr, a.Owner[api.OwnerNamespace], a.Owner[api.OwnerService]})
			}
		}
	}
	return out
}

// serve brings one service to what it asks for.
func (r *run) serve(ctx context.Context, s *assign.Service, has []held, pools []*api.IPPool) error {
	var addrs []netip.Addr
	for _, h := range has {
		addrs = append(addrs, h.addr)
	}
	step := assign.Decide(s, addrs, pools, r.mode)
	if !step.Nothing() { // once more, by what is stored now: blocks are watched apart from services
		fresh, err := r.alloc.ByHandle(ctx, s.Handle())
		if err != nil {
			return err
		}
		addrs = nil
		for _, p := range fresh {
			addrs = append(addrs, p.Addr())
		}
		step = assign.Decide(s, addrs, pools, r.mode)
	}
	got, err := r.take(ctx, s, step)
	wrong := errors.Join(step.Wrong, err)
	if err := r.api.ShowService(ctx, s, step.Ingress(s.Ingress, got, s.Families), wrong); err != nil {
		return errors.Join(wrong, err)
	}
	if err != nil { // what it has it keeps until it gets another
		return err
	}
	return errors.Join(wrong, r.release(ctx, s.Handle(), step.Return))
}

// take takes addresses for a service, as many as it can get.
func (r *run) take(ctx context.Context, s *assign.Service, step assign.Step) (got []netip.Addr, err error) {
	attributes := map[string]string{
		api.OwnerService: s.Name, api.OwnerNamespace: s.Namespace, api.OwnerTimestamp: time.Now().UTC().Round(0).String(),
	}
	var errs []error
	for _, a := range step.Take {
		err := r.alloc.AssignIP(ctx, alloc.Specific{Addr: a, Handle: s.Handle(), Attributes: attributes, Use: api.UseLoadBalancer})
		if err == nil {
			got = append(got, a)
		}
		errs = append(errs, err)
	}
	for _, any := range step.Any {
		given, err := r.alloc.AutoAssign(ctx, alloc.Request{
			Family: any.Family, Count: 1, Handle: s.Handle(), Attributes: attributes, Use: api.UseLoadBalancer, Pools: any.Pools,
		})
		if err == nil {
			err = given.Shortfall()
		}
		for _, p := range given.Addrs {
			got = append(got, p.Addr())
		}
		errs = append(errs, err)
	}
	for _, a := range got {
		r.log.Info("gave an address to a service", "service", s.Namespace+"/"+s.Name, "address", a)
	}
	return got, errors.Join(errs...)
}

func (r *run) release(ctx context.Context, handle string, addrs []netip.Addr) error {
	var requests []block.Release
	for _, a := range addrs {
		requests = append(requests, block.Release{Addr: a, Handle: handle})
	}
	_, err := r.alloc.Release(ctx, requests...)
	if err == nil && len(addrs) > 0 {
		r.log.Info("took back addresses of a service", "handle", handle, "addresses", addrs)
	}
	return err
}

// orphan takes back what a service had that is gone. The services are watched apart from blocks, so it is looked for once more.
func (r *run) orphan(ctx context.Context, handle string, has []held) error {
	if namespace, name := has[0].namespace, has[0].name; namespace != "" && name != "" {
		s, err := r.api.Service(ctx, namespace, name)
		if err != nil || s != nil && s.Handle() == handle {
			return err
		}
	}
	var addrs []netip.Addr
	for _, h := range has {
		addrs = append(addrs, h.addr)
	}
	return r.release(ctx, handle, addrs)
}
