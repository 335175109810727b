package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/ipam/lease"
	"github.com/muslin-net/muslin/typha/client"
)

// Reserve hands out addresses that the node holds ahead, and asks typha for those that it does not hold. It is also the
// queue of handles that are to be freed (server.Releases).
type Reserve struct {
	pool  *lease.Pool
	typha IPAM
	log   *slog.Logger
	asked prometheus.Counter
}

// NewReserve joins the node's own addresses with typha's.
func NewReserve(pool *lease.Pool, typha IPAM, log *slog.Logger) *Reserve {
	return &Reserve{pool: pool, typha: typha, log: log, asked: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "felix_ipam_remote_assigns_total", Help: "Requests for addresses that typha was asked for.",
	})}
}

// refillWait is how long a request waits for the reserve to be filled up, before it asks typha for itself.
const refillWait = time.Second

// Assign gives all that is asked for, or nothing: from the reserve if that can serve the request as a whole, without a
// word to anybody, else from typha. A journal that cannot be written costs the shortcut, not the address.
func (r *Reserve) Assign(ctx context.Context, want server.Want) (_ []netip.Addr, sure func() error, _ error) {
	if addrs, sure := r.lend(ctx, want); len(addrs) > 0 {
		return addrs, sure, nil
	}
	if err := r.pool.Remote(want.Handle); err != nil {
		r.log.Warn("should felix end now, part of an endpoint's addresses are left to garbage collection", "handle", want.Handle, "error", err)
	}
	r.asked.Inc()
	return r.typha.Assign(ctx, want)
}

// lend takes what is asked for from the reserve; none if that does not have it.
func (r *Reserve) lend(ctx context.Context, want server.Want) (_ []netip.Addr, sure func() error) {
	classes := classesOf(want)
	if len(classes) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, refillWait)
	defer cancel()
	for {
		addrs, sure, err := r.pool.Lend(want.Handle, want.Attributes, classes...)
		switch {
		case err != nil:
			r.log.Error("no address can be given without typha", "handle", want.Handle, "error", err)
			return nil, nil
		case len(addrs) > 0:
			slices.SortFunc(addrs, netip.Addr.Compare) // IPv4 first
			return addrs, sure
		case !r.pool.Refill(ctx, classes...):
			return nil, nil
		}
	}
}

// classesOf says which kind of addresses can serve a request; none if only typha can: one that asks for a certain address.
func classesOf(want server.Want) (out []lease.Class) {
	if want.Fixed.IsValid() {
		return nil
	}
	if want.IPv4 {
		out = append(out, lease.ClassOf(4, want.Pools4...))
	}
	if want.IPv6 {
		out = append(out, lease.ClassOf(6, want.Pools6...))
	}
	return out
}

// Release frees the addresses of a handle at typha.
func (r *Reserve) Release(ctx context.Context, handle string) error {
	return r.typha.Release(ctx, handle)
}

// Add ends a handle's use of its addresses. That is done whatever happens; an error tells that it would be forgotten if
// felix ended now.
func (r *Reserve) Add(handle string) error { return r.pool.Free(handle) }

// Clear ends an earlier use of a handle, of which the end was never told.
func (r *Reserve) Clear(ctx context.Context, handle string) {
	if err := r.pool.Clear(ctx, handle); err != nil {
		r.log.Warn("should felix end now, addresses of an earlier attempt are left to garbage collection", "handle", handle, "error", err)
	}
}

// Cancel takes back what Add put off, as the handle is used again.
func (r *Reserve) Cancel(ctx context.Context, handle string) error { return r.pool.Reuse(ctx, handle) }

// Describe tells what is collected.
func (r *Reserve) Describe(out chan<- *prometheus.Desc) {
	r.pool.Describe(out)
	r.asked.Describe(out)
}

// Collect tells how the reserve is doing.
func (r *Reserve) Collect(out chan<- prometheus.Metric) {
	r.pool.Collect(out)
	r.asked.Collect(out)
}

// Authority lets a reserve talk to typha.
type Authority struct{ Typha Warm }

// Warm is what typha does for nodes that hold addresses ahead.
type Warm interface {
	Addresses
	ReleaseHandles(ctx context.Context, handles []string) error
	Review(ctx context.Context, epoch uint64) (client.Review, error)
	Enter(ctx context.Context, present, before uint64, claims []client.Settlement) (client.Review, error)
	Settle(ctx context.Context, epoch uint64, list []client.Settlement) ([]client.RefusedAddress, error)
	Return(ctx context.Context, epoch uint64, list []client.WarmAddress) error
}

// Review implements lease.Authority.
func (a Authority) Review(ctx context.Context, epoch uint64) (lease.Review, error) {
	r, err := a.Typha.Review(ctx, epoch)
	return reviewOf(r), reason(err)
}

// Enter implements lease.Authority.
func (a Authority) Enter(ctx context.Context, present, before uint64, claims []lease.Claim) (lease.Review, error) {
	r, err := a.Typha.Enter(ctx, present, before, settlements(claims))
	return reviewOf(r), reason(err)
}

func reviewOf(r client.Review) lease.Review {
	out := lease.Review{Epoch: r.Epoch, Cooldown: r.Cooldown}
	for _, w := range r.Warm {
		out.Reserved = append(out.Reserved, lease.Reserved{Addr: w.Address, Sequence: w.Sequence, Unfit: w.Unfit, ByNameOnly: w.ByNameOnly})
	}
	return out
}

// Reserve implements lease.Authority.
func (a Authority) Reserve(ctx context.Context, epoch uint64, class lease.Class, n int) ([]lease.Reserved, error) {
	request := client.Reserve{Epoch: epoch}
	if class.Family == 4 {
		request.Count4, request.Pools4 = n, class.Names()
	} else {
		request.Count6, request.Pools6 = n, class.Names()
	}
	given, err := a.Typha.Reserve(ctx, request)
	if errors.Is(err, client.ErrExhausted) {
		err = fmt.Errorf("%w: %w", lease.ErrShort, err)
	}
	var out []lease.Reserved
	for _, g := range given {
		out = append(out, lease.Reserved{Addr: g.Address, Sequence: g.Sequence})
	}
	return out, reason(err)
}

// Settle implements lease.Authority.
func (a Authority) Settle(ctx context.Context, epoch uint64, claims []lease.Claim) (map[netip.Addr]string, error) {
	list, err := a.Typha.Settle(ctx, epoch, settlements(claims))
	refused := map[netip.Addr]string{}
	for _, r := range list {
		refused[r.Address] = r.Reason
	}
	return refused, reason(err)
}

func settlements(claims []lease.Claim) (out []client.Settlement) {
	for _, c := range claims {
		out = append(out, client.Settlement{Address: c.Addr, Sequence: c.Sequence, Owner: client.Owner{Handle: c.Handle, Attributes: c.Attributes}})
	}
	return out
}

// Claim implements lease.Authority.
func (a Authority) Claim(ctx context.Context, c lease.Claim) error {
	_, err := a.Typha.Reserve(ctx, client.Reserve{Address: c.Addr, Owner: &client.Owner{Handle: c.Handle, Attributes: c.Attributes}})
	if errors.Is(err, client.ErrExists) {
		return fmt.Errorf("%w: %w", lease.ErrTaken, err)
	}
	return reason(err)
}

// Return implements lease.Authority.
func (a Authority) Return(ctx context.Context, epoch uint64, addrs []lease.Reserved) error {
	var list []client.WarmAddress
	for _, r := range addrs {
		list = append(list, client.WarmAddress{Address: r.Addr, Sequence: r.Sequence})
	}
	return reason(a.Typha.Return(ctx, epoch, list))
}

// Free implements lease.Authority.
func (a Authority) Free(ctx context.Context, handles ...string) error {
	if len(handles) > 1 {
		return a.Typha.ReleaseHandles(ctx, handles)
	}
	for _, h := range handles {
		if _, err := a.Typha.ReleaseHandle(ctx, h); err != nil && !errors.Is(err, client.ErrNotFound) {
			return err
		}
	}
	return nil
}

// reason says what of an error a reserve has to know.
func reason(err error) error {
	switch {
	case errors.Is(err, client.ErrStale):
		return fmt.Errorf("%w: %w", lease.ErrStale, err)
	case errors.Is(err, client.ErrUnserved):
		return fmt.Errorf("%w: %w", lease.ErrUnserved, err)
	}
	return err
}
