package alloc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/ipam/block"
)

// Request asks for any addresses of one family.
type Request struct {
	Node            string
	Family          int // 4 or 6
	Count           int
	Handle          string            // under which the addresses can be released again; empty for none
	Attributes      map[string]string // stored with the addresses; keys are api.OwnerNode and so on
	Use             api.IPPoolUse     // what for; load-balancer addresses belong to no node
	Pools           []string          // names or CIDRs; only these, whatever their selectors say
	NamespaceLabels map[string]string // of the pod's namespace, for pools with a namespaceSelector
	MaxBlocks       int               // that the node may own in the chosen pools; 0 leaves it to the configuration
	// Refuse, if set, says why a pool cannot be used for this request: it is left out, and the reason is the error if no
	// other pool is left.
	Refuse func(*api.IPPool) error
}

// Assignment is what a request got.
type Assignment struct {
	Addrs     []netip.Prefix // each with the prefix length of its block
	Taken     []Taken        // the same addresses, and what was written with them
	Family    int
	Requested int
	Messages  []string // what stood in the way of more
}

// Shortfall is nil if all that was requested was assigned, else an error that tells what is missing and why.
func (a Assignment) Shortfall() error {
	if len(a.Addrs) >= a.Requested {
		return nil
	}
	return errors.New(strings.Join(append([]string{fmt.Sprintf("Assigned %d out of %d requested IPv%d addresses",
		len(a.Addrs), a.Requested, a.Family)}, a.Messages...), "; "))
}

// Taken is an address that was just assigned.
type Taken struct {
	Addr     netip.Addr
	Block    netip.Prefix
	Affinity string // of the block, as it is stored there
	Sequence uint64 // of the allocation
}

func (a *Assignment) add(got []Taken) {
	for _, t := range got {
		a.Addrs = append(a.Addrs, sized(t.Addr, t.Block))
	}
	a.Taken = append(a.Taken, got...)
}

func (a *Assignment) say(format string, args ...any) {
	if m := fmt.Sprintf(format, args...); !slices.Contains(a.Messages, m) {
		a.Messages = append(a.Messages, m)
	}
}

// errNoFreeBlock says that each position of the pools has a block that cannot be had.
var errNoFreeBlock = errors.New("no free block")

// errNoNewBlocks says that the configuration forbids to take a further block.
var errNoNewBlocks = errors.New("failed to find or claim a block: the node's own blocks are full and autoAllocateBlocks is false; set it, or release addresses")

// AutoAssign assigns addresses from the node's own blocks, from blocks that it claims when those are full, and at last
// from any block. It may return fewer addresses than requested without an error; see Shortfall. With an error, what was
// assigned before it is in the Assignment too and stays assigned: release it by handle.
func (a *Allocator) AutoAssign(ctx context.Context, r Request) (Assignment, error) {
	got, err := a.fromKnown(ctx, r)
	if err != nil || r.Count > 0 && len(got.Addrs) == r.Count {
		return got, err
	}
	s, err := a.prepare(ctx, r, false)
	if err != nil {
		return got, err
	}
	s.got.Addrs, s.got.Taken = got.Addrs, got.Taken
	err = s.fromOwnBlocks(ctx)
	if err == nil && s.missing() > 0 && !s.cfg.StrictAffinity {
		err = s.borrow(ctx)
	}
	if s.missing() > 0 {
		s.explain(ctx)
	}
	if errors.Is(err, ErrBlockLimit) || errors.Is(err, errNoNewBlocks) {
		err = fmt.Errorf("%w; %s", err, strings.Join(s.got.Messages, "; "))
	}
	a.log.Debug("assigned addresses", "node", r.Node, "handle", r.Handle, "requested", r.Count, "addresses", s.got.Addrs)
	return s.got, err
}

// AssignAll assigns exactly what the requests ask for, or nothing: if one of them cannot be met in full, what was
// assigned for the others is released again.
func (a *Allocator) AssignAll(ctx context.Context, requests ...Request) ([]Assignment, error) {
	var done []Assignment
	for _, r := range requests {
		got, err := a.AutoAssign(ctx, r)
		if err == nil {
			err = got.Shortfall()
		}
		if done = append(done, got); err != nil {
			return nil, errors.Join(err, a.undo(ctx, r.Handle, done))
		}
	}
	return done, nil
}

// undo releases what was just assigned.
func (a *Allocator) undo(ctx context.Context, handle string, done []Assignment) error {
	ctx, cancel := forCleanup(ctx)
	defer cancel()
	var back []block.Release
	for _, d := range done {
		for _, p := range d.Addrs {
			back = append(back, block.Release{Addr: p.Addr(), Handle: handle})
		}
	}
	if _, err := a.Release(ctx, back...); err != nil {
		return fmt.Errorf("release what was assigned: %w", err)
	}
	return nil
}

// search is the state of one AutoAssign.
type search struct {
	op
	Request
	who      owner
	what     block.Owner
	reserved block.Reserved
	choice                        // of pools for the request
	known    bool                 // by what is known: a block is neither claimed nor given up
	own      []*api.BlockAffinity // of the owner, inside these pools, not tried yet
	owned    int                  // how many blocks the owner has in these pools
	limit    int                  // how many it may have
	got      Assignment
}

func (s *search) missing() int { return s.Count - len(s.got.Addrs) }

// prepare does all that comes before the first address: configuration, pools and the node's own blocks.
func (a *Allocator) prepare(ctx context.Context, r Request, known bool) (*search, error) {
	switch {
	case r.Use == "":
		return nil, errors.New("must specify the intended use when assigning an IP")
	case r.Family != 4 && r.Family != 6:
		return nil, fmt.Errorf("no such IP family: %d; ask for 4 or 6", r.Family)
	case r.Use == api.UseLoadBalancer:
		r.Node = api.VirtualLoadBalancer
	case r.Node == "":
		return nil, errors.New("must specify the node when assigning an IP")
	}
	o, err := a.begin(ctx)
	if err != nil {
		return nil, err
	}
	s := &search{op: o, Request: r, known: known, who: hostOwner(r.Node), what: block.Owner{Handle: block.CleanHandle(r.Handle), Attributes: r.Attributes}}
	s.got = Assignment{Family: r.Family, Requested: r.Count}
	if s.reserved, err = a.reserved(ctx); err != nil {
		return nil, err
	}
	var labels map[string]string
	if r.Use == api.UseLoadBalancer {
		s.who.kind = api.AffinityVirtual
	} else if labels, err = a.nodeLabels(ctx, r.Node); err != nil {
		return nil, err
	}
	all, err := a.pools(ctx)
	if err != nil {
		return nil, err
	}
	if s.choice, err = choose(all, r, labels); err != nil {
		return nil, err
	}
	mine, err := a.affinities(ctx, s.who)
	if err != nil {
		return nil, err
	}
	s.sort(ctx, mine, enabled(all), labels)
	s.limit = limit(r.MaxBlocks, int(o.cfg.MaxBlocksPerHost))
	return s, nil
}

// sort keeps those of the owner's affinities that are inside the chosen pools. Others are given up if their pool does
// not select the node any more and their block is empty.
func (s *search) sort(ctx context.Context, mine []*api.BlockAffinity, fit []pool, labels map[string]string) {
	for _, aff := range mine {
		cidr, err := netip.ParsePrefix(aff.Spec.CIDR)
		if err != nil || family(cidr.Addr()) != s.Family || aff.Spec.Deleted {
			continue
		}
		if _, ok := containing(s.pools, cidr.Addr()); ok {
			s.own = append(s.own, aff)
			continue
		}
		if p, ok := containing(fit, cidr.Addr()); ok && !p.selectsNode(labels) && !s.known {
			if err := s.disown(ctx, s.who, cidr, terms{mustBeEmpty: true}); err != nil {
				s.log.Debug("keeping a block of a pool that does not select the node", "block", cidr, "node", s.Node, "error", err)
			}
		}
	}
	s.owned = len(s.own)
}

// limit is the smaller of those limits that are set.
func limit(request, config int) int {
	switch {
	case request > 0 && config > 0:
		return min(request, config)
	case request > 0:
		return request
	case config > 0:
		return config
	}
	return api.DefaultMaxBlocksPerHost
}

// fromOwnBlocks assigns from the owner's blocks, and claims new ones while they do not suffice.
func (s *search) fromOwnBlocks(ctx context.Context) error {
	for s.missing() > 0 {
		b, err := s.nextBlock(ctx)
		switch {
		case errors.Is(err, errNoFreeBlock):
			if s.cfg.StrictAffinity {
				s.got.say("No more free affine blocks and strict affinity enabled")
			}
			return nil
		case errors.Is(err, ErrBlockLimit):
			s.got.say("Need to allocate an IPAM block but could not - limit of %d blocks reached for this node", s.limit)
			return err
		case err != nil:
			return err
		}
		got, err := s.assign(ctx, b, s.who, s.what, func(b block.Block) ([]netip.Addr, error) {
			return b.Take(s.missing(), s.what, s.reserved), nil
		})
		if s.got.add(got); err != nil {
			if !onlyThisBlock(err) {
				return err
			}
			s.log.Warn("could not assign from a block", "block", b.CIDR(), "node", s.Node, "error", err)
			s.got.say("Failed to assign IPs in block %s: %v", b.CIDR(), err)
		}
	}
	return nil
}

// onlyThisBlock tells whether another block may do better: this one went away, changed its owner or was too busy.
func onlyThisBlock(err error) bool {
	return errors.Is(err, datastore.ErrNotFound) || errors.Is(err, ErrStrictAffinity) || errors.Is(err, ErrContention)
}

// nextBlock returns a block of the owner's that has a free address: one it has, else a new one.
func (s *search) nextBlock(ctx context.Context) (block.Block, error) {
	for len(s.own) > 0 {
		aff := s.own[0]
		s.own = s.own[1:]
		b, err := s.ownBlock(ctx, aff)
		if ctx.Err() != nil {
			return block.Block{}, context.Cause(ctx)
		}
		if err != nil {
			s.log.Warn("cannot use a block, trying the next one", "block", aff.Spec.CIDR, "node", s.Node, "error", err)
			continue
		}
		if b.IPAMBlock != nil && b.Free(s.reserved) > 0 {
			return b, nil
		}
	}
	switch {
	case s.known:
		return block.Block{}, errNoFreeBlock
	case s.owned >= s.limit:
		return block.Block{}, ErrBlockLimit
	}
	if !*s.cfg.AutoAllocateBlocks {
		return block.Block{}, errNoNewBlocks
	}
	b, err := s.newBlock(ctx)
	if err == nil {
		s.owned++
	}
	return b, err
}

// ownBlock returns the block of an affinity, finishing or repairing the claim. It returns the zero Block if there is
// nothing to gain from it.
func (s *search) ownBlock(ctx context.Context, aff *api.BlockAffinity) (b block.Block, err error) {
	cidr, err := netip.ParsePrefix(aff.Spec.CIDR)
	if err != nil || s.reserved.Covers(cidr) {
		return block.Block{}, err
	}
	if s.known && confirmed(aff) {
		if b, ok := s.remembered(cidr); ok && b.Affinity() == s.who.String() {
			return b, nil
		}
	}
	p, _ := containing(s.pools, cidr.Addr())
	err = retry(ctx, fmt.Sprintf("use block %s of %s", cidr, s.who), func() error {
		if aff == nil {
			if aff, err = s.affinity(ctx, s.who, cidr); err != nil {
				return err
			}
		}
		now := aff
		aff = nil // read it again should this fail
		b, err = s.existing(ctx, s.who, now, cidr)
		switch {
		case !errors.Is(err, errNoBlock):
			return err
		case s.known:
			return nil
		}
		// A claim that died before its block was made, maybe long ago, when the pool had another block size.
		all, damaged, err := s.blocks(ctx)
		if err != nil {
			return err
		}
		if cidr.Bits() != p.bits || indexBlocks(all, damaged, p).overlaps(cidr) {
			return s.remove(ctx, now)
		}
		b, err = s.createBlock(ctx, s.who, now, cidr)
		return err
	})
	return b, err
}

// newBlock claims a block that nobody has, or one that another owner does not need.
func (s *search) newBlock(ctx context.Context) (b block.Block, err error) {
	err = retry(ctx, fmt.Sprintf("find a free block for %s", s.who), func() error {
		cidr, err := s.find(ctx)
		if err != nil {
			return err
		}
		b, err = s.claim(ctx, s.who, cidr)
		if errors.Is(err, errTaken) || (err == nil && b.Free(s.reserved) == 0) {
			return fmt.Errorf("%w: block %s was taken first", errMoved, cidr)
		}
		return err
	})
	return b, err
}

// borrow assigns from blocks of whatever owner, without changing whose they are.
func (s *search) borrow(ctx context.Context) error {
	all, _, err := s.blocks(ctx)
	if err != nil {
		return err
	}
	var exhausted []string
	for _, p := range s.pools {
		for _, b := range s.inOrder(all, p) {
			if s.missing() == 0 {
				break
			}
			if b.Free(s.reserved) == 0 {
				continue
			}
			got, err := s.assign(ctx, b, s.who, s.what, func(b block.Block) ([]netip.Addr, error) {
				return b.Take(s.missing(), s.what, s.reserved), nil
			})
			if s.got.add(got); err != nil {
				if !onlyThisBlock(err) {
					return err
				}
				s.log.Warn("could not borrow from a block", "block", b.CIDR(), "node", s.Node, "error", err)
			}
		}
		if s.missing() > 0 {
			exhausted = append(exhausted, p.Spec.CIDR)
		}
	}
	if len(exhausted) > 0 {
		s.got.say("No IPs available in pools: %v", exhausted)
	}
	return nil
}
