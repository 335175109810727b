package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/ipam/block"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/conditions"
	"github.com/muslin-net/muslin/typha/wire"
)

// maxReserve bounds what one call may reserve of a family.
const maxReserve = 256

// ipamService hands out addresses to the calling node.
type ipamService struct {
	typhav1.UnimplementedIpamServiceServer
	*Server
}

// Reserve takes addresses, all that is asked for or none.
func (s ipamService) Reserve(ctx context.Context, m *typhav1.ReserveRequest) (*typhav1.ReserveResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.unlocked(); err != nil {
		return nil, err
	}
	handle, attributes := m.GetOwner().GetHandle(), ownerAttributes(node, m.GetOwner())
	warm := m.GetOwner() == nil
	if warm {
		if err := s.checkEpoch(ctx, node, m.GetEpoch()); err != nil {
			return nil, err
		}
		handle, attributes[api.OwnerType] = warmHandle(node, m.GetEpoch()), api.TypeWarmPool
	}
	switch {
	case !warm && badOwner(m.GetOwner()) != nil:
		return nil, badOwner(m.GetOwner())
	case m.GetCount4() > maxReserve || m.GetCount6() > maxReserve:
		return nil, status.Errorf(codes.InvalidArgument, "at most %d addresses of a family are given at a time", maxReserve)
	}
	var found []allocation
	if len(m.GetAddress()) > 0 {
		found, err = s.reserveOne(ctx, node, handle, attributes, m.GetAddress())
	} else {
		found, err = s.reserveAny(ctx, node, handle, attributes, m)
	}
	if named := len(m.GetAddress()) + len(m.GetPools4()) + len(m.GetPools6()); named > 0 && errors.Is(err, alloc.ErrNoPool) {
		code := codes.InvalidArgument // what was named is not to be had
		if warm {
			code = codes.ResourceExhausted // of which a pod that asks is told, and the node has none meanwhile
		}
		return nil, refuse(refusedInvalid, code, "%v", err)
	}
	if err != nil {
		return nil, allocError(err)
	}
	answer := &typhav1.ReserveResponse{}
	for _, f := range found {
		if warm && f.affinity != string(api.AffinityHost)+":"+node {
			s.undoReserve(ctx, handle, found)
			return nil, status.Errorf(codes.ResourceExhausted,
				"no address is left in the node's own blocks of pool %s; warm addresses are never taken from other nodes' blocks", f.pool)
		}
		answer.Reservations = append(answer.Reservations, &typhav1.Reservation{
			Address: f.Addr.AsSlice(), Pool: f.pool, Block: wire.EncodePrefix(f.block), Sequence: f.Sequence,
		})
	}
	if warm { // an epoch that ended meanwhile may have been tidied up before these were there
		if err := s.checkEpoch(ctx, node, m.GetEpoch()); err != nil {
			s.undoReserve(ctx, handle, found)
			return nil, err
		}
	}
	return answer, nil
}

// maxHandle is how long a handle may be; those of pods have a network's name and some 64 characters.
const maxHandle = 512

// badOwner says why an owner cannot have addresses; nil if it can. Handles that typha gives itself are nobody's to use: by them it finds
// the reserve and the tunnel addresses of other nodes.
func badOwner(o *typhav1.Owner) error {
	switch handle := o.GetHandle(); {
	case handle == "":
		return status.Error(codes.InvalidArgument, "an owner needs a handle, by which its addresses are released again")
	case len(handle) > maxHandle:
		return status.Errorf(codes.InvalidArgument, "the handle %q has %d bytes; at most %d are taken", shortened(handle, 64), len(handle), maxHandle)
	case ownHandle.MatchString(handle):
		return status.Errorf(codes.PermissionDenied, "handle %q is one of those that only typha gives; name the owner by its network and container", handle)
	}
	return nil
}

// ownHandle are the handles of nodes' reserves and tunnels (warmHandle, alloc.Tunnel).
var ownHandle = regexp.MustCompile(`^warm-.*-[0-9]+$|^(ipip|vxlan|vxlan-v6|wireguard|wireguard-v6)-tunnel-addr-`)

func (s ipamService) reserveOne(ctx context.Context, node, handle string, attributes map[string]string, raw []byte) ([]allocation, error) {
	a, err := wire.DecodeAddr(raw)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.cfg.Alloc.AssignIP(ctx, alloc.Specific{
		Addr: a, Node: node, Handle: handle, Attributes: attributes, Use: api.UseWorkload, Refuse: s.refuse(node),
	}); err != nil {
		return nil, err
	}
	found, err := s.lookup(ctx, []netip.Addr{a})
	f := found[a]
	if err == nil && !f.block.IsValid() {
		f.Addr = a
		s.undoReserve(ctx, handle, []allocation{f})
		err = status.Errorf(codes.Aborted, "the pool of %s was removed while the address was taken; try again", a)
	}
	return []allocation{f}, err
}

func (s ipamService) reserveAny(ctx context.Context, node, handle string, attributes map[string]string, m *typhav1.ReserveRequest) ([]allocation, error) {
	var requests []alloc.Request
	for _, family := range []struct {
		number int
		count  uint32
		pools  []string
	}{{4, m.GetCount4(), m.GetPools4()}, {6, m.GetCount6(), m.GetPools6()}} {
		if family.count > 0 {
			requests = append(requests, alloc.Request{
				Node: node, Family: family.number, Count: int(family.count), Handle: handle, Attributes: attributes,
				Use: api.UseWorkload, Pools: family.pools, NamespaceLabels: s.namespaceLabels(m.GetNamespace()),
				Refuse: s.refuseFor(node, m),
			})
		}
	}
	if len(requests) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no address is asked for: give counts, or an address")
	}
	pools, err := s.poolFinder(ctx)
	if err != nil {
		return nil, err
	}
	got, err := s.cfg.Alloc.AssignAll(ctx, requests...)
	if err != nil {
		return nil, err
	}
	var out []allocation
	for _, g := range got {
		for _, t := range g.Taken {
			p, _, err := pools.of(ctx, t.Addr)
			if err != nil {
				s.log.Warn("an address is given without the name of its pool", "address", t.Addr, "error", err)
			}
			out = append(out, allocation{Allocation: block.Allocation{Addr: t.Addr, Sequence: t.Sequence}, pool: p.name, block: t.Block, affinity: t.Affinity})
		}
	}
	return out, nil
}

// refuse says of which pools a node gets no addresses for pods, since its kernel cannot carry their packets.
func (s *Server) refuse(node string) func(*api.IPPool) error {
	n := s.cfg.Cache.Snapshot().Node(node)
	if n == nil {
		return nil
	}
	return func(p *api.IPPool) error {
		if lack, is := conditions.Find(p, n); is {
			return lack
		}
		return nil
	}
}

// refuseFor is refuse for a request. A warm address may come to serve a pod of any namespace, and is not to be the last.
func (s *Server) refuseFor(node string, m *typhav1.ReserveRequest) func(*api.IPPool) error {
	refuse := s.refuse(node)
	if m.GetOwner() != nil {
		return refuse
	}
	named := len(m.GetPools4()) > 0 || len(m.GetPools6()) > 0
	now := s.cfg.Cache.Snapshot()
	full, choosy := s.fullness(), byNamespace(now, now.Node(node))
	return func(p *api.IPPool) error {
		if why := choosy(p); why != "" && !named {
			return errors.New(why)
		}
		if full.short(p) {
			return fmt.Errorf("pool %s is nearly full", p.Name)
		}
		if refuse == nil {
			return nil
		}
		return refuse(p)
	}
}

// undoReserve releases what was just reserved.
func (s ipamService) undoReserve(ctx context.Context, handle string, list []allocation) {
	var back []block.Release
	for _, a := range list {
		back = append(back, block.Release{Addr: a.Addr, Handle: handle})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if _, err := s.cfg.Alloc.Release(ctx, back...); err != nil {
		s.log.Warn("addresses stay reserved", "handle", handle, "addresses", len(list), "error", err)
	}
}

// namespaceLabels are the labels of a namespace, as its profile carries them.
func (s *Server) namespaceLabels(namespace string) map[string]string {
	const prefix = "pcns."
	p, ok := s.cfg.Cache.Snapshot().Get(api.Key{Kind: "Profile", Name: "kns." + namespace}).(*api.Profile)
	if !ok {
		return nil
	}
	labels := map[string]string{}
	for k, v := range p.Spec.LabelsToApply {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			labels[name] = v
		}
	}
	return labels
}

// ownerAttributes are what is stored beside an address. Node and time are typha's to say.
func ownerAttributes(node string, o *typhav1.Owner) map[string]string {
	out := maps.Clone(o.GetAttributes())
	if out == nil {
		out = map[string]string{}
	}
	out[api.OwnerNode] = node
	out[api.OwnerTimestamp] = time.Now().UTC().Round(0).String() // Round drops the monotonic reading, which String would print
	return out
}

// Settle gives warm addresses to their owners.
func (s ipamService) Settle(ctx context.Context, m *typhav1.SettleRequest) (*typhav1.SettleResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkEpoch(ctx, node, m.GetEpoch()); err != nil {
		return nil, err
	}
	transfers, err := transfersOf(node, m.GetSettlements())
	if err != nil {
		return nil, err
	}
	refused, err := s.cfg.Alloc.ReassignAll(ctx, warmHandle(node, m.GetEpoch()), transfers...)
	if err != nil {
		return nil, allocError(err)
	}
	answer := &typhav1.SettleResponse{}
	for _, t := range transfers {
		if reason := refused[t.Addr]; reason != nil {
			s.refusals.note(refusedAddress, caller(ctx), typhav1.IpamService_Settle_FullMethodName, reason)
			answer.Refused = append(answer.Refused, &typhav1.RefusedAddress{Address: t.Addr.AsSlice(), Reason: reason.Error()})
		}
	}
	return answer, nil
}

// transfersOf reads settlements.
func transfersOf(node string, list []*typhav1.Settlement) ([]alloc.Transfer, error) {
	if err := notMany("settlements", len(list)); err != nil {
		return nil, err
	}
	var out []alloc.Transfer
	for _, st := range list {
		a, err := wire.DecodeAddr(st.GetAddress())
		if err != nil || !a.IsValid() || st.GetOwner().GetHandle() == "" {
			return nil, status.Errorf(codes.InvalidArgument, "a settlement needs an address and an owner with a handle (%v)", err)
		}
		if err := badOwner(st.GetOwner()); err != nil {
			return nil, err
		}
		out = append(out, alloc.Transfer{Addr: a, Sequence: st.GetSequence(), To: block.Owner{
			Handle: st.GetOwner().GetHandle(), Attributes: ownerAttributes(node, st.GetOwner()),
		}})
	}
	return out, nil
}

// Release frees addresses of an owner.
func (s ipamService) Release(ctx context.Context, m *typhav1.ReleaseRequest) (*typhav1.ReleaseResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := notMany("addresses", len(m.GetAddresses())); err != nil {
		return nil, err
	}
	if err := notMany("handles", len(m.GetHandles())); err != nil {
		return nil, err
	}
	handles := m.GetHandles()
	if m.GetHandle() != "" {
		handles = append([]string{m.GetHandle()}, handles...)
	}
	var requests []block.Release
	for _, r := range m.GetAddresses() {
		a, err := wire.DecodeAddr(r.GetAddress())
		if err != nil || !a.IsValid() {
			return nil, status.Errorf(codes.InvalidArgument, "an address to release is missing or malformed (%v)", err)
		}
		request := block.Release{Addr: a}
		if r.GetSequence() != 0 {
			request.Sequence = new(r.GetSequence())
		}
		requests = append(requests, request)
	}
	own, err := s.own(ctx, node, requests)
	if err != nil {
		return nil, err
	}
	released, err := s.cfg.Alloc.ReleaseHandles(ctx, func(has block.Allocation, affinity string) error {
		return ownedBy(node, allocation{Allocation: has, affinity: affinity})
	}, handles...)
	if err != nil {
		return nil, allocError(err)
	}
	freed, err := s.release(ctx, own)
	if err != nil {
		return nil, err
	}
	return &typhav1.ReleaseResponse{Released: wire.EncodeAddrs(append(released, freed...)), Handles: uint32(len(m.GetHandles()))}, nil
}

// Return gives back warm addresses. What is not the node's, or not warm any more, is left alone.
func (s ipamService) Return(ctx context.Context, m *typhav1.ReturnRequest) (*typhav1.ReturnResponse, error) {
	node, err := callingNode(ctx)
	if err != nil {
		return nil, err
	}
	if err := notMany("addresses", len(m.GetAddresses())); err != nil {
		return nil, err
	}
	addrs, err := wire.DecodeAddrs(m.GetAddresses())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	found, err := s.lookup(ctx, addrs)
	if err != nil {
		return nil, allocError(err)
	}
	handle := warmHandle(node, m.GetEpoch())
	var requests []block.Release
	for i, a := range addrs {
		if sequences := m.GetSequences(); i < len(sequences) && sequences[i] != found[a].Sequence {
			continue // it was reserved anew since
		}
		switch f, ok := found[a]; {
		case ok && f.Handle == handle && f.node() == node:
			requests = append(requests, block.Release{Addr: a, Handle: handle, Sequence: &f.Sequence})
		case ok && f.node() != node:
			s.refusals.note(refusedAddress, caller(ctx), typhav1.IpamService_Return_FullMethodName, fmt.Errorf("address %s is allocated to node %q", a, f.node()))
		}
	}
	if _, err := s.release(ctx, requests); err != nil {
		return nil, err
	}
	return &typhav1.ReturnResponse{}, nil
}

// notMany bounds a list.
func notMany(what string, n int) error {
	if n > maxList {
		return status.Errorf(codes.InvalidArgument, "%d %s are too many for one call; give at most %d at a time", n, what, maxList)
	}
	return nil
}

// own are those requests to release that are of addresses in use, which all must be the node's.
func (s ipamService) own(ctx context.Context, node string, requests []block.Release) ([]block.Release, error) {
	var addrs []netip.Addr
	for _, r := range requests {
		addrs = append(addrs, r.Addr)
	}
	found, err := s.lookup(ctx, addrs)
	if err != nil {
		return nil, allocError(err)
	}
	var own []block.Release
	for _, r := range requests {
		f, assigned := found[r.Addr]
		if !assigned {
			continue
		}
		if err := ownedBy(node, f); err != nil {
			return nil, err
		}
		own = append(own, r)
	}
	return own, nil
}

// ownedBy refuses what is not the node's.
func ownedBy(node string, a allocation) error {
	if a.node() == node {
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "address %s is allocated to node %q; node %q cannot release it", a.Addr, a.node(), node)
}

// release frees what is the node's own and returns what was freed.
func (s ipamService) release(ctx context.Context, own []block.Release) (freed []netip.Addr, err error) {
	if _, err := s.cfg.Alloc.Release(ctx, own...); err != nil {
		return nil, allocError(err)
	}
	for _, r := range own {
		freed = append(freed, r.Addr)
	}
	return freed, nil
}

// allocation is an address in use with where it lies.
type allocation struct {
	block.Allocation
	pool     string
	block    netip.Prefix
	affinity string // of the block
}

// node is whose the address is: as its attributes say, else the block's owner.
func (a allocation) node() string {
	if n := a.Owner[api.OwnerNode]; n != "" {
		return n
	}
	n, _ := strings.CutPrefix(a.affinity, string(api.AffinityHost)+":")
	return n
}

// lookup reads who has the addresses, each block once; those that nobody has are left out.
func (s *Server) lookup(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]allocation, error) {
	out := map[netip.Addr]allocation{}
	if len(addrs) == 0 {
		return out, nil
	}
	pools, err := s.poolFinder(ctx)
	if err != nil {
		return nil, err
	}
	blocks := map[netip.Prefix]*block.Block{}
	for _, a := range addrs {
		p, ok, err := pools.of(ctx, a)
		if err != nil {
			return nil, err
		}
		cidr := p.blockOf(a)
		b, known := blocks[cidr]
		if ok && !known {
			if b, err = s.readBlock(ctx, cidr); err != nil {
				return nil, err
			}
			blocks[cidr] = b
		}
		if b != nil {
			if has, ok := b.Lookup(a); ok && !has.Cooling() {
				out[a] = allocation{Allocation: has, pool: p.name, block: cidr, affinity: b.Affinity()}
			}
			continue
		}
		// Of a pool that is gone, or was made anew with other blocks.
		has, err := s.cfg.Alloc.Address(ctx, a)
		switch {
		case err == nil:
			out[a] = allocation{Allocation: has, pool: p.name}
		case !errors.Is(err, alloc.ErrNotAssigned) && !errors.Is(err, alloc.ErrCooling):
			return nil, err
		}
	}
	return out, nil
}

// readBlock reads a block from the datastore; nil if there is none.
func (s *Server) readBlock(ctx context.Context, cidr netip.Prefix) (*block.Block, error) {
	o, err := s.cfg.Datastore.Get(ctx, blockKey(cidr))
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := block.Of(o.(*api.IPAMBlock))
	return &b, err
}

// allocError turns an error of the allocator into a status.
func allocError(err error) error {
	switch {
	case status.Code(err) != codes.Unknown:
		return err
	case errors.As(err, new(*block.TakenError)):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.As(err, new(*block.ConflictError)):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, alloc.ErrContention):
		return status.Error(codes.Aborted, err.Error())
	}
	if s := storeError(err); status.Code(s) != codes.Internal {
		return s
	}
	return status.Error(codes.ResourceExhausted, err.Error())
}

// warmHandle is the handle of a node's warm addresses.
func warmHandle(node string, epoch uint64) string { return fmt.Sprintf("warm-%s-%d", node, epoch) }
