package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
	"github.com/muslin-net/muslin/typha/views"
)

const (
	// reportLook is how often it is looked whether a node that was not connected here is now.
	reportLook = 5 * time.Second
	// reportPatience is how late a report may be before a replica without confd's stream thinks that no other has it.
	reportPatience = 10 * time.Second
	// reportsAtOnce is how many nodes are asked at the same time.
	reportsAtOnce = 8
)

// nodeReports keeps CalicoNodeStatus objects up to date: at each object's own pace it asks the node's daemons over the
// relay, and writes what they say. The replica that has the stream of the node's confd reports, so that there is one
// reporter for each object. A node whose felix alone is connected has no bird: the replica that has felix's stream says so,
// once it is sure that no other replica reports.
type nodeReports struct {
	store    datastore.Client
	sessions *registry
	ask      func(ctx context.Context, m *typhav1.QueryRequest, take func([]byte) error) error
	log      *slog.Logger
	now      func() time.Time
	patience time.Duration

	mu     sync.Mutex // guards wanted
	wanted map[string]*wantedReport
	news   chan struct{} // has room for one
}

// wantedReport is one object: what it asks for, and when.
type wantedReport struct {
	object  *api.CalicoNodeStatus // without its status
	updated time.Time             // when the stored report was made
	next    time.Time
	alone   time.Time // since when the node's felix is connected here without its confd; zero if it is not
	running bool
}

func newNodeReports(s *Server) *nodeReports {
	return &nodeReports{
		store: s.cfg.Datastore, sessions: s.sessions, ask: s.relay, log: s.log, now: time.Now, patience: cmp.Or(s.cfg.ReportPatience, reportPatience),
		wanted: map[string]*wantedReport{}, news: make(chan struct{}, 1),
	}
}

// run follows the objects and reports until ctx ends.
func (r *nodeReports) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := datastore.Follow(ctx, r.store, "CalicoNodeStatus", datastore.FollowOptions{Logger: r.log}, r.take)
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	group.Go(func() error {
		r.schedule(ctx)
		return nil
	})
	return group.Wait()
}

// take keeps in step with what is stored.
func (r *nodeReports) take(d datastore.Delta[*api.CalicoNodeStatus]) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range d.Changes {
		period := uint32(0)
		if c.Type != datastore.Deleted && c.Object.Spec.UpdatePeriodSeconds != nil {
			period = *c.Object.Spec.UpdatePeriodSeconds
		}
		if period == 0 {
			delete(r.wanted, c.Key.Name)
			continue
		}
		w := r.wanted[c.Key.Name]
		if w == nil || !sameRequest(w.object, c.Object) {
			fresh := &wantedReport{next: r.now()}
			if w != nil {
				fresh.running = w.running
			}
			w = fresh
			r.wanted[c.Key.Name] = w
		}
		slim := *c.Object
		slim.Status = api.CalicoNodeStatusStatus{}
		w.object, w.updated = &slim, c.Object.Status.LastUpdated.Time
	}
	poke(r.news)
	return nil
}

// sameRequest tells whether two states of an object ask for the same.
func sameRequest(a, b *api.CalicoNodeStatus) bool {
	return a.UID == b.UID && !changes(a, func(o *api.CalicoNodeStatus) { o.Spec = *b.Spec.DeepCopy() })
}

// schedule begins each report when its time has come.
func (r *nodeReports) schedule(ctx context.Context) {
	var running errgroup.Group
	running.SetLimit(reportsAtOnce)
	defer func() { _ = running.Wait() }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.news:
		case <-timer.C:
		}
		due, next := r.due()
		for _, w := range due {
			running.Go(func() error {
				r.report(ctx, w)
				return nil
			})
		}
		timer.Reset(next)
	}
}

// due takes the reports whose time has come, and tells when the next one's comes.
func (r *nodeReports) due() (list []*wantedReport, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next = time.Hour
	for _, w := range r.wanted {
		switch wait := w.next.Sub(r.now()); {
		case w.running:
		case wait <= 0:
			w.running = true
			list = append(list, w)
		default:
			next = min(next, wait)
		}
	}
	return list, next
}

// report makes one report, if it is this replica's to make.
func (r *nodeReports) report(ctx context.Context, w *wantedReport) {
	r.mu.Lock()
	object, updated := w.object, w.updated
	r.mu.Unlock()
	period := time.Duration(*object.Spec.UpdatePeriodSeconds) * time.Second
	begin, again := r.now(), min(period, reportLook)
	has := func(kind views.ViewKind) bool {
		return r.sessions.newest(views.Scope{Node: object.Spec.Node, View: kind}) != nil
	}
	confd := has(views.BGPView)
	if confd || !has(views.NodeView) {
		w.alone = time.Time{}
	} else if w.alone.IsZero() {
		w.alone = begin
	}
	late := !w.alone.IsZero() && begin.Sub(w.alone) > r.patience && begin.Sub(updated) > period+r.patience
	if confd || late {
		again = period
		err := r.write(ctx, object, r.inspect(ctx, object))
		if err != nil && ctx.Err() == nil {
			r.log.Warn("a node's status is not written, trying again", "object", object.Name, "node", object.Spec.Node, "error", err)
			again = min(period, reportLook)
		}
	}
	r.mu.Lock()
	w.next, w.running = begin.Add(again), false
	if now := r.wanted[object.Name]; now != nil && now != w {
		now.running = false // what is asked for has changed meanwhile
	}
	r.mu.Unlock()
	poke(r.news)
}

// write stores a report, unless something else is asked for by now.
func (r *nodeReports) write(ctx context.Context, object *api.CalicoNodeStatus, status api.CalicoNodeStatusStatus) error {
	status.LastUpdated = metav1.NewTime(r.now().Truncate(time.Second))
	return errors.Join(update(ctx, r.store, object, func(o *api.CalicoNodeStatus) {
		if sameRequest(object, o) {
			o.Status = status
		}
	}))
}
