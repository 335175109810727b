package etcd

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// patrol looks after open watches now and then. It asks etcd to tell them the revision they are complete to: by itself
// etcd tells idle watches every ten minutes, which is longer than histories are usually kept. And it checks that etcd
// still is at least as far as they are. Prompt makes it look at once.
func (c *Client) patrol() {
	tick := time.NewTicker(c.cfg.BookmarkEvery)
	defer tick.Stop()
	exact, prompted := false, false
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
			prompted = false
		case <-c.prompt:
			prompted = true
		}
		conn := c.conn.Load()
		revisions := c.watched()
		if conn == nil || len(revisions) == 0 {
			continue
		}
		exact = exact || c.progressIsExact(conn)
		ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(c.ctx), c.cfg.OpTimeout)
		if exact {
			if err := conn.RequestProgress(ctx); err != nil {
				c.log.Debug("asking etcd for the progress of watches", "error", err)
			}
		} else if prompted {
			c.tellIdle(ctx, conn, revisions)
		}
		if resp, err := conn.Get(ctx, ipamConfigPath, clientv3.WithCountOnly()); err == nil {
			for w, revision := range revisions {
				w.compare(resp.Header, revision)
			}
		}
		cancel()
	}
}

// watched returns the open watches with the revision each has reached.
func (c *Client) watched() map[*watcher]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	revisions := make(map[*watcher]int64, len(c.watchers))
	for w := range c.watchers {
		revisions[w] = w.revision.Load()
	}
	return revisions
}

// compare tells the watch if etcd's data is not the data it began with: another cluster answers at the endpoint, or the
// cluster was set back to an earlier state. Resuming by revision would silently miss changes then, and a watch that waits
// for a revision in the future is told nothing. revision is what the watch had reached before etcd was asked for header.
func (w *watcher) compare(header *pb.ResponseHeader, revision int64) {
	var err error
	switch cluster := w.cluster.Load(); {
	case cluster != 0 && header.ClusterId != cluster:
		err = w.compacted("another etcd cluster answers now; list again")
	case header.Revision < revision:
		err = w.compacted(fmt.Sprintf("etcd was set back from revision %d to %d, as by restoring a backup; list again", revision, header.Revision))
	default:
		return
	}
	w.stray(err)
}

// stray tells the watch that it cannot go on from where it is.
func (w *watcher) stray(err error) {
	select {
	case w.estray <- err:
	default: // it knows
	}
}

// checkLineage compares a response of the watch itself. One of an earlier revision may come from a member that lags
// behind, so the cluster is asked.
func (w *watcher) checkLineage(header *pb.ResponseHeader) error {
	w.cluster.CompareAndSwap(0, header.ClusterId)
	reached := w.revision.Load()
	if header.ClusterId != w.cluster.Load() || header.Revision < reached {
		current, err := w.header(w.ctx)
		if err != nil {
			return err
		}
		w.compare(current, reached)
	}
	select {
	case err := <-w.estray:
		return err
	default:
		return nil
	}
}

// header asks the cluster, not just one member, where it is.
func (w *watcher) header(ctx context.Context) (*pb.ResponseHeader, error) {
	var header *pb.ResponseHeader
	err := w.c.do(ctx, opWatch, w.key, func(ctx context.Context, conn *clientv3.Client) error {
		resp, err := conn.Get(ctx, ipamConfigPath, clientv3.WithCountOnly())
		if err == nil {
			header = resp.Header
		}
		return err
	})
	return header, err
}

// progressIsExact tells whether all members answer a progress request only after all earlier events: before 3.4.25 and
// 3.5.8 they could run ahead (etcd issue 15220), and a watch resumed from there would miss changes. Watches of older
// servers get only the bookmarks these send by themselves, which are exact.
func (c *Client) progressIsExact(conn *clientv3.Client) bool {
	for _, ep := range c.eps {
		ctx, cancel := context.WithTimeout(c.ctx, c.cfg.DialTimeout)
		s, err := conn.Status(ctx, ep)
		cancel()
		if err != nil || !exactSince(s.Version) {
			return false
		}
	}
	return true
}

func exactSince(version string) bool {
	var major, minor, patch int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); err != nil {
		return false
	}
	switch {
	case major != 3:
		return major > 3
	case minor == 4:
		return patch >= 25
	case minor == 5:
		return patch >= 8
	}
	return minor > 5
}
