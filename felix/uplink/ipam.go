// Package uplink is what felix asks of typha beside its view: addresses for pods, their release, and the report of what
// runs on the node. What cannot be told now is told when typha is back.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/typha/client"
)

// Addresses hands out and takes back the addresses of the cluster.
type Addresses interface {
	Reserve(ctx context.Context, r client.Reserve) ([]client.Reservation, error)
	ReleaseHandle(ctx context.Context, handle string) ([]netip.Addr, error)
}

// IPAM takes addresses from typha.
type IPAM struct{ Typha Addresses }

// Assign gives all that is asked for, or nothing. Typha's answer is sure.
func (i IPAM) Assign(ctx context.Context, want server.Want) (_ []netip.Addr, sure func() error, _ error) {
	request := client.Reserve{
		Pools4: want.Pools4, Pools6: want.Pools6, Address: want.Fixed, Namespace: want.Namespace,
		Owner: &client.Owner{Handle: want.Handle, Attributes: want.Attributes},
	}
	if !want.Fixed.IsValid() {
		request.Count4, request.Count6 = count(want.IPv4), count(want.IPv6)
	}
	given, err := i.Typha.Reserve(ctx, request)
	if err != nil {
		return nil, nil, wrap("no address", err)
	}
	out := make([]netip.Addr, len(given))
	for n, r := range given {
		out[n] = r.Address
	}
	slices.SortFunc(out, netip.Addr.Compare) // IPv4 first
	return out, func() error { return nil }, nil
}

// Release frees what a handle holds; a handle without addresses is no error.
func (i IPAM) Release(ctx context.Context, handle string) error {
	_, err := i.Typha.ReleaseHandle(ctx, handle)
	if errors.Is(err, client.ErrNotFound) {
		return nil
	}
	return wrap("release of "+handle, err)
}

func count(wanted bool) int {
	if wanted {
		return 1
	}
	return 0
}

// wrap keeps what a caller can do about an error: try again, ask for something else, or look at the pools.
func wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrTimeout):
		return status.Error(codes.Aborted, fmt.Sprintf("%s: %v", what, err)) // not Unavailable: felix itself is there
	case errors.Is(err, client.ErrInvalid), errors.Is(err, client.ErrExists):
		return status.Error(codes.InvalidArgument, fmt.Sprintf("%s: %v", what, err))
	}
	return fmt.Errorf("%s: %w", what, err)
}
