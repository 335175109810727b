package agent

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/muslin-net/muslin/felix/dataplane"
)

// Notifications of one mishap come one by one: those of driftWindow are told in one line, which names at most driftNames
// objects of a kind.
const (
	driftWindow = 100 * time.Millisecond
	driftNames  = 20
)

// drifts collects what others did to the kernel, and logs it in few lines. The repair does not wait for that.
type drifts struct {
	log *slog.Logger

	mu      sync.Mutex // guards the following
	pending []dataplane.Drift
	timer   *time.Timer
}

// add takes what was found changed.
func (d *drifts) add(all []dataplane.Drift) {
	if len(all) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, all...)
	if d.timer == nil {
		d.timer = time.AfterFunc(driftWindow, d.flush)
	}
}

// flush logs what was collected.
func (d *drifts) flush() {
	d.mu.Lock()
	pending := d.pending
	d.pending, d.timer = nil, nil
	d.mu.Unlock()
	if len(pending) > 0 {
		d.log.Info("the kernel was changed by someone else", "lost", summary(pending))
	}
}

// summary is "2 routes removed: 10.1.0.0/26, 10.1.0.64/26; link vxlan.calico removed".
func summary(all []dataplane.Drift) string {
	type group struct {
		kind dataplane.Kind
		what string
	}
	keys := map[group][]string{}
	var order []group
	for _, d := range all {
		g := group{d.Kind, d.What}
		if _, known := keys[g]; !known {
			order = append(order, g)
		}
		if !slices.Contains(keys[g], d.Key) {
			keys[g] = append(keys[g], d.Key)
		}
	}
	var parts []string
	for _, g := range order {
		names := keys[g]
		slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
		switch {
		case g.kind == "":
			parts = append(parts, g.what)
		case len(names) == 1:
			parts = append(parts, fmt.Sprintf("%s %s %s", g.kind, names[0], g.what))
		default:
			more := ""
			if len(names) > driftNames {
				more = fmt.Sprintf(" and %d more", len(names)-driftNames)
			}
			parts = append(parts, fmt.Sprintf("%d %ss %s: %s%s", len(names), g.kind, g.what, strings.Join(names[:min(len(names), driftNames)], ", "), more))
		}
	}
	return strings.Join(parts, "; ")
}
