package iptables

import (
	"context"
	"errors"
	"slices"

	"github.com/muslin-net/muslin/felix/dataplane"
)

// attempts is how many transactions of a table one Apply tries at most when the kernel refuses: finding what it is that is
// refused takes some.
const attempts = 100

// write commits units of a table as one transaction, without those that the kernel refuses.
func (d *Driver) write(ctx context.Context, f *family, t *kernelTable, units []*unit, failed *dataplane.Failures) error {
	w := writer{d: d, f: f, t: t, failed: failed, left: attempts}
	return w.write(ctx, units)
}

type writer struct {
	d      *Driver
	f      *family
	t      *kernelTable
	failed *dataplane.Failures
	left   int
	torn   bool  // units are written one after the other
	first  error // what the kernel refused first
}

func (w *writer) write(ctx context.Context, units []*unit) error {
	for len(units) > 0 {
		owner, err := w.commit(ctx, units)
		if err == nil {
			for _, u := range units {
				u.done()
			}
			return nil
		}
		if w.left--; w.left <= 0 || whole(err) {
			return err
		}
		if w.first == nil {
			w.first = err
		}
		refused := blamed(err, owner)
		switch {
		case len(units) == 1:
			refused = map[*unit]bool{units[0]: true}
		case len(refused) == 0 || !w.torn && slices.ContainsFunc(units, func(u *unit) bool { return u.hooks && refused[u] }):
			// The way to our chains must not be missing because of what is behind it.
			return w.halves(ctx, units)
		}
		var next []*unit
		for _, u := range units {
			switch {
			case !refused[u]:
				next = append(next, u)
			case u.instead != nil:
				next = append(next, u.instead)
			}
			switch {
			case refused[u] && u.hooks: // that a chain is not there which it leads to says nothing of why
				w.failed.Add(u.Kind, u.Key, w.first)
			case refused[u]:
				w.failed.Add(u.Kind, u.Key, err)
			}
		}
		units = next
	}
	return nil
}

// commit is one transaction.
func (w *writer) commit(ctx context.Context, units []*unit) ([]*unit, error) {
	text, owner := input(w.t.name, units)
	return owner, w.d.eyes.wrote(w.f, w.t.name, func() error {
		w.d.runs.Add(1)
		return w.f.program.write(ctx, text)
	})
}

// halves writes units that the kernel refuses without saying which in two transactions. Chains that are not there yet drop
// until theirs is written, so that none that others already lead to is empty; and packets are led to them first, so that
// what the kernel refuses is a chain and not the way to all of them.
func (w *writer) halves(ctx context.Context, units []*unit) error {
	if !w.torn {
		w.torn = true
		var closed, hooks, rest []*unit
		for _, u := range units {
			if _, there := w.t.chains.Actual(u.makes); u.makes != "" && !there && u.instead != nil {
				closed = append(closed, u.instead)
			}
			if u.hooks {
				hooks = append(hooks, u)
			} else {
				rest = append(rest, u)
			}
		}
		return errors.Join(w.write(ctx, closed), w.write(ctx, hooks), w.write(ctx, rest))
	}
	n := len(units) / 2
	return errors.Join(w.write(ctx, units[:n]), w.write(ctx, units[n:]))
}
