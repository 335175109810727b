package lease

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// Do carries a task out: it says to typha what the task says. Handles that cannot be freed together are freed by themselves, so many
// at a time.
func Do(ctx context.Context, typha Authority, t *Task, parallel int) (answer Answer) {
	switch t.Kind {
	case DoReview:
		answer.Review, answer.Err = typha.Review(ctx, t.Epoch)
	case DoEnter:
		answer.Review, answer.Err = typha.Enter(ctx, t.Epoch, t.Before, t.Claims)
	case DoReserve:
		answer.Addrs, answer.Err = typha.Reserve(ctx, t.Epoch, t.Class, t.Count)
	case DoSettle:
		answer.Refused, answer.Err = typha.Settle(ctx, t.Epoch, t.Claims)
	case DoClaim:
		answer.Err = typha.Claim(ctx, t.Claims[0])
	case DoReturn:
		answer.Err = typha.Return(ctx, t.Epoch, t.Addrs)
	case DoFree:
		answer.Failures = freeAll(ctx, typha, t.Handles, parallel)
	}
	return answer
}

func freeAll(ctx context.Context, typha Authority, handles []string, parallel int) map[string]error {
	errs := make([]error, len(handles))
	if len(handles) > 1 && typha.Free(ctx, handles...) == nil {
		return nil
	}
	if parallel <= 1 {
		for i, h := range handles {
			errs[i] = typha.Free(ctx, h)
		}
	} else {
		var group errgroup.Group
		group.SetLimit(parallel)
		for i, h := range handles {
			group.Go(func() error {
				errs[i] = typha.Free(ctx, h)
				return nil // each handle has its own outcome
			})
		}
		_ = group.Wait()
	}
	failures := map[string]error{}
	for i, h := range handles {
		if errs[i] != nil {
			failures[h] = errs[i]
		}
	}
	return failures
}
