package server

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/state"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// foresight is how long an endpoint's policy is waited for before the endpoint is programmed closed.
const foresight = 25 * time.Millisecond

// undoTime bounds taking back a failed call, whose own deadline may be what failed it.
const undoTime = 10 * time.Second

// Add wires a pod.
func (s *Server) Add(ctx context.Context, req *felixv1.AddRequest) (*felixv1.AddResponse, error) {
	e, err := identify(req.GetAttachment(), req.GetArgs())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	unlock, err := s.locks.lock(ctx, e.Interface)
	if err != nil {
		return nil, statusOf(err)
	}
	defer unlock()
	if reasons := s.Agent.Ready(); len(reasons) > 0 {
		return nil, status.Error(codes.Unavailable, strings.Join(reasons, "; "))
	}
	if err := s.Pods.Reach(req.GetNetns()); err != nil { // before anything is taken for it
		return nil, status.Error(codes.NotFound, err.Error())
	}

	cfg := req.GetConfig()
	if err := s.settle(ctx, &e, cfg); err != nil {
		return nil, statusOf(err)
	}
	e.Netns = req.GetNetns()
	if e.MTU == 0 {
		e.AutoMTU = true
		if e.MTU, err = s.Agent.PodMTU(ctx); err != nil {
			return nil, statusOf(err)
		}
	}
	if e, err = s.wire(ctx, e, req); err != nil {
		s.Log.Error("ADD failed", "endpoint", e.ID, "container", e.ContainerID, "error", err)
		return nil, statusOf(err)
	}
	closed, err := s.awaitPolicy(ctx, e, cfg)
	if err != nil {
		return nil, err
	}
	s.Log.Info("pod added", "endpoint", e.ID, "container", e.ContainerID, "interface", e.Interface, "addresses", e.Addresses, "closed", closed)
	return &felixv1.AddResponse{
		HostInterface: e.Interface, Mac: e.MAC, Mtu: uint32(e.MTU), Addresses: bytesOf(e.Addresses), Closed: closed,
	}, nil
}

// settle takes what the endpoint is to be from the configuration and from what typha says that the pod asks for.
func (s *Server) settle(ctx context.Context, e *state.Endpoint, cfg *felixv1.NetworkConfig) error {
	asked, err := s.Agent.Asked(ctx, *e)
	if err != nil {
		return err
	}
	if err := override(cfg, asked); err != nil {
		return err
	}
	e.MTU, e.Forwarding, e.Labels, e.Queues = int(cfg.GetMtu()), cfg.GetAllowIpForwarding(), cfg.GetLabels(), int(cfg.GetNumQueues())
	if e.Pod == "" || !cfg.GetKubernetesPolicy() {
		e.Profiles = []string{e.Network} // spec §6.2: without policy.type the profile is named after the network
	}
	if e.Routes, err = prefixes("route", cfg.GetRoutes()); err != nil {
		return err
	}
	if e.AllowedSources, err = prefixes("source", cfg.GetAllowedSourcePrefixes()); err != nil {
		return err
	}
	if e.Floating, err = addressesOf(cfg.GetFloating()); err != nil {
		return err
	}
	if e.MAC, err = macOf(cfg.GetMac()); err != nil {
		return err
	}
	e.QoS = qosOf(cfg)
	return nil
}

// wire takes the steps of an endpoint's life up to the routes; a failure takes them all back.
func (s *Server) wire(ctx context.Context, e state.Endpoint, req *felixv1.AddRequest) (_ state.Endpoint, err error) {
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return e, err
	}
	podInterface := req.GetAttachment().GetInterface()
	before, exists := local[e.Interface]
	switch {
	case exists && before.ContainerID == e.ContainerID && before.ID == e.ID:
		e.Addresses, e.MAC = before.Addresses, before.MAC // the same call again: same outcome
	case exists && (before.ContainerID == e.ContainerID || before.ID.Workload != e.ID.Workload):
		return e, status.Errorf(codes.InvalidArgument, "interface %s is that of endpoint %s already; a pod has one interface in a network, so delete that first",
			before.Interface, before.ID)
	case exists:
		// A new sandbox of the same pod, before the DEL of the old one: the old one gives way.
		if err := s.unwire(ctx, before, before.ID.Endpoint); err != nil {
			return e, err
		}
		exists = false
	}

	var steps undo
	defer func() {
		if err != nil {
			after, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
			defer cancel()
			if undone := steps.run(after); undone != nil {
				err = errors.Join(err, undone)
			}
		}
	}()
	name := recordName(e)
	sure := func() error { return nil }
	if !exists {
		if sure, err = s.assign(ctx, &e, req.GetConfig(), &steps); err != nil {
			return e, err
		}
		if err := s.Agent.Serves(ctx, e.Addresses, e.Floating); err != nil {
			return e, err
		}
		// Typha answers with the endpoint's policy, and the disk takes its address, while its record is written and its interface is made.
		// A felix that ends now, or its host, is followed by one that does not report the endpoint.
		steps.push(func(ctx context.Context) error { return s.Agent.DeleteLocal(ctx, e.Interface) })
		s.Agent.Expect(ctx, e)
		steps.push(func(context.Context) error { return s.Records.Delete(name) })
	}
	// Before anything is in the kernel: a crash must find it.
	if err := s.Records.Save(name, e); err != nil {
		return e, err
	}
	if err := s.Pods.Wire(ctx, e, podInterface); err != nil {
		return e, err
	}
	if !exists {
		steps.push(func(ctx context.Context) error { return s.Pods.Unwire(ctx, e, podInterface) })
		steps.push(func(ctx context.Context) error { return s.Agent.DeleteLocal(ctx, e.Interface) })
		if err := sure(); err != nil {
			return e, err
		}
		// As a rule its policy comes about now: then its rules are written once, and not closed before.
		soon, cancel := context.WithTimeout(ctx, foresight)
		s.Agent.Foreseen(soon, e)
		cancel()
	}
	return e, s.Agent.SetLocal(ctx, e)
}

// assign gets the endpoint's addresses: those that another IPAM plugin gave, or felix's own, which are to be relied on when sure has
// returned.
func (s *Server) assign(ctx context.Context, e *state.Endpoint, cfg *felixv1.NetworkConfig, steps *undo) (sure func() error, err error) {
	if given := cfg.GetAddresses(); len(given) > 0 {
		e.Addresses, err = addressesOf(given)
		return func() error { return nil }, err
	}
	wanted, err := wants(*e, cfg)
	if err != nil {
		return nil, err
	}
	for i := range wanted {
		wanted[i].Attributes = reported(*e)
	}
	s.Releases.Clear(ctx, e.Handle()) // of an ADD that had no answer, as felix ended
	if err := s.Releases.Cancel(ctx, e.Handle()); err != nil {
		return nil, err
	}
	// Before it is asked for: an answer that got lost leaves an address assigned too.
	steps.push(func(context.Context) error { return s.Releases.Add(e.Handle()) })
	e.Addresses, sure, err = s.assignAll(ctx, wanted)
	return sure, err
}

// assignAll asks for each of what is wanted under one handle.
func (s *Server) assignAll(ctx context.Context, wanted []Want) (out []netip.Addr, sure func() error, err error) {
	var all []func() error
	for _, want := range wanted {
		addrs, sure, err := s.IPAM.Assign(ctx, want)
		if err != nil {
			return nil, nil, err
		}
		out, all = append(out, addrs...), append(all, sure)
	}
	return out, func() error {
		var errs []error
		for _, sure := range all {
			errs = append(errs, sure())
		}
		return errors.Join(errs...)
	}, nil
}

// awaitPolicy waits for the endpoint to open. Whether a pod whose policy stays unknown starts closed is the
// configuration's choice.
func (s *Server) awaitPolicy(ctx context.Context, e state.Endpoint, cfg *felixv1.NetworkConfig) (closed bool, err error) {
	wait := defaultPolicyWait
	if d := cfg.GetPolicyWait(); d != nil {
		wait = d.AsDuration()
	}
	patient, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	missing := s.Agent.WaitOpen(patient, e.Interface)
	switch {
	case missing == nil:
		return false, nil
	case cfg.GetRequirePolicy():
		err := s.unwire(context.WithoutCancel(ctx), e, e.ID.Endpoint)
		return false, status.Error(codes.Aborted, errors.Join(missing, err).Error())
	}
	s.Log.Warn("pod starts closed", "endpoint", e.ID, "interface", e.Interface, "because", missing)
	return true, nil
}

// Delete unwires a pod. It succeeds when the node is clean, whatever typha says.
func (s *Server) Delete(ctx context.Context, req *felixv1.DeleteRequest) (*felixv1.DeleteResponse, error) {
	e, err := identify(req.GetAttachment(), req.GetArgs())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	unlock, err := s.locks.lock(ctx, e.Interface)
	if err != nil {
		return nil, statusOf(err)
	}
	defer unlock()
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	known, ok := local[e.Interface]
	switch {
	case !ok: // unknown, or an earlier DEL did not get to the end
		if err := s.Pods.Unwire(ctx, e, req.GetAttachment().GetInterface()); err != nil {
			return nil, statusOf(err)
		}
		if !s.release(e) {
			return &felixv1.DeleteResponse{}, nil
		}
		return &felixv1.DeleteResponse{}, statusOf(s.Records.Delete(recordName(e)))
	case known.ContainerID != e.ContainerID: // a late DEL of a sandbox whose successor has the interface
		s.release(e)
		return &felixv1.DeleteResponse{}, nil
	case known.ID != e.ID:
		return &felixv1.DeleteResponse{}, nil // of an ADD that was refused, since the pod has its interface; so has the handle
	}
	if err := s.unwire(ctx, known, req.GetAttachment().GetInterface()); err != nil {
		s.Log.Error("DEL failed", "endpoint", e.ID, "container", e.ContainerID, "error", err)
		return nil, statusOf(err)
	}
	s.Log.Info("pod deleted", "endpoint", known.ID, "container", known.ContainerID, "interface", known.Interface)
	return &felixv1.DeleteResponse{}, nil
}

// unwire takes an endpoint out: route and rules at once, since an interface without rules is closed; then the interface, the
// address, and the record last. A disk that takes no more writes must not keep pods from ending: a restart settles what has
// no interface any more.
func (s *Server) unwire(ctx context.Context, e state.Endpoint, podInterface string) error {
	e.Leaving = true
	if err := s.Records.Save(recordName(e), e); err != nil {
		s.Log.Warn("an endpoint on its way out is not recorded as such", "endpoint", e.ID, "error", err)
	}
	if err := s.Agent.DeleteLocal(ctx, e.Interface); err != nil {
		return err
	}
	if err := s.Pods.Unwire(ctx, e, podInterface); err != nil {
		return err
	}
	s.awaitForgotten(ctx, e)
	if !s.release(e) {
		return nil // the record is what a new felix would know of it by
	}
	return s.Records.Delete(recordName(e))
}

// forgetPatience is how long an endpoint on its way out waits for the end of its connections. A kernel that does not let them end
// must not keep pods from ending.
const forgetPatience = 5 * time.Second

// awaitForgotten waits until nobody who gets an endpoint's addresses next has any of its connections, also if felix ends by then.
func (s *Server) awaitForgotten(ctx context.Context, e state.Endpoint) {
	ctx, cancel := context.WithTimeout(ctx, forgetPatience)
	defer cancel()
	if err := s.Agent.Forgotten(ctx, e.Addresses); err != nil {
		s.Log.Warn("an endpoint is gone before its connections", "endpoint", e.ID, "error", err)
	}
}

// release ends the use of an endpoint's addresses. It tells whether that is on the disk; a disk that takes no writes does
// not keep a pod from ending.
func (s *Server) release(e state.Endpoint) bool {
	err := s.Releases.Add(e.Handle())
	if err != nil {
		s.Log.Warn("should felix end now, it is forgotten that addresses are to be freed", "endpoint", e.ID, "container", e.ContainerID, "error", err)
	}
	return err == nil
}

// Check compares a wired pod with the result of its Add.
func (s *Server) Check(ctx context.Context, req *felixv1.CheckRequest) (*felixv1.CheckResponse, error) {
	at := req.GetAttachment()
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	for _, e := range local {
		if e.ContainerID != at.GetContainerId() || e.ID.Endpoint != at.GetInterface() {
			continue
		}
		if want := bytesOf(e.Addresses); !slices.EqualFunc(want, req.GetAddresses(), slices.Equal[[]byte]) {
			return nil, status.Errorf(codes.FailedPrecondition, "endpoint %s has addresses %v, the result of ADD had others", e.ID, e.Addresses)
		}
		if req.GetMac() != "" && e.MAC != req.GetMac() {
			return nil, status.Errorf(codes.FailedPrecondition, "endpoint %s has MAC %s, the result of ADD had %s", e.ID, e.MAC, req.GetMac())
		}
		e.Netns = req.GetNetns()
		if err := errors.Join(s.Pods.Check(ctx, e, at.GetInterface()), s.Agent.Verify(ctx, e)); err != nil {
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		return &felixv1.CheckResponse{}, nil
	}
	return nil, status.Errorf(codes.FailedPrecondition, "container %s has no interface %s here", at.GetContainerId(), at.GetInterface())
}

// Gc removes every endpoint of the network that is not listed.
func (s *Server) Gc(ctx context.Context, req *felixv1.GcRequest) (*felixv1.GcResponse, error) {
	local, err := s.Agent.Local(ctx)
	if err != nil {
		return nil, statusOf(err)
	}
	valid := map[string]bool{}
	for _, at := range req.GetValid() {
		valid[at.GetContainerId()+" "+at.GetInterface()] = true
	}
	resp := &felixv1.GcResponse{}
	var errs []error
	for _, e := range local {
		if e.Network != req.GetNetwork() || valid[e.ContainerID+" "+e.ID.Endpoint] {
			continue
		}
		at := &felixv1.Attachment{Network: e.Network, ContainerId: e.ContainerID, Interface: e.ID.Endpoint}
		_, err := s.Delete(ctx, &felixv1.DeleteRequest{Attachment: at, Netns: e.Netns, Args: argsOf(e)})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		resp.Removed = append(resp.Removed, at)
	}
	return resp, statusOf(errors.Join(errs...))
}

// argsOf are the CNI_ARGS that identify an endpoint again.
func argsOf(e state.Endpoint) map[string]string {
	if e.Pod == "" {
		return nil
	}
	return map[string]string{argNamespace: e.Namespace, argPod: e.Pod, argUID: e.UID}
}

func recordName(e state.Endpoint) string { return e.Interface }

func bytesOf(addrs []netip.Addr) [][]byte {
	out := make([][]byte, len(addrs))
	for i, a := range addrs {
		out[i] = a.AsSlice()
	}
	return out
}
