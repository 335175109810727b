package check

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/felix/render"
)

// How a path is tried. A first answer may take a while, since neighbours are looked for; after that the round trip is known.
const (
	atOnce    = 64 // paths tried at a time
	patience  = time.Second
	trips     = 4 // round trips to wait for an answer, and
	least     = 100 * time.Millisecond
	glance    = 10 * time.Millisecond // for what has come already
	smallSize = 128                   // bytes; fits everywhere
	guesses   = 16                    // sizes tried in one round
)

// pathResult is the outcome for one path.
type pathResult struct {
	render.Path
	fits      int           // bytes, with the IP header, of the largest packet that arrives; 0 if none does
	roundTrip time.Duration // of the largest one
	err       error         // why none arrives
}

// paths tries all paths and tells each outcome as it comes, one at a time. It returns early only with ctx.
func paths(ctx context.Context, list []render.Path, tell func(pathResult) error) error {
	results := make(chan pathResult)
	var g errgroup.Group
	g.SetLimit(atOnce)
	go func() {
		defer close(results)
		for _, p := range list {
			g.Go(func() error {
				results <- try(ctx, p)
				return nil
			})
		}
		_ = g.Wait() // outcomes are told, not returned
	}()
	var errs []error
	for r := range results { // to the end, so that nobody is left waiting
		if ctx.Err() == nil && len(errs) == 0 {
			if err := tell(r); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// try finds the largest packet that arrives at the other end of a path.
func try(ctx context.Context, path render.Path) pathResult {
	out := pathResult{Path: path}
	p, err := newProber(ctx, path)
	if err != nil {
		out.err = err
		return out
	}
	defer p.close()
	small := min(smallSize, path.Size)
	answered := p.round(ctx, []int{path.Size, small}, patience)
	if answered == 0 {
		out.err = p.why()
		return out
	}
	out.fits = answered
	for missing := path.Size; missing-out.fits > 1; {
		sizes := between(out.fits, missing)
		best := p.round(ctx, sizes, 0)
		if ctx.Err() != nil {
			out.err = ctx.Err()
			return out
		}
		for i, size := range sizes { // in descending order: the one above the largest that came did not come
			if size <= best {
				break
			}
			missing = sizes[i]
		}
		out.fits = max(out.fits, best)
	}
	out.roundTrip = p.took[out.fits]
	return out
}

// between are sizes that cut the open interval into equal parts, the largest first.
func between(low, high int) []int {
	n := min(guesses, high-low-1)
	var out []int
	for i := n; i > 0; i-- {
		out = append(out, low+(high-low)*i/(n+1))
	}
	return out
}

// why tells why nothing was answered.
func (p *prober) why() error {
	if p.failed != nil {
		return fmt.Errorf("packets cannot be sent: %w", p.failed)
	}
	return fmt.Errorf("no answer to echo requests within %s; is the node up, and is ICMP let through?", patience)
}
