package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// ours is what the names of all accounts of Muslin begin with.
const ours = "system:serviceaccount:kube-system:calico-"

// count has work done for a while, and counts what Muslin asks the API for meanwhile: by account, and in all.
func (b *bench) count(ctx context.Context, name string, work func(context.Context) error) error {
	log, err := os.Open(b.muslin.AuditLog())
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	began := time.Now()
	working, stop := context.WithTimeout(ctx, watched)
	defer stop()
	if err := work(working); err != nil {
		return err
	}
	minutes := time.Since(began).Minutes()
	by, what, err := countRequests(log)
	if err != nil {
		return err
	}
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

// countRequests reads an audit log: how many requests each account of Muslin has made, and of what kind they were.
func countRequests(log io.Reader) (by, what map[string]int, err error) {
	by, what = map[string]int{}, map[string]int{}
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return by, what, nil // a line that is not whole is counted next time
		}
		if err != nil {
			return nil, nil, err
		}
		var e struct {
			Verb, Stage string
			User        struct{ Username string }
			ObjectRef   struct{ Resource, Subresource string }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, nil, fmt.Errorf("audit log: %w", err)
		}
		account, is := strings.CutPrefix(e.User.Username, ours)
		// Of a watch there is a line when it begins, and another when it ends.
		if !is || e.Verb == "watch" && e.Stage != "ResponseStarted" {
			continue
		}
		by[account]++
		what[strings.TrimSuffix(account+" "+e.Verb+" "+e.ObjectRef.Resource+"/"+e.ObjectRef.Subresource, "/")]++
	}
}
