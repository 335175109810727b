package bench

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/muslin-net/muslin/integration/k8s/cluster"
)

// count has work done for a while, and counts what Muslin asks the API for meanwhile: by account, and in all.
func (b *bench) count(ctx context.Context, name string, work func(context.Context) error) error {
	from, err := b.muslin.AuditEnd()
	if err != nil {
		return err
	}
	began := time.Now()
	working, stop := context.WithTimeout(ctx, watched)
	defer stop()
	if err := work(working); err != nil {
		return err
	}
	minutes := time.Since(began).Minutes()
	requests, err := b.muslin.Requests(from)
	if err != nil {
		return err
	}
	by, what := counted(requests)
	all := 0
	for _, account := range slices.Sorted(maps.Keys(by)) {
		b.figure("requests."+name+"."+account, float64(by[account])/minutes, "requests/min", 0, "")
		all += by[account]
	}
	b.figure("requests."+name, float64(all)/minutes, "requests/min", 0, "")
	for _, w := range slices.Sorted(maps.Keys(what)) {
		fmt.Fprintf(b.Log, "  %s: %s: %d\n", name, w, what[w])
	}
	return nil
}

// counted is how many requests each account of Muslin has made, and of what kind they were.
func counted(requests []cluster.Request) (by, what map[string]int) {
	by, what = map[string]int{}, map[string]int{}
	for _, r := range requests {
		by[r.Account]++
		what[r.Account+" "+r.Verb+" "+r.What]++
	}
	return by, what
}
