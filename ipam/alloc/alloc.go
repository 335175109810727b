// Package alloc gives out and takes back addresses for nodes: it decides which pool and which block, claims blocks for
// nodes, and writes blocks, affinities and handles so that many writers (several of ours, and Calico's own tools) work on
// the same data at once. What happens inside a block is package block's business.
//
// All state is in the datastore. Every write is a compare-and-swap on what was read; a lost race means reading again, at
// most 100 times. Each order of writes is chosen so that a process may die between any two of them:
//
//   - An affinity is written as pending, then the block, then the affinity as confirmed. A confirmed affinity always has
//     its block; whoever meets a pending one finishes the claim or removes it.
//   - A handle is counted up before the block is written, and down after. Its counts may be too high, never too low, so
//     that releasing by handle always finds every address.
//
// The package keeps nothing in memory between calls but handles and blocks as it wrote them last, and starts nothing. It waits for nobody: serialising the requests of
// one node is the caller's choice, not needed for safety.
package alloc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
)

// Datastore is the part of datastore.Client that the allocator uses.
type Datastore interface {
	Get(ctx context.Context, key api.Key) (api.Object, error)
	List(ctx context.Context, kind string, opts datastore.ListOptions) (datastore.List, error)
	datastore.Writer
}

// Options tune an Allocator. The zero value will do.
type Options struct {
	// Known is what the process knows anyway of configuration, pools, reservations and nodes; nil if nothing. See known.go.
	Known Known
	Now   func() time.Time // wall clock; time.Now if nil
	Log   *slog.Logger     // discarded if nil
}

// Allocator gives out addresses. It is safe for concurrent use.
type Allocator struct {
	store
	known   Known
	handles *remembered[*api.IPAMHandle]
	written *remembered[*api.IPAMBlock]
	now     func() time.Time
	log     *slog.Logger
}

// New makes an allocator over a datastore.
func New(client Datastore, opts Options) *Allocator {
	a := &Allocator{
		store: store{client}, known: opts.Known, now: opts.Now, log: opts.Log,
		handles: newRemembered[*api.IPAMHandle](mostHandles), written: newRemembered[*api.IPAMBlock](mostBlocks),
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	return a
}

// What an operation can fail with; test with errors.Is. The text says more.
var (
	// ErrNoPool: no pool is fit for the request.
	ErrNoPool = errors.New("cannot find a qualified ippool")
	// ErrBlockLimit: the node's blocks are full and it may have no more of them.
	ErrBlockLimit = errors.New("cannot allocate new block due to per host block limit")
	// ErrContention: other writers were always faster.
	ErrContention = errors.New("excessive concurrent IPAM requests")
	// ErrStrictAffinity: the address is in a block that the node does not own, and strictAffinity forbids to use it.
	ErrStrictAffinity = errors.New("block affinity does not match the node, and strictAffinity is set")
	// ErrNotEmpty: the block still has addresses in use.
	ErrNotEmpty = errors.New("block is not empty")
	// ErrNotAssigned: nobody has the address.
	ErrNotAssigned = errors.New("is not assigned")
	// ErrCooling: the address was released a short while ago and belongs to nobody.
	ErrCooling = errors.New("is in cooldown")
)

// owner is who can own blocks.
type owner struct {
	kind api.AffinityType
	name string
}

func hostOwner(node string) owner { return owner{api.AffinityHost, node} }

// String is the owner as blocks spell it.
func (o owner) String() string { return string(o.kind) + ":" + o.name }

// op is one operation: an allocator and the configuration as it was when the operation began.
type op struct {
	*Allocator
	cfg api.IPAMConfigurationSpec
}

func (a *Allocator) begin(ctx context.Context) (op, error) {
	cfg, err := a.Configuration(ctx)
	return op{a, cfg}, err
}

// Configuration returns the cluster's IPAMConfiguration, or the defaults if there is none. It never writes one.
func (a *Allocator) Configuration(ctx context.Context) (api.IPAMConfigurationSpec, error) {
	var spec api.IPAMConfigurationSpec
	obj, err := get[*api.IPAMConfiguration](ctx, a.ds, api.Key{Kind: kindConfiguration, Name: "default"})
	switch {
	case err == nil:
		spec = obj.Spec
	case !errors.Is(err, datastore.ErrNotFound):
		return spec, fmt.Errorf("IPAM configuration: %w", err)
	}
	if spec.AutoAllocateBlocks == nil {
		spec.AutoAllocateBlocks = new(true)
	}
	return spec, nil
}

func (o op) cooldown() time.Duration { return time.Duration(o.cfg.IPCooldownSeconds) * time.Second }

// attempts bounds every compare-and-swap loop.
const attempts = 100

// retry runs try until it does not fail with errMoved.
func retry(ctx context.Context, what string, try func() error) error {
	var err error
	for range attempts {
		if err = try(); !errors.Is(err, errMoved) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	// The last error goes in as text: an outer loop must not take it for a race of its own.
	return fmt.Errorf("%w: others changed the data each of %d times while trying to %s; try again later (last: %s)",
		ErrContention, attempts, what, err.Error())
}

// forCleanup is a context with at least 30 s left, for a write that undoes another when the request's own time is up.
func forCleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	const least = 30 * time.Second
	deadline, limited := ctx.Deadline()
	if ctx.Err() != nil || (limited && time.Until(deadline) < least) {
		return context.WithTimeout(context.WithoutCancel(ctx), least)
	}
	return context.WithCancel(ctx)
}

// sized is an address written with the prefix length of its block.
func sized(a netip.Addr, block netip.Prefix) netip.Prefix { return netip.PrefixFrom(a, block.Bits()) }

func family(p netip.Addr) int {
	if p.Is4() {
		return 4
	}
	return 6
}
