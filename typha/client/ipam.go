package client

import (
	"context"
	"net/netip"

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
	Address netip.Addr
	Owner   Owner
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
		request.Settlements = append(request.Settlements, &typhav1.Settlement{Address: s.Address.AsSlice(), Owner: encodeOwner(s.Owner)})
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

// Return gives back warm addresses. What is not the node's is ignored.
func (c *Client) Return(ctx context.Context, epoch uint64, list []netip.Addr) error {
	return c.ipam(ctx, func(ctx context.Context, svc typhav1.IpamServiceClient) error {
		_, err := svc.Return(ctx, &typhav1.ReturnRequest{Epoch: epoch, Addresses: wire.EncodeAddrs(list)})
		return err
	})
}

func encodeOwner(o Owner) *typhav1.Owner {
	return &typhav1.Owner{Handle: o.Handle, Attributes: o.Attributes}
}
