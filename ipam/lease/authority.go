package lease

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Authority is typha: it alone writes who has which address. Each call may fail without telling whether it was carried
// out, or will be: a call may take effect long after its caller has given up. Each may be repeated.
type Authority interface {
	// Review tells which epoch is the node's, and if it is the given one what the node has reserved under it.
	Review(ctx context.Context, epoch uint64) (Review, error)
	// Enter gives the node a new epoch in the place of the present one; ErrStale if that is not the present one any more.
	// What earlier epochs reserved is freed, but for the claims, which their handles get.
	Enter(ctx context.Context, present, before uint64, claims []Claim) (Review, error)
	// Reserve takes addresses of a class out of the node's own blocks, as many as asked for or none.
	Reserve(ctx context.Context, epoch uint64, class Class, count int) ([]Reserved, error)
	// Settle gives reserved addresses to their handles. Those that it cannot give are returned, with the reason.
	Settle(ctx context.Context, epoch uint64, claims []Claim) (refused map[netip.Addr]string, err error)
	// Claim takes one address, reserved or not, for its handle. ErrTaken says that another one has it, or nobody may.
	Claim(ctx context.Context, claim Claim) error
	// Return gives reserved addresses back. Those that are not reserved any more are left alone.
	Return(ctx context.Context, epoch uint64, addrs []Reserved) error
	// Free frees all addresses of some handles. One without any is no error. With an error it is not said of which they were freed.
	Free(ctx context.Context, handles ...string) error
}

// What calls of an Authority can fail with, beside not reaching it.
var (
	ErrStale    = errors.New("the epoch is not the node's")
	ErrShort    = errors.New("no address to reserve")
	ErrTaken    = errors.New("the address is another's")
	ErrUnserved = errors.New("this typha knows no warm addresses")
)

// Review is what typha has for a node.
type Review struct {
	Epoch    uint64 // the node's present one; 0: none
	Cooldown time.Duration
	Reserved []Reserved // under the epoch
}

// Reserved is an address that is reserved for the node.
type Reserved struct {
	Addr       netip.Addr
	Sequence   uint64 // of its allocation
	Unfit      string // why no pod should get it; empty: fit
	ByNameOnly string // why only a pod that names its pool should get it; empty: any
}
