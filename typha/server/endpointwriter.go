package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/datastore"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// How long to wait between attempts to write a node's endpoints, and how many nodes, and endpoints of each, are written at a time.
const (
	firstWriteRetry = 200 * time.Millisecond
	lastWriteRetry  = 30 * time.Second
	parallelWrites  = 8
)

// reports keeps what nodes report of their endpoints and brings the datastore to it.
type reports struct {
	store   datastore.Client
	pods    bool               // the datastore's endpoints are pods, which others make and delete
	known   func(api.Key) bool // whether the datastore has an object, as far as typha was told
	log     *slog.Logger
	metrics *metrics
	slots   *semaphore.Weighted
	news    chan struct{} // has room for one: a node was added to queue

	mu    sync.Mutex // guards all below, and the lower half of each nodeReport
	nodes map[string]*nodeReport
	queue []*nodeReport // nodes with something to write and no writer
}

// sum tells whether something said is the same as before.
type sum = [sha256.Size]byte

// nodeReport is what one node reported.
type nodeReport struct {
	name string

	reporting  sync.Mutex // guards the next six
	instance   string
	sequence   uint64
	refused    []*typhav1.RefusedEndpoint
	digest     sum               // of the last report
	judged     time.Time         // when it was taken
	candidates map[sum]candidate // what was well formed in it, by what it said

	// Guarded by reports.mu:
	desired map[api.Key]*api.WorkloadEndpoint
	dirty   bool // the datastore may differ from desired
	look    bool // the datastore must be read first: others write too
	writing bool // a writer is at work or about to be
	// question is what the endpoints answer, once they are in the datastore; empty if nobody has asked.
	question string

	// Of the writer alone: what the datastore has, nil if that is not known, and those of desired with which it agreed.
	actual map[api.Key]*api.WorkloadEndpoint
	agreed map[*api.WorkloadEndpoint]struct{}
}

func newReports(store datastore.Client, pods bool, known func(api.Key) bool, log *slog.Logger, m *metrics) *reports {
	return &reports{
		store: store, pods: pods, known: known, log: log, metrics: m, slots: semaphore.NewWeighted(parallelWrites),
		news: make(chan struct{}, 1), nodes: map[string]*nodeReport{},
	}
}

// node returns what a node reported, nothing at first.
func (r *reports) node(name string) *nodeReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[name]
	if n == nil {
		n = &nodeReport{name: name}
		r.nodes[name] = n
	}
	return n
}

// want makes these all the endpoints of a node. A fresh report, the first of a felix or one that answers a question, is
// compared with what the datastore really has; the others only with what was written.
func (r *reports) want(n *nodeReport, endpoints []*api.WorkloadEndpoint, fresh bool, question string) {
	desired := make(map[api.Key]*api.WorkloadEndpoint, len(endpoints))
	for _, ep := range endpoints {
		desired[api.KeyOf(ep)] = ep
	}
	r.mu.Lock()
	same := func(a, b *api.WorkloadEndpoint) bool { return a == b || apiequality.Semantic.DeepEqual(a, b) }
	if !fresh && maps.EqualFunc(n.desired, desired, same) {
		r.mu.Unlock()
		return
	}
	n.desired, n.dirty, n.question = desired, true, question
	n.look = n.look || fresh
	if !n.writing {
		n.writing = true
		r.queue = append(r.queue, n)
	}
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// stored tells whether all that a node reported is in the datastore.
func (r *reports) stored(n *nodeReport) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !n.dirty && !n.writing
}

// run writes until ctx ends. What is not written by then is reported anew by felix, to whichever replica it finds.
func (r *reports) run(ctx context.Context) error {
	var writers errgroup.Group
	for {
		r.mu.Lock()
		queue := r.queue
		r.queue = nil
		r.mu.Unlock()
		for _, n := range queue {
			writers.Go(func() error { r.write(ctx, n); return nil })
		}
		select {
		case <-ctx.Done():
			return writers.Wait()
		case <-r.news:
		}
	}
}

// write brings the datastore to what a node wants, however often that takes and changes meanwhile.
func (r *reports) write(ctx context.Context, n *nodeReport) {
	wait := firstWriteRetry
	for {
		r.mu.Lock()
		if !n.dirty {
			n.writing = false
			r.mu.Unlock()
			return
		}
		desired, look, question := n.desired, n.look, n.question
		n.dirty, n.look = false, false
		r.mu.Unlock()
		if look {
			n.actual = nil
		}
		err := r.slots.Acquire(ctx, 1)
		if err == nil {
			if err = r.sync(ctx, n, desired); err == nil && question != "" {
				err = r.answer(ctx, n.name, question)
			}
			r.slots.Release(1)
		}
		if err == nil {
			wait = firstWriteRetry
			continue
		}
		r.mu.Lock()
		n.dirty, n.look = true, true
		r.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		r.log.Warn("endpoints are not written yet, trying again", "node", n.name, "within", wait, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(float64(wait) * (0.5 + rand.Float64()/2))):
		}
		wait = min(2*wait, lastWriteRetry)
	}
}

// sync writes what differs. It goes on after a failure and joins the errors.
func (r *reports) sync(ctx context.Context, n *nodeReport, desired map[api.Key]*api.WorkloadEndpoint) error {
	if n.actual == nil {
		actual, err := r.list(ctx, n.name)
		if err != nil {
			return err
		}
		n.actual, n.agreed = actual, nil
	}
	r.metrics.unwritten.Add(float64(len(desired)))
	defer r.metrics.unwritten.Sub(float64(len(desired)))
	var due []*write
	for key, stored := range n.actual {
		if _, wanted := desired[key]; wanted || r.pods && len(stored.Spec.IPNetworks) == 0 {
			continue // the latter: a pod that is not wired
		}
		due = append(due, &write{key: key, stored: stored})
	}
	agreed := make(map[*api.WorkloadEndpoint]struct{}, len(desired))
	for key, ep := range desired {
		if _, known := n.agreed[ep]; !known {
			due = append(due, &write{key: key, stored: n.actual[key], want: ep})
		} else if n.actual[key] != nil { // and not of a pod that is gone
			agreed[ep] = struct{}{}
		}
	}
	r.carryOut(ctx, due)
	var errs []error
	for _, w := range due {
		if errs = append(errs, w.err); w.err != nil {
			continue
		}
		if n.actual[w.key] = w.now; w.now == nil {
			delete(n.actual, w.key)
		} else {
			agreed[w.want] = struct{}{}
		}
	}
	n.agreed = agreed
	return errors.Join(errs...)
}

// write is what is to be done with one endpoint of the datastore, and its outcome.
type write struct {
	key          api.Key
	stored, want *api.WorkloadEndpoint // nil: is not there, is to go
	now          *api.WorkloadEndpoint // what the datastore has then, nil for nothing
	err          error
}

// carryOut carries writes out, several at a time: the datastore synchronises its log once for those that come together.
func (r *reports) carryOut(ctx context.Context, due []*write) {
	var group errgroup.Group
	group.SetLimit(parallelWrites)
	for _, w := range due {
		group.Go(func() error {
			switch {
			case w.want == nil:
				w.err = r.remove(ctx, w)
			case r.pods:
				w.now, w.err = r.putPod(ctx, w)
			default:
				w.now, w.err = r.put(ctx, w)
			}
			return nil // each has its own outcome
		})
	}
	_ = group.Wait()
}

func (r *reports) remove(ctx context.Context, w *write) error {
	pre := datastore.Precondition{Revision: w.stored.ResourceVersion}
	if r.pods { // elsewhere the revision says which one it is, and the uid would have to be read
		pre.UID = string(w.stored.UID)
	}
	_, err := r.store.Delete(ctx, w.key, pre)
	if errors.Is(err, datastore.ErrNotFound) {
		err = nil
	}
	return r.note("deleted", err)
}

func (r *reports) put(ctx context.Context, w *write) (*api.WorkloadEndpoint, error) {
	if w.stored == nil {
		if err := r.ensureProfiles(ctx, w.want); err != nil {
			return nil, r.note("written", err)
		}
		return r.written(r.store.Create(ctx, w.want.DeepCopy()))
	}
	merged := merge(w.stored, w.want)
	if apiequality.Semantic.DeepEqual(merged, w.stored) {
		return w.stored, nil
	}
	return r.written(r.store.Update(ctx, merged))
}

// putPod notes on a pod how it is wired. A pod that is gone leaves nothing to be written, however long its node still has it.
func (r *reports) putPod(ctx context.Context, w *write) (*api.WorkloadEndpoint, error) {
	want := kubernetes.EndpointAnnotations(w.want)
	if w.stored != nil && maps.Equal(kubernetes.EndpointAnnotations(w.stored), want) && (w.want.UID == "" || w.want.UID == w.stored.UID) {
		return w.stored, nil
	}
	var written api.Object
	var err error
	ep := w.want.DeepCopy()
	if w.stored == nil {
		written, err = r.store.Create(ctx, ep)
	} else {
		ep.ResourceVersion = w.stored.ResourceVersion // whichever it is: nobody else writes this
		written, err = r.store.Update(ctx, ep)
	}
	if errors.Is(err, datastore.ErrNotFound) || errors.Is(err, datastore.ErrConflict) { // the latter: another pod has its name by now
		return nil, nil
	}
	return r.written(written, err)
}

// written counts a write.
func (r *reports) written(o api.Object, err error) (*api.WorkloadEndpoint, error) {
	if err = r.note("written", err); err != nil {
		return nil, err
	}
	return o.(*api.WorkloadEndpoint), nil
}

func (r *reports) note(result string, err error) error {
	if err != nil {
		result = "failed"
	}
	r.metrics.written.WithLabelValues(result).Inc()
	return err
}

// list reads what the datastore has of a node's endpoints.
func (r *reports) list(ctx context.Context, node string) (map[api.Key]*api.WorkloadEndpoint, error) {
	prefix := strings.ReplaceAll(node, "-", "--") + "-" // as the names begin; the one of another node may begin so too
	l, err := r.store.List(ctx, "WorkloadEndpoint", datastore.ListOptions{NamePrefix: prefix, Node: node})
	if err != nil {
		return nil, fmt.Errorf("endpoints of node %s: %w", node, err)
	}
	out := map[api.Key]*api.WorkloadEndpoint{}
	for _, o := range l.Items {
		if ep := o.(*api.WorkloadEndpoint); ep.Spec.Node == node {
			out[api.KeyOf(ep)] = ep
		}
	}
	return out, nil
}

// merge is a stored endpoint with what felix knows of it. What felix does not know stays: fields of other writers, and
// labels that people have added.
func merge(stored, reported *api.WorkloadEndpoint) *api.WorkloadEndpoint {
	out := stored.DeepCopy()
	if out.Labels == nil && len(reported.Labels) > 0 {
		out.Labels = map[string]string{}
	}
	maps.Copy(out.Labels, reported.Labels)
	s, r := &out.Spec, &reported.Spec
	s.ContainerID, s.Pod, s.Workload = r.ContainerID, r.Pod, r.Workload
	if r.ServiceAccountName != "" {
		s.ServiceAccountName = r.ServiceAccountName
	}
	s.InterfaceName = r.InterfaceName
	s.IPNetworks = slices.Clone(r.IPNetworks)
	if r.MAC != "" {
		s.MAC = r.MAC
	}
	if len(r.Profiles) > 0 {
		s.Profiles = slices.Clone(r.Profiles)
	}
	if len(r.Ports) > 0 {
		s.Ports = slices.Clone(r.Ports)
	}
	if len(r.IPNATs) > 0 {
		s.IPNATs = slices.Clone(r.IPNATs)
	}
	if len(r.AllowSpoofedSourcePrefixes) > 0 {
		s.AllowSpoofedSourcePrefixes = slices.Clone(r.AllowSpoofedSourcePrefixes)
	}
	if r.QoSControls != nil {
		s.QoSControls = r.QoSControls.DeepCopy()
	}
	return out
}
