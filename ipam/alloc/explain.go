package alloc

import (
	"context"
	"fmt"
	"math/big"
	"strings"

	"github.com/muslin-net/muslin/ipam/block"
)

// explain says, in the messages of what was assigned, which pools were tried and what is free in them, and why the others
// were passed over.
func (s *search) explain(ctx context.Context) {
	blocks, _, err := s.blocks(ctx)
	if err != nil {
		s.log.Debug("what is free in the pools is not known", "error", err)
		return
	}
	var tried []string
	for _, u := range usageOf(s.pools, blocks, s.reserved) {
		if u.Name != "" {
			tried = append(tried, fmt.Sprintf("%s (%s): %s", u.Name, u.CIDR, u.state(s.who.String())))
		}
	}
	s.got.say("Pools tried: %s", strings.Join(tried, ", "))
	if why := s.reasons(); why != "" {
		s.got.say("Pools passed over: %s", why)
	}
}

// state says how full a pool is, for an owner of blocks that got nothing out of it.
func (u PoolUsage) state(owner string) string {
	elsewhere := new(big.Int)
	for _, b := range u.Blocks {
		if b.Affinity != owner && b.Affinity != "" {
			elsewhere.Add(elsewhere, b.Free)
		}
	}
	text := fmt.Sprintf("%s of %s addresses free, %s in use", u.Free, u.Total, u.InUse)
	if u.Warm.Sign() > 0 {
		text += fmt.Sprintf(" (%s of them in warm pools)", u.Warm)
	}
	if u.Reserved.Sign() > 0 {
		text += fmt.Sprintf(", %s reserved", u.Reserved)
	}
	if elsewhere.Sign() > 0 {
		text += fmt.Sprintf("; %s of the free ones are in blocks of other nodes", elsewhere)
	}
	return text
}

// usageOf tells how full pools are; blocks in none of them make a last entry without a name.
func usageOf(pools []pool, blocks []block.Block, reserved block.Reserved) []PoolUsage {
	out := make([]PoolUsage, len(pools), len(pools)+1)
	for i, p := range pools {
		out[i] = PoolUsage{Name: p.Name, CIDR: p.cidr, Counts: emptyCounts()}
		out[i].Total.Set(block.Addresses(p.cidr))
		out[i].Reserved.Set(reserved.Count(p.cidr))
		out[i].Free.Sub(out[i].Total, out[i].Reserved)
	}
	stray := PoolUsage{Counts: emptyCounts()}
	for _, b := range blocks {
		into := &stray
		for i, p := range pools {
			if p.cidr.Contains(b.CIDR().Addr()) {
				into = &out[i]
				break
			}
		}
		u := blockUsage(b, reserved)
		into.Blocks = append(into.Blocks, u)
		into.InUse.Add(into.InUse, u.InUse)
		into.Warm.Add(into.Warm, u.Warm)
		if into == &stray {
			into.Total.Add(into.Total, u.Total)
			into.Reserved.Add(into.Reserved, u.Reserved)
			into.Free.Add(into.Free, u.Free)
			continue
		}
		// What is free in the pool is what is not reserved, less what is in use and not reserved.
		taken := new(big.Int).Sub(u.Total, u.Reserved)
		into.Free.Sub(into.Free, taken.Sub(taken, u.Free))
	}
	if len(stray.Blocks) > 0 {
		out = append(out, stray)
	}
	return out
}

func emptyCounts() Counts {
	return Counts{Total: new(big.Int), InUse: new(big.Int), Warm: new(big.Int), Reserved: new(big.Int), Free: new(big.Int)}
}

func blockUsage(b block.Block, reserved block.Reserved) BlockUsage {
	inUse, warm := 0, 0
	for a := range b.All() {
		inUse++
		if a.Purpose() == block.Warm {
			warm++
		}
	}
	return BlockUsage{
		CIDR: b.CIDR(), Affinity: b.Affinity(),
		Counts: Counts{
			Total: big.NewInt(int64(b.Size())), InUse: big.NewInt(int64(inUse)), Warm: big.NewInt(int64(warm)),
			Reserved: reserved.Count(b.CIDR()), Free: big.NewInt(int64(b.Free(reserved))),
		},
	}
}
