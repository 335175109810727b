package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Prompt has the watches told soon how far they are complete, by Bookmarks, rather than at the next turn of the patrol. It
// does not wait for that. See datastore.Prompt.
func (c *Client) Prompt() {
	select {
	case c.prompt <- struct{}{}:
	default: // asked for already
	}
}

// idle says that nothing has changed between two revisions.
type idle struct{ from, to int64 }

// tellIdle does for servers whose own progress notifications are not exact what these do elsewhere: for each watch it asks
// whether anything has changed since the revision that the watch has reached, and if not lets it know. A server reads the
// whole range for that, so it is done only when someone waits for it.
func (c *Client) tellIdle(ctx context.Context, conn *clientv3.Client, revisions map[*watcher]int64) {
	for w, revision := range revisions {
		now, unchanged, err := w.unchangedSince(ctx, conn, revision)
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			// It would never be known: the watch lies idle, and the server tells it nothing for minutes.
			w.stray(w.compacted(fmt.Sprintf("revision %d is gone, up to which all changes are known; list again", revision)))
		case err != nil:
			c.log.Debug("asking etcd whether a watch has all", "kind", w.kind.Name, "error", err)
		case unchanged:
			select {
			case w.idle <- idle{revision, now}:
			default: // the watch has not looked at the last one yet
			}
		}
	}
}

// unchangedSince tells whether the watched objects are the same now as at a revision: none is newer, and their number is the
// same, so that none has gone either. Both are read at one revision, which is returned.
func (w *watcher) unchangedSince(ctx context.Context, conn *clientv3.Client, revision int64) (now int64, unchanged bool, err error) {
	span := clientv3.WithRange(w.end)
	resp, err := conn.Txn(ctx).Then(
		clientv3.OpGet(w.start, span, clientv3.WithCountOnly(), clientv3.WithRev(revision)),
		clientv3.OpGet(w.start, span, clientv3.WithCountOnly()),
		clientv3.OpGet(w.start, span, clientv3.WithKeysOnly(), clientv3.WithLimit(1), clientv3.WithMinModRev(revision+1)),
	).Commit()
	if err != nil {
		return 0, false, err
	}
	then, present, newer := resp.Responses[0].GetResponseRange(), resp.Responses[1].GetResponseRange(), resp.Responses[2].GetResponseRange()
	return resp.Header.Revision, then.Count == present.Count && len(newer.Kvs) == 0, nil
}

// takeIdle moves the watch on over a time in which nothing happened, if it still is where that time began. An object that came
// and went meanwhile may still be told of afterwards; what is there does not depend on it.
func (w *watcher) takeIdle(i idle) error {
	if w.revision.Load() != i.from {
		return nil
	}
	return w.tell(i.to)
}
