package client

import (
	"context"
	"errors"
	"net/netip"
	"time"

	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/wire"
)

// Owner owns addresses.
type Owner struct {
	Handle     string            // "<network>.<container id>" for pods
	Attributes map[string]string // namespace, pod; typha adds node and timestamp
}

// Reserve asks for addresses: Count4 and Count6 of each family, or the one Address.
type Reserve struct {
	Count4, Count6 int
	Pools4, Pools6 []string // names or CIDRs; empty lets the pools' own selectors decide
	Address        netip.Addr
	Owner          *Owner // nil for warm addresses
	Namespace      string // of the pod, for pools with a namespaceSelector
	Epoch          uint64 // of the node's journal, for warm addresses
}

// Reservation is one address given.
type Reservation struct {
	Address  netip.Addr
	Pool     string
	Block    netip.Prefix
	Sequence uint64 // to be given when it is released
}

// Settlement gives one warm address to its owner.
type Settlement struct {
	Address  netip.Addr
	Owner    Owner
	Sequence uint64 // of the reservation; 0 is not compared
}

// WarmAddress is an address that is held for the node.
type WarmAddress struct {
	Address    netip.Addr
	Sequence   uint64 // of the reservation
	Unfit      string // why no pod should get it; empty: fit
	ByNameOnly string // why only a pod that names its pool should; empty: any may
}

// Review is what the node has reserved.
type Review struct {
	Epoch    uint64 // the node's; 0: none
	Cooldown time.Duration
	Warm     []WarmAddress // if the epoch is the one that was asked about
}

// RefusedAddress is an address on which an operation failed, and why.
type RefusedAddress struct {
	Address netip.Addr
	Reason  string
}

// Reserve takes addresses: all that is asked for, or none and an error. ErrExhausted says which pool is short.
func (c *Client) Reserve(ctx context.Context, r Reserve) ([]Reservation, error) {
	request := &typhav1.ReserveRequest{
		Count4: uint32(r.Count4), Count6: uint32(r.Count6), Pools4: r.Pools4, Pools6: r.Pools6,
		Address: r.Address.AsSlice(), Namespace: r.Namespace, Epoch: r.Epoch,
	}
	if r.Owner != nil {
		request.Owner = encodeOwner(*r.Owner)
	}
	var out []Reservation
	err := c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		answer, err := svc.Reserve(ctx, request)
		if err != nil {
			return err
		}
		for _, m := range answer.GetReservations() {
			a, err := wire.DecodeAddr(m.GetAddress())
			if err != nil {
				return err
			}
			block, err := wire.DecodePrefix(m.GetBlock())
			if err != nil {
				return err
			}
			out = append(out, Reservation{Address: a, Pool: m.GetPool(), Block: block, Sequence: m.GetSequence()})
		}
		return nil
	})
	return out, err
}

// Settle gives warm addresses to their owners. It is idempotent. ErrStale says that the epoch is not the node's.
func (c *Client) Settle(ctx context.Context, epoch uint64, list []Settlement) ([]RefusedAddress, error) {
	request := &typhav1.SettleRequest{Epoch: epoch}
	for _, s := range list {
		request.Settlements = append(request.Settlements, encodeSettlement(s))
	}
	var out []RefusedAddress
	err := c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		answer, err := svc.Settle(ctx, request)
		if err != nil {
			return err
		}
		for _, m := range answer.GetRefused() {
			a, err := wire.DecodeAddr(m.GetAddress())
			if err != nil {
				return err
			}
			out = append(out, RefusedAddress{Address: a, Reason: m.GetReason()})
		}
		return nil
	})
	return out, err
}

// ReleaseHandle frees all addresses of a handle and returns them. A handle without addresses is no error.
func (c *Client) ReleaseHandle(ctx context.Context, handle string) ([]netip.Addr, error) {
	return c.release(ctx, &typhav1.ReleaseRequest{Handle: handle})
}

// errSingly is that typha frees the addresses of one handle at a time only.
var errSingly = errors.New("this typha frees one handle at a time")

// ReleaseHandles frees all addresses of several handles, or fails without telling of which it freed them.
func (c *Client) ReleaseHandles(ctx context.Context, handles []string) error {
	return c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		answer, err := svc.Release(ctx, &typhav1.ReleaseRequest{Handles: handles})
		if err == nil && int(answer.GetHandles()) != len(handles) {
			err = errSingly
		}
		return err
	})
}

// Release frees single addresses, each only if its Sequence still is that of its allocation (0 is not compared), and
// returns those that it freed. What is free already is no error.
func (c *Client) Release(ctx context.Context, list []Reservation) ([]netip.Addr, error) {
	request := &typhav1.ReleaseRequest{}
	for _, r := range list {
		request.Addresses = append(request.Addresses, &typhav1.Reservation{Address: r.Address.AsSlice(), Sequence: r.Sequence})
	}
	return c.release(ctx, request)
}

func (c *Client) release(ctx context.Context, request *typhav1.ReleaseRequest) (freed []netip.Addr, err error) {
	err = c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		answer, err := svc.Release(ctx, request)
		if err != nil {
			return err
		}
		freed, err = wire.DecodeAddrs(answer.GetReleased())
		return err
	})
	return freed, err
}

// Return gives back warm addresses, each only if its Sequence still is that of its reservation. What is not the node's is
// ignored.
func (c *Client) Return(ctx context.Context, epoch uint64, list []WarmAddress) error {
	request := &typhav1.ReturnRequest{Epoch: epoch}
	for _, w := range list {
		request.Addresses, request.Sequences = append(request.Addresses, w.Address.AsSlice()), append(request.Sequences, w.Sequence)
	}
	return c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		_, err := svc.Return(ctx, request)
		return err
	})
}

// Review tells which epoch is the node's, and what it has reserved if that is the given one. ErrNotFound says that the node
// is not registered.
func (c *Client) Review(ctx context.Context, epoch uint64) (r Review, err error) {
	err = c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		answer, err := svc.Review(ctx, &typhav1.ReviewRequest{Epoch: epoch})
		if err != nil {
			return err
		}
		r = Review{Epoch: answer.GetEpoch(), Cooldown: time.Duration(answer.GetCooldownSeconds()) * time.Second}
		for _, m := range answer.GetAddresses() {
			a, err := wire.DecodeAddr(m.GetAddress())
			if err != nil {
				return err
			}
			r.Warm = append(r.Warm, WarmAddress{a, m.GetSequence(), m.GetUnfit(), m.GetByNameOnly()})
		}
		return nil
	})
	return r, err
}

// Enter gives the node a new epoch in the place of the present one; ErrStale if that is not the present one any more. All
// that is reserved under earlier ones is freed, but for the claims, which their owners get.
func (c *Client) Enter(ctx context.Context, present, before uint64, claims []Settlement) (r Review, err error) {
	request := &typhav1.EnterRequest{Present: present, Before: before}
	for _, s := range claims {
		request.Claims = append(request.Claims, encodeSettlement(s))
	}
	err = c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		answer, err := svc.Enter(ctx, request)
		if err != nil {
			return err
		}
		r = Review{Epoch: answer.GetEpoch(), Cooldown: time.Duration(answer.GetCooldownSeconds()) * time.Second}
		return nil
	})
	return r, err
}

func encodeSettlement(s Settlement) *typhav1.Settlement {
	return &typhav1.Settlement{Address: s.Address.AsSlice(), Owner: encodeOwner(s.Owner), Sequence: s.Sequence}
}

func encodeOwner(o Owner) *typhav1.Owner {
	return &typhav1.Owner{Handle: o.Handle, Attributes: o.Attributes}
}
